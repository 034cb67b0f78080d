"""Two processes on this machine, as torchrun would start them."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")


def on_two_ranks(run: Callable[[], T], timeout_seconds: float = 120) -> list[T]:
    """Call a function in two processes that torchrun could have started.

    Returns:
        What each rank returned, in order.

    Raises:
        EOFError: When a rank dies; its traceback is on stderr.
        TimeoutError: When a rank does not answer.
    """
    fork = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks, answers = [], []
    for rank in range(2):
        answer, said = fork.Pipe(duplex=False)
        ranks.append(fork.Process(target=_be_rank, args=(rank, port, run, said)))
        answers.append(answer)
        ranks[-1].start()
        said.close()
    try:
        return [_heard(answer, timeout_seconds) for answer in answers]
    finally:
        for process in ranks:
            process.join(timeout=10)
            process.kill()


def _heard(answer: Connection, timeout_seconds: float) -> Any:  # noqa: ANN401 - whatever the rank returned
    if not answer.poll(timeout_seconds):
        raise TimeoutError(f"a rank did not answer within {timeout_seconds} seconds")
    return answer.recv()


def _be_rank(rank: int, port: int, run: Callable[[], Any], said: Connection) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    said.send(run())
