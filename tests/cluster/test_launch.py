"""How ranks find one another on a real SLURM, and what is refused before anybody waits."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cluster.jobs import SMALL, Place
from cluster.lab import Lab
from results import losses

TRAIN = (sys.executable, "-m", "encdec_train", "train", "task=files", "task.train_file=train.jsonl", "run.name=never",
         "model.encoder=bert", "tracking=none", "trainer.accelerator=cpu")  # fmt: skip


def typed(place: Any, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    environment = place.environment(more)
    return subprocess.run(words, cwd=place.path, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("launcher", "devices", "nodes", "got"),
    [
        (("srun", "-N2", "--ntasks-per-node=1"), 1, 1, "expected 1 x 1 tasks (trainer.num_nodes x trainer.devices), "
         "got 2 tasks on 2 nodes; srun starts a task for each device."),
        (("srun", "-N1", "-n2", "--job-name=bash"), 1, 1, "got 2 tasks on 1 nodes"),
        (("srun", "-N2", "--ntasks-per-node=1"), 2, 1, "got 2 tasks on 2 nodes"),
        (("srun", "-N2", "-n3", "-m", "cyclic"), 3, 1, "got 3 tasks on 2 nodes"),
        (("srun", "-N2", "-n4", "-m", "cyclic"), 2, 2, "got task 1 as number 0 of node 1"),
        (("salloc", "-N1", "-n2"), 1, 1, "got 2 tasks and no srun; the ranks of several nodes are started by srun or"),
        (("salloc", "-N2", "-n2"), 1, 2, "expected 2 x 1 tasks"),
        ((), 1, 2, "got one process; the ranks of several nodes are started by srun or torchrun"),
    ],
)  # fmt: skip
def test_a_wrong_launch_is_refused_with_the_line_to_type(
    launcher: tuple[str, ...], devices: int, nodes: int, got: str, place: Any
) -> None:
    done = typed(place, *launcher, *TRAIN, f"trainer.devices={devices}", f"trainer.num_nodes={nodes}")
    assert done.returncode == 2, done.stderr
    assert got in done.stderr
    line = f"srun --nodes={nodes} --ntasks-per-node={devices} --distribution=block --kill-on-bad-exit=1 encdec train"
    assert f"type `{line} task=files" in done.stderr
    assert not place.run("never").exists()


def test_a_node_that_cannot_be_found_is_named_at_once(place: Any) -> None:
    hidden = ("env", f"PATH={place.path}")  # so that SLURM cannot be asked for its address
    done = typed(place, "srun", "-N2", "--ntasks-per-node=1", *hidden, *TRAIN, "trainer.num_nodes=2")
    assert done.returncode == 2, done.stderr
    assert "MASTER_ADDR: expected an address that every node can reach; the name of the job's first node, node1, " in (
        done.stderr
    )


def test_the_first_node_of_a_list_is_slurms_own(place: Any) -> None:
    from encdec_train.distributed import Allocation

    for nodes in ("node1", "node[1-2]", "gpu[007-012,20],cpu1", "a-b[3,5]", "x,y[1-2]"):
        expected = place.lab.command("scontrol", "show", "hostnames", nodes).splitlines()[0]
        assert Allocation("1", 1, 0, None, nodes, 1, (0, 0, 0), 0).first_node == expected


@pytest.fixture(scope="module")
def alone(place: Any) -> list[float]:
    """The losses of one process that knows nothing of SLURM."""
    keys = [word for word in SMALL if not word.startswith("cluster.")]
    place.encdec("train", *keys, "run.name=one")
    return losses(place.run("one"))


def test_two_nodes_train_as_one_process_does(place: Any, run_and_end: Any, alone: list[float]) -> None:
    """Under a name that makes Lightning's own detection overlook a job."""
    job = run_and_end("two", "cluster.nodes=2", "cluster.options=['--job-name=bash']")
    assert place.lab.wait(job, "COMPLETED", "FAILED", seconds=240)["JobState"] == "COMPLETED"
    assert place.lab.job(job)["JobName"] == "bash"
    assert len(alone) == 12
    assert losses(place.run("two")) == pytest.approx(alone, rel=1e-5)


def test_nodes_with_addresses_of_their_own(place: Any, alone: list[float]) -> None:
    """Their names lead nowhere, so ranks meet at the address that SLURM knows; gloo is told its interface."""
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), networks=True)
        try:
            lab.start()
        except subprocess.CalledProcessError:
            pytest.skip("this machine lets nobody make network namespaces")
        far = Place(lab, place.path)
        try:
            job = far.submit("far", "cluster.nodes=2", "cluster.setup=['export GLOO_SOCKET_IFNAME=eth0']")
            end = lab.wait(job, "COMPLETED", "FAILED", seconds=240)
        finally:
            lab.stop()
    assert end["JobState"] == "COMPLETED", far.log("far", job)
    assert losses(place.run("far")) == pytest.approx(alone, rel=1e-5)


def test_a_node_without_network_keeps_wandb_for_later(place: Any, run_and_end: Any) -> None:
    """`unshare -n` leaves a job not even the loopback interface."""
    job = run_and_end("netless", "tracking=wandb", 'cluster.container="unshare -n"', WANDB_API_KEY="0" * 40)
    assert place.lab.wait(job, "COMPLETED", "FAILED", seconds=240)["JobState"] == "COMPLETED"
    log = place.log("netless", job)
    assert "wandb: offline (" in log
    assert "To upload it: wandb sync outputs/netless/wandb/offline-run-" in log
