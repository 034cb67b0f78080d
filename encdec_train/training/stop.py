"""The wish to stop: what a signal asks of a run, which every rank hears of in the step's own all-reduce."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopWish:
    """Notes signals while training runs; a handler sets a flag and nothing else (known_defects R1).

    A second Ctrl-C stops at once. A signal that the process was started to ignore (nohup) stays ignored.
    """

    def __init__(self) -> None:
        self.noted: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        """Listen; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._before = {one: signal.getsignal(one) for one in SIGNALS if signal.getsignal(one) != signal.SIG_IGN}
            self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put back what was there before."""
        for one, handler in self._before.items():
            signal.signal(one, handler)  # type: ignore[arg-type]  # what getsignal returned

    def listen(self) -> None:
        """Take the signals; again after somebody else, such as Lightning, took them."""
        for one in self._before:
            signal.signal(one, self._note)

    def counts(self) -> list[float]:
        """Return 1 for the signal that this rank noted, of `SIGNALS`; to be added over ranks."""
        return [float(self.noted is one) for one in SIGNALS]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.noted is signal.SIGINT:
            raise KeyboardInterrupt
        if self.noted is not signal.SIGTERM:
            self.noted = signal.Signals(number)


def agreed(counts: list[float]) -> signal.Signals | None:
    """Return what all ranks stop for, from the sum of their counts; SIGTERM goes before Ctrl-C."""
    return next((one for one, count in zip(SIGNALS, counts, strict=True) if count), None)
