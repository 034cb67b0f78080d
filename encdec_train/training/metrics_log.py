"""`metrics.jsonl`: one object a logged step or validation, and whoever else is told."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from encdec_train import atomic
from encdec_train.jsonl import read_rows
from encdec_train.tracking.tracker import Tracker


class MetricsLog:
    """Appends to `metrics.jsonl`.

    Args:
        path: The file; None where nothing is to be written (every rank but 0).
        tracker: Told everything that is logged.
        resumed_step: Rows past it are cut: they are about to be made again.

    Raises:
        DataError: A line of an earlier start is damaged.
    """

    def __init__(self, path: Path | None, tracker: Tracker | None, resumed_step: int) -> None:
        self._path, self._tracker = path, tracker
        if path is not None:
            kept = [row for row in read_rows(path) if row.get("step", 0) <= resumed_step]
            atomic.write(path, "".join(map(_line, kept)).encode())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row; values that are no numbers (NaN) become null, so that the file stays JSON."""
        if self._path is not None:
            row = {"step": step, **{key: value if math.isfinite(value) else None for key, value in values.items()}}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(row))
        if self._tracker is not None:
            self._tracker.log(step, values)

    def flush(self) -> None:
        """Wait until what was logged is on the disk."""
        if self._path is not None:
            atomic.sync(self._path)

    def log_examples(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Pass texts on; they are in no file, since the final predictions are."""
        if self._tracker is not None:
            self._tracker.log_examples(step, name, rows)


def _line(row: Mapping[str, float | None]) -> str:
    return json.dumps(row) + "\n"
