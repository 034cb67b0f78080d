"""One of two ranks is killed, fails, hangs or finds NaN: the other ends soon, says why, and nothing is lost."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from faults.runs import BASE, DROPOUT, STEPS, read, tensors

RUN = (*BASE, *DROPOUT)


def same(run: Any, expected: Any) -> None:
    """Compare weights, optimizer state and curve to the bit."""
    ours, theirs = tensors(run.path), tensors(expected.path)
    assert sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)) == []
    assert read(run.path / "metrics.jsonl") == read(expected.path / "metrics.jsonl")


def goes_on(run: Any, expected: Any) -> str:
    """Start again, compare, and say what was made twice."""
    run.finish(2)
    same(run, expected)
    return f"{run.num_finished_steps() - STEPS} steps made again, bitwise equal"


@pytest.mark.parametrize(("victim", "row"), [(1, 1), (0, 2)])
def test_01_02_a_killed_rank_is_named(
    victim: int, row: int, new_run: Callable[..., Any], undisturbed: Callable[..., Any], note: Callable[..., None]
) -> None:
    run, left = new_run(*RUN), 1 - victim
    end = run.kill(2, "step_end", 7, (victim,))
    assert end.statuses[left] == 1, end.err[left]
    [line] = [text for text in end.err[left].splitlines() if "was lost" in text]
    assert f"rank {victim} (process " in line
    assert "was lost, at " in line
    assert line.endswith("The same command goes on: the last good checkpoint is of step 6.")
    assert "Traceback" not in end.err[left]
    note(row, f"rank {left} ends with status 1 and names rank {victim} and step 6", end, goes_on(run, undisturbed(2)))


@pytest.mark.parametrize(
    ("point", "name", "said"),
    [("error", "ValueError", "an example that nobody expected"),
     ("out_of_memory", "OutOfMemoryError", "tried to allocate 80.00 GiB")],
)  # fmt: skip
@pytest.mark.parametrize("victim", [0, 1])
def test_16_an_error_on_one_rank(
    point: str, name: str, said: str, victim: int, new_run: Callable[..., Any], note: Callable[..., None],
    undisturbed: Callable[..., Any],
) -> None:  # fmt: skip
    run, other = new_run(*RUN), 1 - victim
    end = run.start(2, point, 5, [victim])
    assert [*end.statuses, *end.ended_by_us] == [1, 1], "\n".join(end.err)
    assert f"{name}: {said}" in end.err[victim]
    assert "Traceback" in end.err[victim]
    assert "Traceback" not in end.err[other]
    [line] = [text for text in end.err[other].splitlines() if "failed: " in text]
    assert f"rank {victim} (process " in line
    assert f"failed: {name}: {said}. The same command goes on" in line
    assert f"{name}: {said}" in (run.path / "errors" / f"rank{victim}.error").read_text(encoding="utf-8")
    lost = goes_on(run, undisturbed(2)) if (point, victim) == ("error", 1) else "not started again"
    note(16, f"{name} on rank {victim}: its traceback, one line on rank {other}, status 1 both", end, lost)


@pytest.mark.parametrize("victim", [0, 1])
def test_16_an_error_before_the_ranks_meet(victim: int, new_run: Callable[..., Any], note: Callable[..., None]) -> None:
    end = new_run(*RUN).start(2, "error_before_ranks_meet", 0, [victim])
    assert [*end.statuses, *end.ended_by_us] == [1, 1], "\n".join(end.err)
    assert f"rank {victim} (process " in end.err[1 - victim]
    assert "failed: ValueError: a disk that only this rank has" in end.err[1 - victim]
    note(16, f"ValueError on rank {victim} before the rendezvous: the same", end, "nothing was there")


@pytest.mark.parametrize(
    ("point", "victim", "at"),
    [("sigstop", 1, "step 7"), ("sigstop", 0, "step 7"), ("sleep_in_collate", 1, "the data of step 7"),
     ("sleep", 0, "step 7")],
)  # fmt: skip
def test_17_a_silent_rank_is_named(
    point: str, victim: int, at: str, new_run: Callable[..., Any], note: Callable[..., None],
    undisturbed: Callable[..., Any],
) -> None:  # fmt: skip
    run, other = new_run(*RUN), 1 - victim
    end = run.start(2, point, 7, [victim], overrides=["trainer.stall_seconds=8"])
    assert [*end.statuses, *end.ended_by_us] == [1, 1], "\n".join(end.err)
    lines = [text for text in end.err[other].splitlines() if "no rank got on" in text]
    assert len(lines) == 1, end.err[other]
    assert f"silent: rank {victim} (process " in lines[0]
    seen = [other] if point == "sigstop" else [0, 1]  # a stopped process cannot show its own
    stacks = {rank: (run.path / "errors" / f"rank{rank}.stacks").read_text(encoding="utf-8") for rank in seen}
    assert ["most recent call first" in text for text in stacks.values()] == [True] * len(seen)
    if point != "sigstop":
        assert f", at {at};" in lines[0]
        assert "troubles.py" in stacks[victim]
    lost = goes_on(run, undisturbed(2)) if (point, victim) == ("sigstop", 1) else "not started again"
    note(17, f"{point} on rank {victim}, limit 8 s: named, stacks of rank(s) {seen}, status 1", end, lost)


def test_17_a_short_stall_is_none(new_run: Callable[..., Any], note: Callable[..., None]) -> None:
    run = new_run(*RUN)
    end = run.start(2, "short_sleep", 7, [1], overrides=["trainer.stall_seconds=60"])
    assert end.statuses == [0, 0], "\n".join(end.err)
    assert not (run.path / ".ranks").exists()
    note(17, "rank 1 sleeps 3 s, limit 60 s: the run goes on", end, "nothing")


def skipped(run: Any) -> dict[int, float]:
    rows = read(Path(run.path, "metrics.jsonl"))
    return {row["step"]: row["train/skipped_steps"] for row in rows if "train/skipped_steps" in row}


@pytest.mark.parametrize("victim", [0, 1])
def test_20_nan_on_one_rank_is_left_out_by_both(
    victim: int, new_run: Callable[..., Any], note: Callable[..., None]
) -> None:
    run, again = new_run(*RUN), new_run(*RUN)
    end = run.start(2, "nan", 3, [victim])
    assert end.statuses == [0, 0], "\n".join(end.err)
    assert "step 3: the loss is nan, its gradient not finite; not applied (1 so far, " in end.err[0]
    assert end.err[0].count("row") >= 8  # the examples of the step, by id
    assert skipped(run) == {3: 1}
    assert again.start(2, "nan_and_kill", 9, [victim]).statuses[victim] == -9
    again.finish(2)
    same(again, run)
    note(20, f"rank {victim} finds NaN in step 3: both leave the update out, the ids are said", end, "that update")


def test_20_nan_for_ever_stops_the_run(new_run: Callable[..., Any], note: Callable[..., None]) -> None:
    import torch
    from safetensors.torch import load_file

    run = new_run(*RUN)
    end = run.start(2, "nan_from_then_on", 6, [1])
    assert [*end.statuses, *end.ended_by_us] == [1, 1], "\n".join(end.err)
    assert "step 9 is one too many (4 so far, at most 3)" in end.err[0]
    last = max((run.path / "checkpoints").iterdir())
    assert last.name == "step_00000008"  # its validation was the best so far
    weights = load_file(last / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert json.loads((last / "state.json").read_text(encoding="utf-8"))["progress"]["skipped_steps"] == 3
    note(20, "NaN from step 6 on: stops after 3 left out, with status 1; the last checkpoint is finite", end, "-")


def statuses_after(run: Any, point: str, step: int, told: Sequence[int]) -> Any:
    end = run.start(2, point, step, told)
    assert end.statuses == [143, 143], "\n".join(end.err)
    return end


@pytest.mark.parametrize("told", [0, 1])
@pytest.mark.parametrize(
    "point", ["sigterm_in_backward", "sigterm_while_waiting_for_data", "sigterm_within_a_checkpoint"]
)
def test_03_sigterm_to_one_rank(
    point: str, told: int, new_run: Callable[..., Any], note: Callable[..., None], undisturbed: Callable[..., Any]
) -> None:
    run = new_run(*RUN)
    end = statuses_after(run, point, 6, [told])
    where = max((run.path / "checkpoints").iterdir()).name
    lost = goes_on(run, undisturbed(2))
    assert lost.startswith("0 steps")
    note(3, f"{point} of rank {told}: both stop with status 143 after {where}", end, lost)
