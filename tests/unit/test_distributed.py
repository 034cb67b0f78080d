"""Ranks: alone without a process group, and two real processes with one."""

import multiprocessing
import os
import socket
import sys
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import torch

from encdec_train import distributed
from encdec_train.errors import ConfigError

LAUNCHERS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "MASTER_ADDR")


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Take a launcher's variables out of the environment."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_process_alone_is_rank_0_of_1(no_launcher: pytest.MonkeyPatch) -> None:
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LOCAL_RANK": "1"}, 1),
        ({"SLURM_PROCID": "5"}, 5),
        ({"SLURM_PROCID": "5", "LOCAL_RANK": "1"}, 1),
        ({"RANK": "6", "SLURM_PROCID": "5", "LOCAL_RANK": "1"}, 6),
    ],
)
def test_before_the_group_the_launcher_says_the_rank(
    environment: dict[str, str], expected: int, no_launcher: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        no_launcher.setenv(name, value)
    assert distributed.rank() == expected


def test_the_rank_is_known_without_torch(no_launcher: pytest.MonkeyPatch) -> None:
    no_launcher.setitem(sys.modules, "torch.distributed", None)
    no_launcher.setenv("RANK", "3")
    assert distributed.rank() == 3


def test_a_process_alone_says_everything_to_itself() -> None:
    values = torch.tensor([1.0, 2.0])
    assert distributed.all_sum(values) is values
    assert values.tolist() == [1.0, 2.0]
    assert distributed.gather_ordered([(3, "d"), (1, "b")]) == ["b", "d"]
    assert distributed.gather_ordered([]) == []
    distributed.barrier()


def test_a_process_alone_needs_nobody_to_join(no_launcher: pytest.MonkeyPatch) -> None:
    with distributed.joined():
        assert (torch.distributed.is_initialized(), distributed.world_size()) == (False, 1)


def test_several_processes_that_cannot_find_one_another_are_refused(no_launcher: pytest.MonkeyPatch) -> None:
    no_launcher.setenv("SLURM_STEP_NUM_TASKS", "4")
    with (
        pytest.raises(ConfigError, match="^launcher: expected one process, or torchrun, got '4 tasks'; each would do"),
        distributed.joined(),
    ):
        pytest.fail("it must not go on")


def test_a_group_of_torchrun_lasts_as_long_as_it_is_needed(no_launcher: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    workers = [context.Process(target=join, args=(rank, port, answers)) for rank in range(2)]
    for worker in workers:
        worker.start()
    assert sorted(answers.get(timeout=120) for _ in workers) == [(0, 2, ["0", "1"], 1), (1, 2, ["0", "1"], 1)]
    for worker in workers:
        worker.join(30)


def join(rank: int, port: int, answers: "Queue[Any]") -> None:
    """Be a rank as torchrun starts it."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with distributed.joined():
        ranks, found = distributed.world_size(), distributed.gather_ordered([(rank, str(rank))])
    answers.put((distributed.rank(), ranks, found, distributed.world_size()))


def test_items_are_ordered_by_their_number_alone() -> None:
    """Items need no order of their own."""
    assert distributed.gather_ordered([(2, {"b": 1}), (0, {"a": 1}), (1, None)]) == [{"a": 1}, None, {"b": 1}]


def speak(rank: int, folder: Path, said: "Queue[Any]") -> None:
    """Be one rank of two."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    total = distributed.all_sum(torch.tensor([1.0 + rank, 10.0])).tolist()
    mine = [(0, "a"), (3, "d")] if rank else [(2, "c"), (1, "b"), (4, "e")]
    everything = distributed.gather_ordered(mine)
    distributed.barrier()
    said.put((distributed.rank(), distributed.world_size(), total, everything))
    dist.destroy_process_group()


def test_two_processes_agree(tmp_path: Path, one_thread: None) -> None:
    fork = multiprocessing.get_context("fork")
    said: Any = fork.Queue()
    processes = [fork.Process(target=speak, args=(rank, tmp_path, said)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(said.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert found == [(rank, 2, [3.0, 20.0], ["a", "b", "c", "d", "e"]) for rank in range(2)]
