"""How ranks find one another on a real SLURM, and what is refused before anybody waits."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cluster.jobs import SMALL, Place
from cluster.lab import Lab, free_ports
from results import losses

TRAIN = ("train", "task=files", "task.train_file=train.jsonl", "run.name=never", "model.encoder=bert", "tracking=none",
         "trainer.accelerator=cpu")  # fmt: skip
HERE = [word for word in SMALL if not word.startswith("cluster.")]


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
    done = place.type(*launcher, *place.warm, *TRAIN, f"trainer.devices={devices}", f"trainer.num_nodes={nodes}")
    assert done.returncode == 2, done.stderr
    assert got in done.stderr
    line = f"srun --nodes={nodes} --ntasks-per-node={devices} --distribution=block --kill-on-bad-exit=1 encdec train"
    assert f"type `{line} task=files" in done.stderr
    assert not place.run("never").exists()


def test_a_node_that_cannot_be_found_is_named_at_once(place: Any) -> None:
    hidden = ("env", f"PATH={place.path}")  # so that SLURM cannot be asked for its address
    done = place.type("srun", "-N2", "--ntasks-per-node=1", *hidden, *place.warm, *TRAIN, "trainer.num_nodes=2")
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
    place.encdec("train", *HERE, "run.name=one")
    return losses(place.run("one"))


def test_two_nodes_train_as_one_process_does(place: Any, run_and_end: Any, alone: list[float]) -> None:
    """Under a name that makes Lightning's own detection overlook a job."""
    job = run_and_end("two", "cluster.nodes=2", "cluster.options=['--job-name=bash']", cold=True)
    assert place.completed("two", job)["JobName"] == "bash"
    assert len(alone) == 12
    assert losses(place.run("two")) == pytest.approx(alone, rel=1e-5)


def test_srun_is_typed_in_an_interactive_allocation(place: Any, alone: list[float]) -> None:
    """Under another name that Lightning's own detection overlooks."""
    allocation = ("salloc", "--nodes=2", "--ntasks-per-node=1", "--job-name=interactive")
    step = ("srun", "--distribution=block", "--kill-on-bad-exit=1", *place.warm, "train", *HERE, "run.name=typed")
    done = place.type(*allocation, *step, "trainer.num_nodes=2", "trainer.devices=1")
    assert done.returncode == 0, done.stderr
    assert losses(place.run("typed")) == pytest.approx(alone, rel=1e-5)


def test_torchrun_is_the_alternative(place: Any, alone: list[float]) -> None:
    """One a node, which starts that node's ranks."""
    [port] = free_ports(1)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
                "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1")  # fmt: skip
    done = place.type("srun", "--nodes=2", "--ntasks-per-node=1", *launcher, "-m", "encdec_train", "train", *HERE,
                      "run.name=torchrun", "trainer.num_nodes=2", "trainer.devices=1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert losses(place.run("torchrun")) == pytest.approx(alone, rel=1e-5)


def test_two_jobs_on_one_node_do_not_clash(place: Any, run_and_end: Any, alone: list[float]) -> None:
    """Each is two ranks of node1; the second one comes and goes while the first one trains."""
    ranks = ("trainer.devices=2", "cluster.options=['--nodelist=node1']")
    first = run_and_end("first", *ranks, "trainer.max_steps=1000000")
    place.reach("first", 2)
    second = run_and_end("second", *ranks)
    place.completed("second", second)
    before = place.steps("first")
    place.reach("first", before + 2)
    assert place.lab.job(first)["NodeList"] == place.lab.job(second)["NodeList"] == "node1"
    assert losses(place.run("second")) == pytest.approx(alone, rel=1e-5)
    manifests = [json.loads((place.run(name) / "manifest.json").read_text()) for name in ("first", "second")]
    assert [manifest["finished"] for manifest in manifests] == [False, True]


def test_nodes_with_addresses_of_their_own(place: Any, alone: list[float]) -> None:
    """Their names lead nowhere, so ranks meet at the address that SLURM knows; gloo is told its interface."""
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), networks=True)
        try:
            lab.start()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {error}")
        far = Place(lab, place.path, place.socket)
        try:
            job = far.submit("far", "cluster.nodes=2", "cluster.setup=['export GLOO_SOCKET_IFNAME=eth0']", cold=True)
            far.completed("far", job)
        finally:
            lab.stop()
    assert losses(place.run("far")) == pytest.approx(alone, rel=1e-5)


def test_a_node_without_network_keeps_wandb_for_later(place: Any, run_and_end: Any) -> None:
    """`unshare -n` leaves a job not even the loopback interface."""
    if subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("no network namespaces here")
    job = run_and_end("netless", "tracking=wandb", 'cluster.container="unshare -n"', cold=True,
                      WANDB_API_KEY="0" * 40)  # fmt: skip
    place.completed("netless", job)
    log = place.log("netless", job)
    assert "wandb: offline (" in log
    assert "To upload it: wandb sync outputs/netless/wandb/offline-run-" in log
