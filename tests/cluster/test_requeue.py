"""Jobs that are cut, killed, requeued and moved, against one that is left alone: nothing is lost, nothing hangs."""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb_server
from cluster.jobs import OVER
from cluster.lab import wait_for
from faults.runs import read, tensors
from results import losses

STEPS = 200
LONG = (f"trainer.max_steps={STEPS}", "trainer.validate_every_steps=50", "trainer.checkpoint_every_steps=25",
        "cluster.nodes=2")  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(place: Any) -> Iterator[Callable[[], Path]]:
    """A run of two nodes that is left alone, beside the others; waits for its end when it is needed."""
    job = place.submit("undisturbed", *LONG)

    def finished() -> Path:
        place.completed("undisturbed", job)
        return Path(place.run("undisturbed"))

    yield finished
    place.lab.end(job)


def assert_equal(ours: Path, theirs: Path) -> None:
    """To the bit: the export, the last checkpoint's weights and optimizer state, and the curves."""
    a, b = tensors(ours), tensors(theirs)
    assert len(b) > 100
    assert [key for key in b if a.get(key) != b[key]] == []
    assert read(ours / "metrics.jsonl") == read(theirs / "metrics.jsonl")


def test_a_job_that_is_cut_ends_as_one_that_was_not(
    place: Any, run_and_end: Any, undisturbed: Callable[[], Path]
) -> None:
    """Also while it starts to talk to wandb; to which it is one run, which is preempted."""
    lab = place.lab
    with wandb_server.serve() as (server, _):
        online = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": server.url}
        job = run_and_end("cut", *LONG, "tracking=wandb", cold=True, **online)
        assert wait_for(lambda: "Viewer" in server.queries, 120)
        lab.cut(job)
        for step in (25, 100):
            lab.wait(job, "RUNNING")
            place.reach("cut", step)
            lab.cut(job)
        end = place.completed("cut", job)
        assert (end["Restarts"], end["ExitCode"]) == ("3", "0:0")
    log = place.log("cut", job)
    assert log.count(f"job {job} is back in the queue, and goes on from there") == 3
    assert log.count(" by SIGUSR1; the same command goes on from ") == 3
    assert "Traceback" not in log
    assert_equal(place.run("cut"), undisturbed())
    [(run_id, run)] = server.runs.items()
    assert run_id.startswith("cut-")
    assert run.starts == 4
    assert run.exit_codes == [143, 143, 143, 0]
    assert run.preempting
    steps = [row["_step"] for row in run.history if "train/loss" in row]
    assert steps == list(range(1, STEPS + 1))


def test_signals_at_random_moments_are_all_answered(place: Any, run_and_end: Any) -> None:
    """`python -m benchmarks.slurm_signals` sends 50. The last one here is SLURM's own: the time limit comes near."""
    moments = random.Random(0)
    job = run_and_end("random", *LONG, "trainer.max_steps=1000000", "trainer.validate_every_steps=20")
    for number in range(4):
        place.lab.wait(job, "RUNNING")
        place.reach("random", place.steps("random") + 1)
        time.sleep(moments.uniform(0, 2))
        # limits are looked at every 30 s; four minutes are left, and `cluster.stop_seconds` are five
        nearer = ("scontrol", "update", f"JobId={job}", "TimeLimit=4")
        place.lab.cut(job, nearer if number == 3 else ())
    steps = [row["step"] for row in read(place.run("random") / "metrics.jsonl") if "train/loss" in row]
    assert steps == list(range(1, len(steps) + 1))


def test_whatever_happens_to_a_job_it_goes_on(place: Any, run_and_end: Any, undisturbed: Callable[[], Path]) -> None:
    lab = place.lab
    job, stall = run_and_end("struck", *LONG), place.path / "stall-struck"

    def alive(step: int) -> None:
        lab.wait(job, "RUNNING")
        place.reach("struck", step)

    # SIGTERM to one rank: both stop after the same step. SLURM has not asked for it, so it does not requeue.
    alive(25)
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
    stall.write_text("checkpoint")
    step = place.steps("struck")
    lab.command("scontrol", "requeue", job)
    lab.wait(job, "RUNNING")
    assert wait_for((place.path / "stalled-struck").exists, 120)
    stall.unlink()
    lab.command("scontrol", "requeue", job)
    lab.wait(job, "PENDING")
    assert place.steps("struck") == step
    assert len(list(place.run("struck").glob("checkpoints/.step_*/*"))) == 2

    # A node goes down: SLURM requeues by itself.
    alive(step + 25)
    assert not list(place.run("struck").glob("checkpoints/.step_*"))
    lab.command("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    lab.wait(job, "PENDING")
    if lab.states()["node2"].startswith("down"):  # it has not come back by itself
        lab.command("scontrol", "update", "NodeName=node2", "State=RESUME")

    assert place.completed("struck", job)["Restarts"] == "4"
    assert_equal(place.run("struck"), undisturbed())


def test_a_preempted_job_goes_on_where_there_is_room(
    place: Any, run_and_end: Any, undisturbed: Callable[[], Path]
) -> None:
    """On one node instead of two: the same optimisation, and one run to wandb, kept offline."""
    lab, expected = place.lab, undisturbed()
    job = run_and_end("preempted", *LONG, "cluster.partition=low", "tracking=wandb", WANDB_MODE="offline")
    lab.wait(job, "RUNNING")
    place.reach("preempted", 25)
    first = lab.command("sbatch", "--parsable", "--nodelist=node2", "--exclusive", "--output=/dev/null",
                        "--wrap=sleep 600")  # fmt: skip
    try:
        lab.wait(job, "PENDING")
        lab.command("scontrol", "update", f"JobId={job}", "NumNodes=1", "NumTasks=1")
        [stopped] = [line for line in place.log("preempted", job).splitlines() if "stopped after step" in line]
        assert f"stopped after step {place.steps('preempted')} by SIGTERM; the same command goes on" in stopped
        end = place.completed("preempted", job)
        assert (end["Restarts"], end["NumNodes"]) == ("1", "1")
    finally:
        lab.command("scancel", first)
    assert losses(place.run("preempted")) == pytest.approx(losses(expected), abs=1e-3)
    assert json.loads((place.run("preempted") / "manifest.json").read_text())["finished"] is True
    kept = sorted((place.run("preempted") / "wandb").glob("*run-*"))
    assert [path.name.partition("-")[0] for path in kept] == ["earlier", "offline"]
    assert len({path.name.partition("run-")[2].partition("-")[2] for path in kept}) == 1


def test_a_hang_is_named_in_the_jobs_log(place: Any, run_and_end: Any) -> None:
    (place.path / "stall-hung").write_text("step")
    job = run_and_end("hung", "cluster.nodes=2", "trainer.stall_seconds=8")
    end = place.lab.wait(job, *OVER)
    assert (end["JobState"], end["Restarts"], end["ExitCode"]) == ("FAILED", "0", "1:0")
    assert "no rank got on for trainer.stall_seconds=8; silent: rank 1 (process " in place.log("hung", job)


def test_a_job_that_gains_nothing_ends_itself(place: Any, run_and_end: Any) -> None:
    """It is cut before its first step, again and again."""
    lab, stalled = place.lab, place.path / "stalled-loop"
    (place.path / "stall-loop").write_text("start")
    job = run_and_end("loop")
    for _ in range(3):
        lab.wait(job, "RUNNING")
        assert wait_for(stalled.exists, 120)
        stalled.unlink()
        lab.cut(job)
    end = lab.wait(job, *OVER)
    assert (end["JobState"], end["Restarts"], end["ExitCode"]) == ("FAILED", "3", "1:0")
    assert not stalled.exists()
    said = f"requeue: expected a step gained between two starts; 3 starts of job {job} in a row found step 0. Its log"
    assert said in place.log("loop", job)
