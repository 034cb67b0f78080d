"""The same command again: after the end, after Ctrl-C, as a sweep; and two runs that are equal to the byte."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from results import load, losses, read

from encdec_train.training.callbacks import EveryStep

Encdec = Callable[..., Any]
SHORT = ("trainer.max_steps=2", "run.name=short")


def test_the_same_command_again_changes_nothing(finished: Path, train: Encdec, shared: ModuleType) -> None:
    before = shared.snapshot(finished)
    done = train(*shared.SPLITS, "run.name=run")
    assert done.err == "out/run is finished; nothing to do. Another seed or run.name makes another run.\n"
    assert shared.snapshot(finished) == before
    train(*shared.SPLITS, "run.name=run", "trainer.log_every_steps=5", "data.max_micro_tokens=64", "tracking=csv")
    assert shared.snapshot(finished) == before  # how a run is executed is not what it is


def test_a_finished_run_names_settings_that_its_scores_were_not_made_with(
    finished: Path, train: Encdec, shared: ModuleType
) -> None:
    before = shared.snapshot(finished)
    done = train(*shared.SPLITS, "run.name=run", "decoding.num_beams=1", "run.baselines=[]")
    assert done.status == 0
    assert done.err == (
        "out/run is finished; nothing to do. Another seed or run.name makes another run. Its scores were made with\n"
        "  decoding.num_beams: 2 there, 1 asked for\n"
        "  run.baselines: ['copy', 'ceiling'] there, [] asked for\n"
        "`encdec evaluate checkpoint=out/run` scores it anew.\n"
    )
    assert shared.snapshot(finished) == before


def test_a_finished_run_says_so_without_loading_torch(finished: Path, shared: ModuleType) -> None:
    code = (
        "import sys; from encdec_train.cli import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'datasets', 'pytorch_lightning', 'wandb'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else status)"
    )
    command = [sys.executable, "-c", code, "train", *shared.BASE, *shared.SPLITS, "run.name=run"]
    done = subprocess.run(command, cwd=finished, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.startswith("out/run is finished; nothing to do.")


def test_the_name_comes_from_the_identity(here: Path, train: Encdec) -> None:
    train("trainer.max_steps=1")
    train("trainer.max_steps=1", "seed=1")
    train("trainer.max_steps=1", "trainer.log_every_steps=3")  # the first one again
    names = sorted(path.name for path in (here / "out").iterdir() if not path.name.startswith("."))
    assert len(names) == 2
    assert all(re.fullmatch("files-bert2bert-[0-9a-f]{6}", name) for name in names)


def test_two_runs_are_equal_to_the_byte(here: Path, train: Encdec, shared: ModuleType) -> None:
    for folder in ("one", "two"):
        train(*SHORT, "task.test_file=test.jsonl", f"run.output_dir={folder}", "model.dropout=0.5")
    one, two = (shared.snapshot(here / folder / "short") for folder in ("one", "two"))
    equal = [name for name in one if name.startswith(("export/", "predictions/", "checkpoints/"))]
    assert len(equal) >= 11
    assert [name for name in equal if one[name] != two[name]] == []
    assert losses("one/short") == losses("two/short")


def test_patience_ends_a_run_that_stays_ended(here: Path, train: Encdec, shared: ModuleType) -> None:
    overrides = ("run.name=patient", "optim.lr=0", "trainer.validate_every_steps=2", "trainer.patience_validations=2",
                 "trainer.best_metric=exact_match")  # fmt: skip
    done = train(*shared.SPLITS, *overrides)
    assert "stop at step 6: no better exact_match in 2 validations" in done.err
    assert len(losses("out/patient")) == 6
    assert load("out/patient/manifest.json")["finished"]
    kept = sorted(path.name for path in (here / "out/patient/checkpoints").iterdir())
    assert kept == ["step_00000002", "step_00000006"]  # the best one and the last one
    assert "is finished" in train(*shared.SPLITS, *overrides).err


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int | None], None]]:
    """Make Ctrl-C come at the end of a step: `interrupted(step)`, None for never."""
    original, handler = EveryStep.on_train_batch_end, signal.getsignal(signal.SIGINT)

    def at(last_step: int | None) -> None:
        def end(self: EveryStep, *arguments: Any) -> None:
            original(self, *arguments)
            if self.step == last_step:
                raise KeyboardInterrupt

        monkeypatch.setattr(EveryStep, "on_train_batch_end", end)

    yield at
    signal.signal(signal.SIGINT, handler)


def test_an_interrupted_run_goes_on_to_the_same_end(
    here: Path, train: Encdec, encdec: Encdec, shared: ModuleType, interrupted: Callable[[int | None], None]
) -> None:
    overrides = ("run.name=run", *shared.SPLITS, "trainer.max_steps=8", "trainer.checkpoint_every_steps=2",
                 "trainer.validate_every_steps=4", "model.dropout=0.3")  # fmt: skip
    train(*overrides, "run.output_dir=undisturbed")
    for step, kept in ((1, []), (5, ["step_00000004"]), (7, ["step_00000004", "step_00000006"])):
        interrupted(step)
        done = encdec("train", *shared.BASE, *overrides)
        assert (done.status, done.out) == (130, "")
        assert done.err.endswith("stopped by Ctrl-C; the same command goes on from the last checkpoint\n")
        assert sorted(path.name for path in (here / "out/run").glob("checkpoints/*")) == kept
        assert not load("out/run/manifest.json")["finished"]
    interrupted(None)
    assert "going on after step 6 of 8" in train(*overrides).err
    disturbed, undisturbed = (shared.snapshot(here / name / "run") for name in ("out", "undisturbed"))
    assert set(disturbed) == set(undisturbed)
    equal = [name for name in disturbed if name.startswith(("export/model", "predictions/", "checkpoints/"))]
    assert [name for name in [*equal, "metrics.json"] if disturbed[name] != undisturbed[name]] == []
    assert [strip(row) for row in read("out/run/metrics.jsonl")] == [
        strip(row) for row in read("undisturbed/run/metrics.jsonl")
    ]


def strip(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("time/")}


def test_ctrl_c_works_again_after_an_interrupted_run(
    here: Path, encdec: Encdec, shared: ModuleType, interrupted: Callable[[int | None], None]
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with SIG_IGN
    try:
        interrupted(1)
        assert encdec("train", *shared.BASE).status == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupted_decoding_is_made_again(
    here: Path, train: Encdec, encdec: Encdec, shared: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encdec_train import run

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "score_tests", stop)
        assert encdec("train", *shared.BASE, *SHORT, "task.test_file=test.jsonl").status == 130
    assert not (here / "out/short/metrics.json").exists()
    done = train(*SHORT, "task.test_file=test.jsonl")
    assert "train 2/2" not in done.err  # no step is made twice
    assert list(load("out/short/metrics.json")) == ["test", "baselines"]


def test_a_run_that_lost_its_patience_does_not_find_it_again(
    here: Path, train: Encdec, encdec: Encdec, shared: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encdec_train import run

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    overrides = ("run.name=run", *shared.SPLITS, "trainer.validate_every_steps=1", "trainer.patience_validations=1",
                 "trainer.best_metric=exact_match")  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(run, "score_tests", stop)
        assert encdec("train", *shared.BASE, *overrides).status == 130
    assert len(losses("out/run")) == 2
    train(*overrides)
    assert len(losses("out/run")) == 2


@pytest.mark.slow
def test_a_multirun_makes_every_run_that_is_not_finished(here: Path, train: Encdec, shared: ModuleType) -> None:
    train("trainer.max_steps=2", "seed=1")
    (first,) = [path for path in (here / "out").iterdir() if not path.name.startswith(".")]
    before = shared.snapshot(first)
    command = [sys.executable, "-m", "encdec_train", "train", "--multirun", *shared.BASE, "trainer.max_steps=2"]
    done = subprocess.run([*command, "seed=1,2"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.count("is finished; nothing to do") == 1
    assert done.stderr.endswith("2 of 2 jobs are finished\n")
    folders = sorted(path for path in (here / "out").iterdir() if not path.name.startswith("."))
    assert sorted(load(folder / "manifest.json")["identity"]["seed"] for folder in folders) == [1, 2]
    assert shared.snapshot(first) == before
