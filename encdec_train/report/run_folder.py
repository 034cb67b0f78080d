"""Read back what a run has written, whatever of it is there."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encdec_train.errors import DataError, fault
from encdec_train.jsonl import parse_object, read_rows

Row = Mapping[str, Any]
Scores = Mapping[str, Mapping[str, Mapping[str, Any]]]

BASELINES = "baselines"
_KNOWN = ("config.yaml", "manifest.json", "metrics.jsonl", "metrics.json", "predictions")


@dataclass(frozen=True)
class RunRecord:
    """What a run folder holds; what is missing is empty."""

    name: str  # the folder's name
    config: str  # `config.yaml` as text
    manifest: Row  # `manifest.json`
    rows: list[Row]  # `metrics.jsonl` in order of the file
    random_rows: list[Row]  # the same of the baseline from random weights
    scores: Scores  # split, metric, then `value`, `signature` and `ci95`
    baselines: Mapping[str, Scores]  # a `scores` for each baseline
    predictions: Mapping[str, Path]  # the prediction file of each split
    audit: Row  # `audit.json`


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        DataError: There is nothing of a run in it, or a file of it is damaged.
    """
    if not any((folder / name).exists() for name in _KNOWN):
        raise DataError(fault("runs", "a run folder", str(folder), f"it has none of {', '.join(_KNOWN)}"))
    config = folder / "config.yaml"
    scores = dict(_read_json(folder / "metrics.json"))
    baselines = scores.pop(BASELINES, {})
    return RunRecord(
        name=folder.resolve().name,
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        manifest=_read_json(folder / "manifest.json"),
        rows=list(read_rows(folder / "metrics.jsonl")),
        random_rows=list(read_rows(folder / "baseline_random" / "metrics.jsonl")),
        scores=_scored(scores),
        baselines={name: _scored(found) for name, found in baselines.items()},
        predictions={path.stem: path for path in sorted((folder / "predictions").glob("*.jsonl"))},
        audit=_read_json(folder / "audit.json"),
    )


def curve(rows: list[Row], name: str) -> list[tuple[float, float]]:
    """Return (step, value) of every row that has a number under a name."""
    return [
        (float(row["step"]), float(row[name]))
        for row in rows
        if isinstance(row.get(name), int | float) and isinstance(row.get("step"), int | float)
    ]


def _scored(splits: Mapping[str, Any]) -> Scores:
    """Keep what has a value: a metric that is undefined on a split (null) has none."""
    return {
        split: {name: found for name, found in metrics.items() if isinstance(found.get("value"), int | float)}
        for split, metrics in splits.items()
    }


def _read_json(path: Path) -> Row:
    return parse_object(path.read_text(encoding="utf-8", errors="replace"), str(path)) if path.is_file() else {}
