"""Asked to stop: every rank leaves the same step with a checkpoint, whichever rank was told, and goes on from there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.runs import BASE, DROPOUT, read, tensors
from results import load

RUN = (*BASE, *DROPOUT, "run.name=run")
SAME = "0 steps made again, bitwise equal"


@pytest.fixture(scope="module")
def undisturbed(new_run: Callable[..., Any]) -> Callable[[int], Any]:
    made: dict[int, Any] = {}

    def run(ranks: int) -> Any:
        if ranks not in made:
            made[ranks] = new_run(*RUN)
            made[ranks].finish(ranks)
        return made[ranks]

    return run


def steps(run: Any) -> list[str]:
    return sorted(path.name for path in Path(run.path, "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("signalled", "status", "name"), [("sigterm", 143, "SIGTERM"), ("ctrl_c", 130, "SIGINT")], ids=["sigterm", "ctrl_c"]
)
@pytest.mark.parametrize(("ranks", "told"), [(1, [0]), (2, [0]), (2, [1]), (2, [0, 1])])
def test_03_04_all_ranks_stop_after_the_same_step(
    signalled: str,
    status: int,
    name: str,
    ranks: int,
    told: list[int],
    new_run: Callable[..., Any],
    undisturbed: Callable[[int], Any],
    note: Callable[..., None],
) -> None:
    expected, run = undisturbed(ranks), new_run(*RUN)
    end = run.start(ranks, signalled, 7, told)
    assert end.statuses == [status] * ranks, "\n".join(end.err)
    assert end.err[0].count(f"encdec train: stopped after step 7 by {name}; the same command goes on from there.") == 1
    assert "Traceback" not in "".join(end.err)
    assert steps(run)[-1] == "step_00000007"
    run.finish(ranks)
    assert run.num_finished_steps() == 12  # none was made again
    manifest = load(run.path / "manifest.json")
    [again] = manifest["started_again"]
    assert manifest["started_utc"] <= again["started_utc"]
    ours, theirs = tensors(run.path), tensors(expected.path)
    assert [key for key in theirs if key.startswith("export") and ours[key] != theirs[key]] == []
    assert read(run.path / "metrics.jsonl") == read(expected.path / "metrics.jsonl")
    row, asked = 3 if name == "SIGTERM" else 4, " and ".join(map(str, told))
    note(row, f"{name} to rank {asked} of {ranks} in a forward pass: all stop after step 7, status {status}", end, SAME)


def test_04_sigusr1_is_a_wish_to_stop(new_run: Callable[..., Any], note: Callable[..., None]) -> None:
    run = new_run(*RUN)
    end = run.start(2, "usr1", 7, [1])
    assert len(set(end.statuses)) == 1
    assert end.statuses[0] not in {0, 1}, "\n".join(end.err)
    assert steps(run)[-1] == "step_00000007"
    run.finish(2)
    assert run.num_finished_steps() == 12
    note(4, f"SIGUSR1 to rank 1 of 2: all stop after step 7, status {end.statuses[0]}", end, SAME)


def test_04_a_second_sigterm_does_not_wait_for_the_step(
    new_run: Callable[..., Any], undisturbed: Callable[[int], Any], note: Callable[..., None]
) -> None:
    run = new_run(*RUN)
    end = run.start(2, "sigterm_twice", 7, [1])
    assert end.statuses == [1, -15], "\n".join(end.err)
    assert "rank 1 (process " in end.err[0]
    assert steps(run)[-1] == "step_00000006"
    run.finish(2)
    ours, theirs = tensors(run.path), tensors(undisturbed(2).path)
    assert [key for key in theirs if ours[key] != theirs[key]] == []
    note(4, "SIGTERM twice to rank 1 of 2: it ends at once, rank 0 says that it was lost", end,
         "1 step made again, bitwise equal")  # fmt: skip


def test_a_signal_in_the_last_step_leaves_the_scores_to_the_next_start(new_run: Callable[..., Any]) -> None:
    run = new_run(*RUN)
    end = run.start(1, "sigterm", 12, [0])
    assert end.statuses == [143], end.err[0]
    assert steps(run)[-1] == "step_00000012"
    assert not (run.path / "metrics.json").exists()
    run.finish(1)
    assert run.num_finished_steps() == 12


def test_04_a_second_ctrl_c_does_not_wait_for_the_step(new_run: Callable[..., Any], note: Callable[..., None]) -> None:
    run = new_run(*RUN)
    end = run.start(1, "ctrl_c_twice", 7, [0])
    assert end.statuses == [130], end.err[0]
    assert "stopped by Ctrl-C; the same command goes on from the last checkpoint" in end.err[0]
    assert steps(run)[-1] == "step_00000006"
    note(4, "Ctrl-C twice: ends within the step, status 130", end, "the step in hand")


@pytest.mark.parametrize(
    ("signalled", "step", "last", "overrides"),
    [
        ("sigterm_at_the_start", 0, 1, ()),
        ("sigterm_in_validation", 8, 8, ()),
        ("sigterm", 8, 8, ()),  # its validation waits for the next start
        ("sigterm_to_the_group", 7, 7, ("data.num_workers=2",)),
    ],
)
@pytest.mark.parametrize(("ranks", "told"), [(1, [0]), (2, [1])])
def test_whenever_the_signal_comes_nothing_is_lost(
    signalled: str,
    step: int,
    last: int,
    overrides: tuple[str, ...],
    ranks: int,
    told: list[int],
    new_run: Callable[..., Any],
    undisturbed: Callable[[int], Any],
) -> None:
    expected, run = undisturbed(ranks), new_run(*RUN, *overrides)
    end = run.start(ranks, signalled, step, told)
    assert end.statuses == [143] * ranks, "\n".join(end.err)
    assert f"encdec train: stopped after step {last} by SIGTERM" in end.err[0]
    assert steps(run)[-1] == f"step_{last:08d}"
    run.finish(ranks)
    ours, theirs = tensors(run.path), tensors(expected.path)
    assert [key for key in theirs if key.startswith("export") and ours[key] != theirs[key]] == []
    assert read(run.path / "metrics.jsonl") == read(expected.path / "metrics.jsonl")


def test_the_lock_of_a_killed_run_is_free_at_once_though_its_workers_live_on(new_run: Callable[..., Any]) -> None:
    run = new_run(*RUN, "data.num_workers=2")
    run.kill(1, "step_end", 7)
    end = run.start(1)  # at once: the workers notice after some seconds that they are alone
    assert end.statuses == [0], end.err[0]
    assert "going on after step 6 of 12" in end.err[0]
    assert steps(run)[-1] == "step_00000012"
