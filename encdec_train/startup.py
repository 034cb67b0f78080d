"""From the command to the first step: which part of the start took how long."""

import os
import time
from pathlib import Path

_marks: list[tuple[str, float]] = []


def begin() -> None:
    """Start the clock: of the process where this is its first run, else of this moment."""
    first = not _marks
    _marks[:] = [("", _process_started() if first else time.monotonic())]


def mark(part: str) -> bool:
    """Note that a part of the start is over: what came between two marks counts as the later one's.

    Returns:
        Whether it was noted: nothing is after the `first step`.
    """
    if not _marks or _marks[-1][0] == "first step":
        return False
    _marks.append((part, time.monotonic()))
    return True


def end() -> None:
    """Stop the clock: where there was no first step so far, what follows is no start."""
    if _marks and _marks[-1][0] != "first step":
        _marks.clear()


def seconds() -> dict[str, float]:
    """Return what each part took, in order; empty before anything was noted."""
    pairs = zip(_marks, _marks[1:], strict=False)
    return {part: round(end - start, 2) for (_, start), (part, end) in pairs}


def line() -> str:
    """Phrase the parts that can be seen."""
    found = seconds()
    parts = ", ".join(f"{part} {took:.1f}" for part, took in found.items() if took >= 0.05)
    return f"first step after {sum(found.values()):.1f} s: {parts}"


def _process_started() -> float:
    """Return when this process was started, on the clock of `time.monotonic` (Linux; else now)."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        age = 0.0
    return time.monotonic() - age
