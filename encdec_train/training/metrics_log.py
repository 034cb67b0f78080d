"""`metrics.jsonl`: one object a logged step or validation, and whoever else is told."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol


class Listener(Protocol):
    """Somebody who is told what is logged; a tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of a step."""

    def log_examples(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Take a small table of texts."""


class MetricsLog:
    """Appends to `metrics.jsonl`.

    Args:
        path: The file; None where nothing is to be written (every rank but 0).
        listener: Told everything that is logged.
        resumed_step: Rows past it are cut: they are about to be made again.
    """

    def __init__(self, path: Path | None, listener: Listener | None, resumed_step: int) -> None:
        self._path, self._listener = path, listener
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = [line for line in _lines(path) if json.loads(line)["step"] <= resumed_step]
            beside = path.with_name(f".{path.name}.tmp")
            beside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            beside.replace(path)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row; values that are no numbers (NaN) become null, so that the file stays JSON."""
        if self._path is not None:
            row = {"step": step, **{key: value if math.isfinite(value) else None for key, value in values.items()}}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if self._listener is not None:
            self._listener.log(step, values)

    def log_examples(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Pass texts on; they are in no file, since the final predictions are."""
        if self._listener is not None:
            self._listener.log_examples(step, name, rows)


def read_log(path: Path) -> list[dict[str, float]]:
    """Read all rows."""
    return [json.loads(line) for line in _lines(path)]


def _lines(path: Path) -> list[str]:
    """Return the complete lines; a process that was killed may have left half of one."""
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line]
