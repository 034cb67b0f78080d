"""What a run has written, read back as plainly as can be."""

import json
from pathlib import Path
from typing import Any


def read(path: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def load(path: Path | str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def losses(run: Path | str) -> list[float]:
    return [row["train/loss"] for row in read(Path(run) / "metrics.jsonl") if "train/loss" in row]
