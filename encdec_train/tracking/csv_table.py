"""`metrics.csv` in the run folder: a line a log call, with the union of all columns, for spreadsheets and pandas."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from encdec_train.config import TrackingConfig
from encdec_train.tracking.tracker import Guarded, NoTracker, Tracker, warn_failure

FILE_NAME = "metrics.csv"


def start(settings: TrackingConfig, folder: Path, run_id: str, config: Mapping[str, object]) -> Tracker:
    """Continue the table of the run folder, or begin one at the first logged step."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Guarded(CsvTable(folder / FILE_NAME), "csv", (OSError, csv.Error))
    except OSError as error:
        warn_failure("csv", error)
        return NoTracker()


class CsvTable:
    """A table that grows by lines, and is rewritten only when a new column appears or a run is resumed.

    Rows at or past the first step that this process logs were written by a process that went further than its last
    checkpoint; they are cut, because this process computes them again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] = []
        self._last_step: int | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line."""
        rows = self._resume(step) if self._last_step is None else None
        new = [name for name in values if name not in self._columns]
        self._columns += new
        if new or rows is not None:
            self._rewrite(self._read() if rows is None else rows)
        self._last_step = step
        with self._path.open("a", newline="", encoding="utf-8") as file:
            self._writer(file).writerow({"step": step, **values})

    def log_examples(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Leave texts to the prediction files: this table holds numbers."""

    def finish(self, summary: Mapping[str, float], failed: bool) -> None:
        """Append the final scores as a line at the last step."""
        if summary:
            self.log(self._last_step or 0, summary)

    def _resume(self, first_step: int) -> list[dict[str, str]]:
        rows = self._read() if self._path.exists() else []
        self._columns = list(rows[0]) if rows else ["step"]
        return [row for row in rows if int(row["step"]) < first_step]

    def _read(self) -> list[dict[str, str]]:
        """Read complete rows: the last line of a killed process may be cut short."""
        text = self._path.read_text(encoding="utf-8")
        rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        complete = [row for row in rows if None not in row and None not in row.values()]
        return [row for row in complete if row.get("step", "").isdecimal()]

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> None:
        half = self._path.with_suffix(".csv.new")
        with half.open("w", newline="", encoding="utf-8") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(rows)
        half.replace(self._path)

    def _writer(self, file: TextIO) -> "csv.DictWriter[str]":
        return csv.DictWriter(file, self._columns, restval="", lineterminator="\n")
