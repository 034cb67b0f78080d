"""Which launches are taken for what; `tests/cluster` types the wrong ones into a real SLURM."""

import os
from typing import Any

import pytest

from encdec_train import distributed
from encdec_train.cluster import launch
from encdec_train.compose import compose
from encdec_train.errors import ConfigError

STEP = {
    "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "localhost,other", "SLURM_PROCID": "3", "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
}  # fmt: skip
OURS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher, and what is set is taken back."""
    for name in [*OURS, *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def join(devices: int = 1, nodes: int = 1) -> None:
    launch.join(compose("train", [f"trainer.devices={devices}", f"trainer.num_nodes={nodes}"]).trainer)


def ours() -> dict[str, str]:
    return {name: os.environ[name] for name in OURS if name in os.environ}


def test_a_task_of_srun_is_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    join(2, 2)
    assert ours() == {
        "RANK": "3", "GROUP_RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(20000 + 12 * 7 + 1),
    }  # fmt: skip
    assert distributed.rank() == 3
    join(2, 2)  # again, in the same process


def test_what_the_user_says_of_the_meeting_point_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    launch.join_step()
    assert (ours()["MASTER_ADDR"], ours()["MASTER_PORT"], ours()["RANK"]) == ("10.0.0.1", "29500", "3")


@pytest.mark.parametrize(
    ("found", "devices", "nodes"),
    [
        ({}, 1, 1),
        ({}, 2, 1),  # Lightning starts the second one
        ({"LOCAL_RANK": "1"}, 2, 1),  # which is this one
        ({"SLURM_JOB_ID": "12", "SLURM_NTASKS": "1"}, 1, 1),
        ({"SLURM_JOB_ID": "12", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, 1, 1),  # `srun --pty`, a single task
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, 2, 2),
        ({**STEP, "RANK": "1", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, 4, 2),  # torchrun, started by srun
    ],
)
def test_these_are_left_as_they_are(
    found: dict[str, str], devices: int, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    before = ours()
    join(devices, nodes)
    assert ours() == before


@pytest.mark.parametrize(
    ("found", "devices", "nodes", "got"),
    [
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, 1, 1, "got 4 processes; they are what torchrun started"),
        ({}, 1, 2, "got one process; the ranks of several nodes are started by srun or torchrun"),
        ({"SLURM_JOB_ID": "12", "SLURM_NTASKS": "4"}, 1, 1, "got 4 tasks and no srun"),
        (STEP, 4, 1, "got 4 tasks on 2 nodes"),
        ({**STEP, "SLURM_LOCALID": "0"}, 2, 2, "got task 3 as number 0 of node 1"),
    ],
)
def test_these_are_refused(
    found: dict[str, str], devices: int, nodes: int, got: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["encdec", "train", "run.name=a b"])
    with pytest.raises(ConfigError) as why:
        join(devices, nodes)
    assert got in str(why.value)
    assert str(why.value).endswith(
        f"type `srun --nodes={nodes} --ntasks-per-node={devices} --distribution=block --kill-on-bad-exit=1 "
        "encdec train 'run.name=a b'`."
    )


def test_two_jobs_on_a_node_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    def port(job: int, step: int) -> Any:
        monkeypatch.setenv("SLURM_JOB_ID", str(job))
        monkeypatch.setenv("SLURM_STEP_ID", str(step))
        return distributed.allocation().port

    found = {(job, step): port(job, step) for job in range(9_990, 11_000) for step in range(3)}
    assert len(set(found.values())) == len(found)
    assert min(found.values()) >= 20000
    assert max(found.values()) < 32768  # where Linux begins to take ports for outgoing connections


def test_a_job_says_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.allocation() is None
    for name, value in {
        **STEP,
        "SLURM_ARRAY_JOB_ID": "10",
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_RESTART_COUNT": "4",
    }.items():
        monkeypatch.setenv(name, value)
    job = distributed.allocation()
    assert (job.job, job.num_tasks, job.num_restarts, job.step_tasks, job.place) == ("10_2", 4, 4, 4, (3, 1, 1))


@pytest.mark.parametrize(
    ("nodes", "first"), [("a", "a"), ("a,b", "a"), ("n[03-12]", "n03"), ("n[1,5]-x,m", "n1-x"), ("a[7]b[2-3]", "a7b2")]
)
def test_the_first_node(nodes: str, first: str) -> None:
    assert distributed.Allocation("1", 1, 0, None, nodes, 1, (0, 0, 0), 0).first_node == first
