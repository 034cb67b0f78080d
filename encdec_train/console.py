"""Everything a person reads goes to stderr from here; what a script reads goes to stdout through `out`.

Only rank 0 speaks: the others call `silence` first. Nothing written here can stop a run: a stream that cannot show a
character shows its escape, and a stderr that is gone is ignored.
"""

import contextlib
import os
import re
import sys
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

_LINE_EVERY_SECONDS = 15.0  # without a terminal; grows with the run up to _LINE_AT_LEAST_EVERY_SECONDS
_LINE_AT_LEAST_EVERY_SECONDS = 60.0
_LINE_EVERY_SHARE = 0.05
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?(?:\s?[%A-Za-zµ/]{1,9})?|[-–]|n/a|nan|inf", re.IGNORECASE)


@dataclass
class _State:
    silent: bool = False
    bars: "list[tqdm[None]]" = field(default_factory=list)


_STATE = _State()


def silence(silent: bool = True) -> None:
    """Write nothing any more from this process, neither to stderr nor to stdout (every rank but 0)."""
    _STATE.silent = silent


def say(text: str = "") -> None:
    """Write lines to stderr, above a progress bar if one is shown.

    Control characters are shown as escapes: text from a data file cannot move the cursor or retitle the terminal.
    """
    if _STATE.silent:
        return
    for bar in _STATE.bars:
        bar.clear()
    _write(sys.stderr, _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text) + "\n")
    for bar in _STATE.bars:
        bar.refresh()


def warn(text: str) -> None:
    """Write a warning to stderr."""
    say(f"warning: {text}")


def out(text: str) -> None:
    """Write a line to stdout, at once.

    Raises:
        SystemExit: Status 1, when the reader of the pipe has gone (`encdec generate … | head`); nothing is printed.
    """
    if _STATE.silent:
        return
    try:
        _write_encodable(sys.stdout, text + "\n")
    except BrokenPipeError:
        _send_to_nowhere(sys.stdout)
        sys.exit(1)


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Align rows below their header in plain text.

    A column of numbers is aligned on the right, wide characters count as two columns, and a line break in a cell
    becomes a space. Rows may be shorter than the header.

    Returns:
        Lines without a final line break.
    """
    cells = [[" ".join(str(cell).split()) for cell in row] for row in (header, *rows)]
    num_columns = max(len(row) for row in cells)
    cells = [[*row, *[""] * (num_columns - len(row))] for row in cells]
    widths = [max(_width(row[c]) for row in cells) for c in range(num_columns)]
    right = [_is_numeric([row[c] for row in cells[1:]]) for c in range(num_columns)]
    lines = ["  ".join(_pad(cell, widths[c], right[c]) for c, cell in enumerate(row)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def progress(total: int, label: str, done: int = 0) -> "Progress":
    """Show how far something is: a bar on a terminal, otherwise a line now and then.

    Args:
        total: Steps (or examples) in all.
        label: A word or two in front.
        done: Steps that were done before (a resumed run); they do not count in the estimate of what is left.

    Examples:
        >>> with progress(600, "train") as bar:
        ...     for loss in losses:
        ...         bar.advance(loss=loss, tokens_per_second=1834.0)
    """
    return Progress(total, label, done)


class Progress:
    """A context manager; see `progress`."""

    def __init__(self, total: int, label: str, done: int) -> None:
        self._total, self._label, self._done, self._first = total, label, done, done
        self._values = ""
        self._started = self._spoken_at = time.monotonic()
        self._spoken = done
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> Self:
        if not _STATE.silent and _is_terminal(sys.stderr):
            self._bar = _open_bar(self._total, self._label, self._done)
            _STATE.bars.append(self._bar)
        return self

    def advance(self, step: int = 1, **values: float | str) -> None:
        """Count `step` more and show the latest values.

        A value named `…_per_second` is shown with its unit (`tokens_per_second=1834` is `1,834 tokens/s`), the others
        after their name.
        """
        self._done += step
        self._values = " ".join(_format_value(name, value) for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._values, refresh=False)
            self._bar.update(step)
        elif self._is_due():
            self._speak()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with contextlib.suppress(ValueError):  # it was closed before
                _STATE.bars.remove(self._bar)
            self._bar.close()
        elif self._spoken != self._done:
            self._speak()

    def _is_due(self) -> bool:
        now = time.monotonic()
        wait = min(_LINE_AT_LEAST_EVERY_SECONDS, max(_LINE_EVERY_SECONDS, (now - self._started) * _LINE_EVERY_SHARE))
        share = (self._done - self._spoken) / max(1, self._total)
        return self._done >= self._total or share >= _LINE_EVERY_SHARE or now - self._spoken_at >= wait

    def _speak(self) -> None:
        self._spoken, self._spoken_at = self._done, time.monotonic()
        elapsed = self._spoken_at - self._started
        counted = self._done - self._first
        parts = [f"{self._label} {self._done:,}/{self._total:,}", self._values, _clock(elapsed)]
        if counted > 0 and self._done < self._total:
            parts.append(f"left {_clock(elapsed / counted * (self._total - self._done))}")
        say(" ".join(part for part in parts if part))


def _open_bar(total: int, label: str, done: int) -> "tqdm[None]":
    from tqdm import tqdm

    shape = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed} left {remaining}{postfix}"
    inner = bool(_STATE.bars)  # a bar inside another one goes away when it is done
    return tqdm(
        total=total, initial=done, desc=label, file=sys.stderr, dynamic_ncols=True, bar_format=shape, leave=not inner
    )


def _is_terminal(stream: TextIO | None) -> bool:
    """Tell whether a bar can be drawn: some pseudo-terminals say that they have no columns."""
    if stream is None or not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:
        return False


def _write(stream: TextIO | None, text: str) -> None:
    try:
        _write_encodable(stream, text)
    except OSError:
        with contextlib.suppress(OSError):  # a stream of a test or a notebook has no descriptor
            _send_to_nowhere(stream)


def _send_to_nowhere(stream: TextIO | None) -> None:
    """Drop what is still buffered, which the exit would flush and fail at (Python's own advice, "Note on SIGPIPE")."""
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _write_encodable(stream: TextIO | None, text: str) -> None:
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def _format_value(name: str, value: float | str) -> str:
    unit = name.removesuffix("_per_second")
    number = value if isinstance(value, str) else _format_number(value)
    return f"{number} {unit}/s" if unit != name else f"{name} {number}"


def _format_number(value: float) -> str:
    if isinstance(value, int) or 1000 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.category(c) in {"Mn", "Me", "Cf"} else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _is_numeric(cells: Sequence[str]) -> bool:
    filled = [cell for cell in cells if cell]
    return bool(filled) and all(_NUMBER.fullmatch(cell) for cell in filled)
