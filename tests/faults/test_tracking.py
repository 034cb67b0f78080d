"""W&B beside real processes: one of two ranks tells it, and a run that was asked to stop is no failed run."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.runs import BASE

RUN = (*BASE, "tracking=wandb", "run.name=run")


def records(run: Any) -> list[dict[str, Any]]:
    """Read the one offline run that `wandb sync` would find, by wandb's own command line."""
    (path,) = Path(run.path, "wandb").glob("offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def steps_of(found: list[dict[str, Any]]) -> list[int]:
    return [record["history"]["item"]["_step"] for record in found if record["type"] == "history"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_was_asked_to_stop_is_preempted_and_then_finished(ranks: int, new_run: Callable[..., Any]) -> None:
    run = new_run(*RUN)
    end = run.start(ranks, "sigterm", 7, [ranks - 1])
    assert end.statuses == [143] * ranks, "\n".join(end.err)
    stopped = records(run)
    assert [record["exit"]["exit_code"] for record in stopped if record["type"] == "exit"] == [143]
    assert [record["type"] for record in stopped].count("preempting") == 1
    assert max(steps_of(stopped)) <= 7
    run.finish(ranks)
    finished = records(run)
    assert [record["exit"].get("exit_code", 0) for record in finished if record["type"] == "exit"] == [0]
    steps = [row["step"] for row in map(json.loads, Path(run.path, "metrics.jsonl").read_text().splitlines())]
    assert steps_of(finished) == sorted(set(steps))


def test_a_killed_run_is_whole_after_the_next_start(new_run: Callable[..., Any]) -> None:
    run = new_run(*RUN)
    assert run.start(1, "step_end", 9, [0]).statuses == [-9]
    run.finish(1)
    steps = [row["step"] for row in map(json.loads, Path(run.path, "metrics.jsonl").read_text().splitlines())]
    assert steps_of(records(run)) == sorted(set(steps))
