"""What is due after a step is done, and nothing else."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from encdec_train.config import OptimConfig
from encdec_train.errors import ClusterError, EncDecError
from encdec_train.training import callbacks
from encdec_train.training import checkpoint as checkpoints
from encdec_train.training.callbacks import Progress, final_weights


def steps_with(made: Any, key: str) -> list[int]:
    return [row["step"] for row in made.rows if key in row]


@pytest.mark.parametrize(
    ("values", "lower", "expected"),
    [
        ([3.0, 2.0, 2.5], True, Progress("loss", 20, 2.0, 1)),
        ([3.0, 2.0, 2.5], False, Progress("loss", 10, 3.0, 2)),
        ([1.0, 1.0, 1.0], True, Progress("loss", 10, 1.0, 2)),  # as good is not better
        ([float("nan"), 4.0, float("nan")], True, Progress("loss", 20, 4.0, 1)),
        ([float("nan")], False, Progress("loss", None, None, 1)),
        ([float("inf"), float("-inf")], False, Progress("loss", None, None, 2)),
        ([], True, Progress("loss", None, None, 0)),
    ],
)
def test_progress_keeps_the_best_and_counts_the_others(values: list[float], lower: bool, expected: Progress) -> None:
    progress = Progress("loss")
    for number, value in enumerate(values, start=1):
        progress.take(10 * number, value, lower)
    assert progress == expected


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (7, [7]), (100, [7])])
def test_steps_are_logged_as_often_as_asked_for_and_at_the_end(
    every: int, expected: list[int], new_model: Callable[..., Any], make_run: Callable[..., Any]
) -> None:
    made = make_run(new_model(), 7, log_every_steps=every)
    assert steps_with(made, "train/loss") == expected
    assert [step for step, _ in made.heard.rows] == expected
    assert set(made.heard.rows[0][1]) == {
        "train/loss", "train/grad_norm", "train/epoch", "optim/lr", "time/tokens_per_second", "time/data_wait",
        "time/padding", "time/utilisation", "time/step_seconds_p50", "time/step_seconds_p95", "time/peak_memory_gib",
    }  # fmt: skip
    assert [row["train/epoch"] for row in made.rows] == [int(step > 5) for step in expected]


def test_the_bar_ends_where_the_run_does(
    new_model: Callable[..., Any], make_run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(new_model(), 7, log_every_steps=3)
    assert "train 7/7 " in capsys.readouterr().err


def test_validations_and_checkpoints_come_when_they_are_due(
    new_model: Callable[..., Any], make_run: Callable[..., Any], validator: Any
) -> None:
    made = make_run(new_model(), 8, validate_every_steps=3, checkpoint_every_steps=4, validator=validator)
    assert steps_with(made, "validation/loss") == steps_with(made, "validation/exact_match") == [3, 6, 8]
    assert made.heard.examples == [(3, "validation", 4), (6, "validation", 4), (8, "validation", 4)]
    assert made.checkpoints == [3, 4, 6, 8]
    states = [checkpoints.read(path).state for path in sorted((made.root / "checkpoints").iterdir())]
    assert [state["step"] for state in states] == [3, 4, 6, 8]
    assert [state["validation_due"] for state in states] == [False] * 4
    assert states[1]["progress"]["best_step"] == 3


def test_without_validation_the_last_step_is_kept(new_model: Callable[..., Any], make_run: Callable[..., Any]) -> None:
    made = make_run(new_model(), 3)
    assert made.checkpoints == [3]
    assert steps_with(made, "validation/loss") == []
    assert made.callback.progress == Progress("loss")


class Scripted:
    """A validator that finds what it is told to."""

    def __init__(self, name: str, values: list[float]) -> None:
        self._name, self._values = name, iter(values)

    def __call__(self, module: Any) -> Any:
        return type("Found", (), {"values": {"loss": 1.0, self._name: next(self._values)}, "examples": []})


@pytest.mark.parametrize(
    ("metric", "values", "keep_last", "expected"),
    [
        ("loss", [3.0, 1.0, 2.0, 2.0], 1, [2, 4]),
        ("exact_match", [3.0, 1.0, 2.0, 2.0], 1, [1, 4]),
        ("exact_match", [3.0, 1.0, 2.0, 2.0], 2, [1, 3, 4]),
        ("ter", [3.0, 4.0, 5.0, 6.0], 2, [1, 3, 4]),  # lower is better
        ("loss", [4.0, 3.0, 2.0, 1.0], 1, [4]),
    ],
)
def test_the_last_checkpoints_and_the_best_are_kept(
    metric: str,
    values: list[float],
    keep_last: int,
    expected: list[int],
    new_model: Callable[..., Any],
    make_run: Callable[..., Any],
) -> None:
    script = Scripted(metric, values)
    made = make_run(new_model(), 4, validate_every_steps=1, keep_last=keep_last, best_metric=metric, validator=script)
    assert made.checkpoints == expected


def test_patience_ends_a_run_that_does_not_get_better(
    new_model: Callable[..., Any], make_run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    script = Scripted("loss", [2.0, 1.0, 1.5, 1.0, 0.5, 0.4])
    made = make_run(new_model(), 20, validate_every_steps=2, patience_validations=2, validator=script)
    assert made.callback.step == 8
    assert made.callback.progress == Progress("loss", 4, 1.0, 2)
    assert steps_with(made, "train/loss") == list(range(1, 9))
    newest = checkpoints.newest(made.root / "checkpoints")
    assert newest.step == 8
    assert "stop at step 8: no better loss in 2 validations" in capsys.readouterr().err


def test_patience_is_carried_over_a_stop(
    new_model: Callable[..., Any], make_run: Callable[..., Any], heard_of: Callable[..., Any]
) -> None:
    options = {"validate_every_steps": 2, "patience_validations": 2}
    with pytest.raises(RuntimeError, match="killed"):
        make_run(new_model(), 20, heard=heard_of(7), validator=Scripted("loss", [2.0, 1.0, 1.5]), **options)
    made = make_run(new_model(), 20, validator=Scripted("loss", [1.5, 1.5]), **options)
    assert made.callback.step == 8
    assert made.callback.progress == Progress("loss", 4, 1.0, 2)


def test_patience_that_runs_out_in_a_postponed_validation_is_said(
    new_model: Callable[..., Any], make_run: Callable[..., Any], heard_of: Callable[..., Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    options = {"validate_every_steps": 2, "patience_validations": 2}
    with pytest.raises(RuntimeError, match="killed"):
        make_run(new_model(), 20, heard=heard_of(7), validator=Scripted("loss", [2.0, 1.0, 1.5]), **options)
    stopped = checkpoints.read(checkpoints.folder_of(tmp_path / "run" / "checkpoints", 6))
    due = replace(stopped, state={**stopped.state, "validation_due": True})
    monkeypatch.setattr(checkpoints, "newest", lambda _root: due)
    made = make_run(new_model(), 20, validator=Scripted("loss", [1.5]), **options)
    assert made.callback.step == 6
    assert "stop at step 6: no better loss in 2 validations" in capsys.readouterr().err


def test_the_best_weights_are_loaded(new_model: Callable[..., Any], make_run: Callable[..., Any]) -> None:
    script = Scripted("loss", [2.0, 1.0, 3.0])
    made = make_run(new_model(), 6, validate_every_steps=2, validator=script)
    last = {name: p.clone() for name, p in made.model.named_parameters()}
    assert final_weights(made.model, made.root / "checkpoints", made.callback.progress, []) == 4
    best = checkpoints.read(checkpoints.folder_of(made.root / "checkpoints", 4)).weights
    assert all(torch.equal(p, best[name]) for name, p in made.model.named_parameters())
    assert not all(torch.equal(p, last[name]) for name, p in made.model.named_parameters())


def test_without_a_validation_the_last_weights_stay(
    new_model: Callable[..., Any], make_run: Callable[..., Any], tmp_path: Path
) -> None:
    made = make_run(new_model(), 2)
    last = {name: p.clone() for name, p in made.model.named_parameters()}
    assert final_weights(made.model, tmp_path / "nothing", made.callback.progress, []) is None
    assert all(torch.equal(p, last[name]) for name, p in made.model.named_parameters())


def test_a_damaged_best_checkpoint_leaves_the_last_weights(
    new_model: Callable[..., Any], make_run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_run(new_model(), 6, validate_every_steps=2, validator=Scripted("loss", [2.0, 1.0, 3.0]))
    last = {name: p.clone() for name, p in made.model.named_parameters()}
    weights = checkpoints.folder_of(made.root / "checkpoints", 4) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert final_weights(made.model, made.root / "checkpoints", made.callback.progress, []) is None
    assert all(torch.equal(p, last[name]) for name, p in made.model.named_parameters())
    assert "The weights of the last step are kept instead of those of step 4." in capsys.readouterr().err


def test_another_best_metric_is_looked_for_anew(
    new_model: Callable[..., Any], make_run: Callable[..., Any], heard_of: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    options = {"validate_every_steps": 2}
    with pytest.raises(RuntimeError, match="killed"):
        make_run(new_model(), 8, heard=heard_of(5), validator=Scripted("loss", [2.0, 1.0]), **options)
    script = Scripted("exact_match", [0.5, 0.4])
    made = make_run(new_model(), 8, validator=script, best_metric="exact_match", **options)
    assert made.callback.progress == Progress("exact_match", 6, 0.5, 1)
    assert "trainer.best_metric was loss and is exact_match" in capsys.readouterr().err


def test_broken_weights_stop_the_run(
    new_model: Callable[..., Any], make_run: Callable[..., Any], optim: OptimConfig
) -> None:
    message = (
        r"train/loss: expected a finite loss and gradient, got 'nan and nan'; step 5 is one too many \(4 so far, "
        r"at most 3\); the last checkpoint is from before\. Lower optim.lr or raise "
        r"optim.warmup_steps\.$"
    )
    with pytest.raises(EncDecError, match=message):
        make_run(new_model(), 9, optim=replace(optim, lr=1e20, warmup_steps=0))


def test_broken_weights_are_never_saved(
    new_model: Callable[..., Any], make_run: Callable[..., Any], optim: OptimConfig, tmp_path: Path
) -> None:
    """Also where the steps that broke them were not logged."""
    with pytest.raises(EncDecError, match="step 5 is one too many"):
        make_run(
            new_model(), 9, optim=replace(optim, lr=1e20, warmup_steps=0), log_every_steps=100, checkpoint_every_steps=4
        )
    assert checkpoints.steps(tmp_path / "run" / "checkpoints") == []


def test_a_damaged_later_checkpoint_does_not_push_out_a_new_one(
    new_model: Callable[..., Any], make_run: Callable[..., Any], heard_of: Callable[..., Any], tmp_path: Path
) -> None:
    root = tmp_path / "run" / "checkpoints"
    make_run(new_model(), 6, checkpoint_every_steps=2)
    (root / "step_00000006" / "state.json").write_text("{}")
    with pytest.raises(RuntimeError, match="killed"):
        make_run(new_model(), 6, checkpoint_every_steps=1, keep_last=1, heard=heard_of(6))
    assert checkpoints.steps(root) == [5]
    assert checkpoints.newest(root).step == 5


def test_the_state_is_plain_json(new_model: Callable[..., Any], make_run: Callable[..., Any], validator: Any) -> None:
    made = make_run(new_model(), 1, validator=validator)
    state = json.loads((made.root / "checkpoints" / "step_00000001" / "state.json").read_text())
    assert state == {
        "progress": {"metric": "loss",
            "best_step": 1, "best_value": made.callback.progress.best_value, "validations_since_best": 0,
            "skipped_steps": 0,
        },
        "validation_due": False, "step": 1,
    }  # fmt: skip


def test_other_ranks_write_nothing(
    new_model: Callable[..., Any], make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks.distributed, "rank", lambda: 1)
    assert make_run(new_model(), 1).checkpoints == []


def test_the_mean_of_some_steps_is_taken(new_model: Callable[..., Any], make_run: Callable[..., Any]) -> None:
    made = make_run(new_model(), 6, averaged=[2, 4, 6], checkpoint_every_steps=5, keep_last=1)
    assert made.checkpoints == [2, 4, 6]
    kept = [checkpoints.read(path).weights for path in sorted((made.root / "checkpoints").iterdir())]
    assert final_weights(made.model, made.root / "checkpoints", made.callback.progress, [2, 4, 6]) == 6
    for name, p in made.model.named_parameters():
        torch.testing.assert_close(p.detach(), sum(one[name] for one in kept) / 3)
        assert not p.equal(kept[2][name])


@pytest.mark.parametrize(
    ("place", "rows", "message"),
    [
        ("outputs/b/checkpoints", "0", "rank 1 writes to outputs/b/checkpoints."),
        ("outputs/a/checkpoints", "1", "rank 1 writes to outputs/a/checkpoints and has another data.train."),
    ],
)
def test_ranks_of_another_run_are_not_trained_with(
    monkeypatch: pytest.MonkeyPatch, place: str, rows: str, message: str
) -> None:
    """Two clusters on one machine met at one port; a node's own disk held another file under the same name."""
    mine, theirs = ({"seed": 1, "data": {"train": one, "test": "2"}} for one in ("0", rows))
    others = [("outputs/a/checkpoints", mine, None), (place, theirs, None)]
    monkeypatch.setattr(callbacks.distributed, "gather_ordered", lambda mine: others)
    expected = f"^launcher: expected ranks of one run, in outputs/a/checkpoints; {re.escape(message)} Start all ranks"
    with pytest.raises(ClusterError, match=expected):
        callbacks._check_ranks_agree("outputs/a/checkpoints", mine, None)


def test_a_skipped_step_does_not_cost_the_average(new_model: Callable[..., Any], make_run: Callable[..., Any]) -> None:
    """Nothing was updated there, so its weights are those of the step before."""
    model, now = new_model(dropout=0.0), [0]
    next(model.parameters()).register_hook(lambda gradient: gradient * (float("nan") if now[0] == 4 else 1.0))

    def note(batch: Any, _: Any) -> None:
        now[0] = batch.step

    made = make_run(model, 6, averaged=[2, 4, 6], watch=note)
    assert made.callback.progress.skipped_steps == 1
    assert made.checkpoints == [2, 4, 6]
    assert final_weights(model, made.root / "checkpoints", made.callback.progress, [2, 4, 6]) == 6
