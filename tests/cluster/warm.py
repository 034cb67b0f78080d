"""`encdec` without the seconds that a start takes: a server has imported everything, and forks what a task asks for.

    python tests/cluster/warm.py serve SOCKET           answers until it is ended
    python tests/cluster/warm.py SOCKET train …         is `encdec train …`, with this process's files and environment

What is forked is not a child of SLURM's, so the asking process stands for it: it passes signals on, ends as it ends,
and takes it along when it is killed. Such a start hears SIGUSR1 from its first moment on, and stops where `stall.py` is
told to. The tests have some starts of the usual kind, too.
"""

import json
import os
import selectors
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

HEAD = 8  # bytes that say how long the order is
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
POLL_SECONDS = 0.02
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>: so that nothing outlives the server


def ask(path: str, argv: list[str]) -> int:
    """Stand for a process that the server forks; returns its exit status, or dies of the signal that ended it."""
    told: list[int] = []
    child: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        if not child:
            told.append(number)
            return
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(child[0], number)

    for one in PASSED_ON:
        signal.signal(one, pass_on)
    order = json.dumps({"argv": argv, "cwd": os.getcwd(), "environment": dict(os.environ)}).encode()  # noqa: PTH109
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [len(order).to_bytes(HEAD, "big")], [0, 1, 2])
        connection.sendall(order)
        answers = connection.makefile("r")
        child.append(int(answers.readline()))
        for number in told:
            pass_on(number, None)
        line = answers.readline()
    status = int(line or 1)
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def read_order(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, files, _, _ = socket.recv_fds(connection, HEAD, 3)
    length, order = int.from_bytes(head, "big"), b""
    while len(order) < length:
        order += connection.recv(length - len(order))
    return json.loads(order), files


def be_asked(order: dict[str, Any], files: list[int]) -> list[str]:
    """Stand where the process that was asked for would stand; return its arguments."""
    import ctypes

    from encdec_train.training import stop

    for one in PASSED_ON:
        signal.signal(one, signal.default_int_handler if one is signal.SIGINT else signal.SIG_DFL)
    stop.listen_early()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    import stall

    stall.install()
    return order["argv"]


class Server:
    """One thread, so that a forked process is as good as a new one; it ends nobody but those whose asker is gone."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(sys.stdin, selectors.EVENT_READ)  # ends with whoever started this
        self._askers: dict[int, socket.socket] = {}

    def serve(self) -> None:
        while True:
            for key, _ in self._selector.select(POLL_SECONDS if self._askers else None):
                if key.fileobj is self._listener:
                    self._start(self._listener.accept()[0])
                elif key.fileobj is sys.stdin:
                    return
                else:
                    self._end_for(key.fileobj)
            self._reap()

    def _start(self, connection: socket.socket) -> None:
        order, files = read_order(connection)
        if len(list(Path("/proc/self/task").iterdir())) != 1:
            raise RuntimeError("more than one thread before a fork: a child may hang on a lock")
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        pid = os.fork()
        if pid == 0:
            for other in (self._listener, connection, *self._askers.values()):
                other.close()
            from forked import become_encdec

            become_encdec(lambda: be_asked(order, files))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        for file in files:
            os.close(file)
        connection.sendall(b"%d\n" % pid)
        self._askers[pid] = connection
        self._selector.register(connection, selectors.EVENT_READ)

    def _end_for(self, connection: socket.socket) -> None:
        """Whoever asked has died: SIGKILL took it, and takes what it stands for."""
        self._selector.unregister(connection)
        for pid in (pid for pid, asker in self._askers.items() if asker is connection):
            os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        while self._askers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            connection = self._askers.pop(pid)
            with connection, suppress(KeyError, OSError):  # nobody may be waiting for it any more
                self._selector.unregister(connection)
                connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def main() -> None:
    if sys.argv[1] != "serve":
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
    here = Path(__file__).resolve()
    sys.path[:0] = [str(here.parent), str(here.parents[1])]
    from faults.server import preload

    preload()
    Server(sys.argv[2]).serve()


if __name__ == "__main__":
    main()
