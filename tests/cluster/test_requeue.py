"""Jobs that are cut, killed, requeued and moved, against one that is left alone: nothing is lost, nothing hangs."""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb_server
from cluster.lab import wait_for
from faults.runs import read, tensors
from results import losses

LONG = ("trainer.max_steps=400", "trainer.validate_every_steps=100", "trainer.checkpoint_every_steps=50",
        "cluster.nodes=2")  # fmt: skip
STALLS = f'cluster.container="{sys.executable} {Path(__file__).with_name("stall.py")}"'


@pytest.fixture(scope="module")
def undisturbed(place: Any) -> Iterator[Callable[[], Path]]:
    """A run of two nodes that is left alone, beside the others; waits for its end when it is needed."""
    job = place.submit("undisturbed", *LONG)

    def finished() -> Path:
        assert place.lab.wait(job, "COMPLETED", "FAILED", seconds=300)["JobState"] == "COMPLETED"
        return Path(place.run("undisturbed"))

    yield finished
    place.lab.command("scancel", job)


def assert_equal(ours: Path, theirs: Path) -> None:
    """To the bit: the export, the last checkpoint's weights and optimizer state, and the curves."""
    a, b = tensors(ours), tensors(theirs)
    assert len(b) > 100
    assert [key for key in b if a.get(key) != b[key]] == []
    assert read(ours / "metrics.jsonl") == read(theirs / "metrics.jsonl")


def reach(place: Any, name: str, step: int) -> None:
    assert wait_for(lambda: place.steps(name) >= step, 120), f"{name} does not come to step {step}"


def test_a_job_that_is_cut_ends_as_one_that_was_not(
    place: Any, run_and_end: Any, undisturbed: Callable[[], Path]
) -> None:
    """Also while it loads; and it is one run to wandb, which sees it preempted."""
    lab = place.lab
    with wandb_server.serve() as (server, _):
        online = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": server.url}
        job = run_and_end("cut", *LONG, "tracking=wandb", **online)
        for step in (0, 50, 200):
            lab.wait(job, "RUNNING")
            lab.listening(job, 2)
            reach(place, "cut", step)
            lab.cut(job)
        end = lab.wait(job, "COMPLETED", "FAILED", seconds=240)
        assert (end["JobState"], end["Restarts"], end["ExitCode"]) == ("COMPLETED", "3", "0:0")
    log = place.log("cut", job)
    assert log.count(f"job {job} is back in the queue, and goes on from there") == 3
    assert log.count(" by SIGUSR1; the same command goes on from ") == 3
    assert "Traceback" not in log
    assert_equal(place.run("cut"), undisturbed())
    [(run_id, run)] = server.runs.items()
    assert run_id.startswith("cut-")
    assert run.starts in {3, 4}  # the life that was cut while it loaded had not come so far, or just so
    assert run.exit_codes == [*[143] * (run.starts - 1), 0]
    assert run.preempting
    steps = [row["_step"] for row in run.history if "train/loss" in row]
    assert steps == list(range(1, 401))


def test_signals_at_random_moments_are_all_answered(place: Any, run_and_end: Any) -> None:
    """`python -m benchmarks.slurm_signals` sends 50."""
    moments = random.Random(0)
    job = run_and_end("random", *LONG, "trainer.max_steps=1000000", "trainer.validate_every_steps=20")
    for _ in range(3):
        place.lab.wait(job, "RUNNING")
        place.lab.listening(job, 2)
        reach(place, "random", place.steps("random") + 1)
        time.sleep(moments.uniform(0, 2))
        place.lab.cut(job)
    steps = [row["step"] for row in read(place.run("random") / "metrics.jsonl") if "train/loss" in row]
    assert steps == list(range(1, len(steps) + 1))


def test_whatever_happens_to_a_job_it_goes_on(place: Any, run_and_end: Any, undisturbed: Callable[[], Path]) -> None:
    lab = place.lab
    job = run_and_end("struck", *LONG, STALLS)

    def alive(step: int) -> None:
        lab.wait(job, "RUNNING")
        lab.listening(job, 2)
        reach(place, "struck", step)

    # SIGTERM to one rank: both stop after the same step. SLURM has not asked for it, so it does not requeue.
    alive(50)
    [pid] = [pid for pid in lab.listening(job, 2) if pid in lab.pids(job, 1)]
    os.kill(pid, signal.SIGTERM)
    end = lab.wait(job, "FAILED")
    assert end["ExitCode"] in {"143:0", "0:15"}  # by itself, or by srun, which ends the slower rank
    [stopped] = [line for line in place.log("struck", job).splitlines() if "stopped after step" in line]
    assert f"stopped after step {place.steps('struck')} by SIGTERM; the same command goes on" in stopped

    # kill -9: the other rank ends by itself, or is ended by srun; the job has failed.
    step = place.steps("struck")
    lab.command("scontrol", "requeue", job)
    alive(step + 1)
    [pid] = [pid for pid in lab.listening(job, 2) if pid in lab.pids(job, 0)]
    os.kill(pid, signal.SIGKILL)
    assert lab.wait(job, "FAILED")["ExitCode"] in {"137:0", "0:9", "1:0", "143:0"}

    # `scontrol requeue` in the middle of a checkpoint: SIGTERM finds it writing, SIGKILL leaves half of it.
    (place.path / "stall").touch()
    step = place.steps("struck")
    lab.command("scontrol", "requeue", job)
    lab.wait(job, "RUNNING")
    assert wait_for((place.path / "stalled").exists, 120)
    (place.path / "stall").unlink()
    lab.command("scontrol", "requeue", job)
    lab.wait(job, "PENDING")
    assert place.steps("struck") == step
    assert len(list(place.run("struck").glob("checkpoints/.step_*/*"))) == 2

    # A node goes down: SLURM requeues by itself.
    alive(step + 50)
    assert not list(place.run("struck").glob("checkpoints/.step_*"))
    lab.command("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    lab.wait(job, "PENDING")
    if lab.states()["node2"].startswith("down"):  # it has not come back by itself
        lab.command("scontrol", "update", "NodeName=node2", "State=RESUME")

    end = lab.wait(job, "COMPLETED", "FAILED", seconds=240)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "4")
    assert_equal(place.run("struck"), undisturbed())


def test_a_preempted_job_goes_on_where_there_is_room(
    place: Any, run_and_end: Any, undisturbed: Callable[[], Path]
) -> None:
    """On one node instead of two: the same optimisation."""
    lab, expected = place.lab, undisturbed()
    job = run_and_end("preempted", *LONG, "cluster.partition=low")
    lab.wait(job, "RUNNING")
    lab.listening(job, 2)
    reach(place, "preempted", 50)
    first = lab.command("sbatch", "--parsable", "--nodelist=node2", "--exclusive", "--output=/dev/null",
                        "--wrap=sleep 600")  # fmt: skip
    try:
        lab.wait(job, "PENDING")
        lab.command("scontrol", "update", f"JobId={job}", "NumNodes=1", "NumTasks=1")
        [stopped] = [line for line in place.log("preempted", job).splitlines() if "stopped after step" in line]
        assert f"stopped after step {place.steps('preempted')} by SIGTERM; the same command goes on" in stopped
        end = lab.wait(job, "COMPLETED", "FAILED", seconds=240)
        assert (end["JobState"], end["Restarts"], end["NumNodes"]) == ("COMPLETED", "1", "1")
    finally:
        lab.command("scancel", first)
    assert losses(place.run("preempted")) == pytest.approx(losses(expected), abs=1e-3)
    assert json.loads((place.run("preempted") / "manifest.json").read_text())["finished"] is True
