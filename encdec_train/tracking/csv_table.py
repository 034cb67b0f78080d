"""`metrics.csv` in the run folder: `metrics.jsonl` with the union of all columns, for spreadsheets and pandas."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from encdec_train import atomic
from encdec_train.config import TrackingConfig
from encdec_train.errors import DataError
from encdec_train.jsonl import read_rows
from encdec_train.tracking.tracker import Guarded, Outcome, Tracker

FILE_NAME = "metrics.csv"


def start(settings: TrackingConfig, folder: Path, run_id: str, config: Mapping[str, object]) -> Tracker:
    """Begin a table of the run folder, at the first logged step."""
    return Guarded(CsvTable(folder), "csv", (OSError, csv.Error, DataError))


class CsvTable(Tracker):
    """A table that grows by lines; at a process's first row and at a new column it is made anew of `metrics.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self._path, self._log = folder / FILE_NAME, folder / "metrics.jsonl"
        self._columns: list[str] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take a row that is already in `metrics.jsonl`."""
        row = {"step": step, **values}
        if row.keys() <= set(self._columns):
            with self._path.open("a", newline="", encoding="utf-8") as file:
                file.write(self._lines([row]))
        else:
            self._rewrite(list(read_rows(self._log)))

    def finish(self, summary: Mapping[str, float], outcome: Outcome) -> None:
        """Append the final scores, which are in another file, as a line at the last step."""
        rows = list(read_rows(self._log))
        if summary:
            self._rewrite([*rows, {"step": rows[-1]["step"] if rows else 0, **summary}])

    def _rewrite(self, rows: Sequence[Mapping[str, object]]) -> None:
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        header = dict(zip(self._columns, self._columns, strict=True))
        atomic.write(self._path, self._lines([header, *rows]).encode())

    def _lines(self, rows: Sequence[Mapping[str, object]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, restval="", lineterminator="\n").writerows(rows)
        return text.getvalue()
