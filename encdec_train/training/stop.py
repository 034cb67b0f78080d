"""The wish to stop: what a signal asks of a run, which every rank hears of in the step's own all-reduce."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ONE_WISH_SECONDS = 2.0  # launchers pass a signal on that the whole group already has: within so long it is the same one


class StopWish:
    """Notes signals while training runs; a handler sets a flag and nothing else (known_defects R1).

    A second signal later on ends the process at once. A signal that the process was started to ignore (nohup) stays
    ignored.
    """

    def __init__(self) -> None:
        self.noted: signal.Signals | None = None
        self._noted_at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Listen; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            found = {one: signal.getsignal(one) for one in SIGNALS}
            self._before = {one: handler for one, handler in found.items() if handler != signal.SIG_IGN}
            for one in self._before:
                signal.signal(one, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put back what was there before."""
        for one, handler in self._before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)

    def counts(self) -> list[float]:
        """Return 1 for the signal that this rank noted, of `SIGNALS`; to be added over ranks."""
        return [float(self.noted is one) for one in SIGNALS]

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.noted is None:
            self.noted, self._noted_at = signal.Signals(number), now
        elif now - self._noted_at > ONE_WISH_SECONDS:
            self.__exit__(None, None, None)
            signal.raise_signal(number)


def agreed(counts: list[float]) -> signal.Signals | None:
    """Return what all ranks stop for, from the sum of their counts; SIGTERM goes before Ctrl-C."""
    return next((one for one, count in zip(SIGNALS, counts, strict=True) if count), None)
