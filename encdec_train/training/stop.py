"""The wish to stop: what a signal asks of a run, which every rank hears of in the step's own all-reduce.

SIGTERM and Ctrl-C come from people and from schedulers that preempt; SIGUSR1 is what a scheduler is told to send some
time before it ends a job (`--signal=USR1@300`).
"""

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

from encdec_train import distributed
from encdec_train.errors import ClusterError, StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
ONE_WISH_SECONDS = 2.0  # launchers pass a signal on that the whole group already has: within so long it is the same one
IMPORT_SECONDS, AGAIN_SECONDS = 30.0, 0.05  # so long one waits for the end of an import, looking so often
_EARLY: list[int] = []


class StopWish:
    """Listens to signals. Within `patiently` it notes one and nothing else (known_defects R1), else the run ends.

    Within a SLURM job it ends rank 0, which may put the job back into the queue; the other ranks wait for what comes of
    that. One that left before would have rank 0 ended by srun (seen: once in 46 signals). So does Lightning: the ranks
    that it started leave only where all do, or with rank 0.

    Within an import what it raises may be swallowed, or end in C++ (seen: 3 in 219): it is put off. Elsewhere, too, a
    library may swallow it or raise another error for it: it stays noted, and ends the run later.

    A second signal later on ends the process at once, but SIGUSR1 is followed by others as a matter of course: then the
    wish is theirs. A signal that the process was started to ignore (nohup) stays ignored.
    """

    def __init__(self) -> None:
        self.noted: signal.Signals | None = None
        self._noted_at = 0.0
        self._patient, self._leaving = 0, False
        self._again: threading.Timer | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Listen; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            found = {one: signal.getsignal(one) for one in SIGNALS}
            self._before = {one: handler for one, handler in found.items() if handler != signal.SIG_IGN}
            for one in self._before:
                signal.signal(one, self._hear)
            if _EARLY:
                self.noted = signal.Signals(_EARLY.pop())
            if distributed.is_child():
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # what was `held` is heard now
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put back what was there before; a SIGTERM that is ignored by now (`cluster.requeue`) stays ignored.

        Raises:
            StoppedError: For another error that came after a signal, but for the fault of another rank.
        """
        for one, handler in self._before.items():
            if one is not signal.SIGTERM or signal.getsignal(one) != signal.SIG_IGN:
                after = signal.SIG_IGN if distributed.is_child() else handler  # whose end is rank 0's, to the last
                signal.signal(one, signal.SIG_DFL if after is None else after)
        self._before = {}
        if self._again is not None:
            self._again.cancel()
        ours = isinstance(error, StoppedError | ClusterError)
        if self._leaving and self.noted and isinstance(error, Exception) and not ours:
            raise StoppedError(self.noted) from error

    @contextmanager
    def patiently(self) -> Iterator[Self]:
        """Leave it to the caller to look at what was noted; listens where nothing does so yet."""
        self._patient += 1
        try:
            if self._before:
                yield self
            else:
                with self:
                    yield self
        finally:
            self._patient -= 1

    def obey(self) -> None:
        """Let a signal end the run that was noted without ending it: early, patiently, or swallowed.

        Raises:
            StoppedError: There was one.
        """
        if self.noted is not None and self._may_leave(self.noted):
            self._leaving = True
            raise StoppedError(self.noted)

    def counts(self) -> list[float]:
        """Return 1 for the signal that this rank noted, of `SIGNALS`; to be added over ranks."""
        return [float(self.noted is one) for one in SIGNALS]

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now, one = time.monotonic(), signal.Signals(number)
        again, self._again = self._again, None
        first = self.noted in {None, signal.SIGUSR1}
        if first:
            self.noted, self._noted_at = one, now
        if first or again is not None:
            if not self._patient and not self._leaving:
                self._leave(one, frame if now - self._noted_at < IMPORT_SECONDS else None)
        elif now - self._noted_at > ONE_WISH_SECONDS and one is not signal.SIGUSR1 and not distributed.is_child():
            self.__exit__(None, None, None)
            signal.raise_signal(number)

    def _leave(self, one: signal.Signals, frame: FrameType | None) -> None:
        """Raise, if this rank may; where the frame is of an import, have the signal come again a little later."""
        while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
            frame = frame.f_back
        if frame is not None:
            self._again = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), one))
            self._again.daemon = True
            self._again.start()
        elif self._may_leave(one):
            self._leaving = True
            raise KeyboardInterrupt if one is signal.SIGINT else StoppedError(one)

    def _may_leave(self, one: signal.Signals) -> bool:
        if distributed.is_child():
            return False
        return one is signal.SIGINT or distributed.rank() == 0 or distributed.allocation() is None


@contextmanager
def held() -> Iterator[None]:
    """Hold `SIGNALS` back here, and in a process that is started within until its own `StopWish` listens."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def listen_early() -> None:
    """Note SIGUSR1 from the first moment of a process on, for the `StopWish` to come; its default is to kill.

    A rank that Lightning started ends with rank 0 from here on, however that ends (on Linux).
    """
    if distributed.is_child():
        with suppress(AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, lambda number, _: _EARLY.append(number))


def shield_workers() -> None:
    """Where workers are forked by a server (Python 3.14's default), start it so that it and they ignore `SIGNALS`.

    A scheduler signals every process of a job; measured with 3.11: such a server dies of it, and its workers with it.
    """
    if multiprocessing.get_start_method() != "forkserver" or threading.current_thread() is not threading.main_thread():
        return
    from multiprocessing import forkserver

    before = {one: signal.signal(one, signal.SIG_IGN) for one in SIGNALS}
    try:
        forkserver.ensure_running()
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def agreed(counts: list[float]) -> signal.Signals | None:
    """Return what all ranks stop for, from the sum of their counts: the first of `SIGNALS` that any of them noted."""
    return next((one for one, count in zip(SIGNALS, counts, strict=True) if count), None)
