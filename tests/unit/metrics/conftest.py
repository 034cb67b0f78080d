"""Readers of the reference data that `ENCDEC_DATA` names."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with the reference data."""
    if "ENCDEC_DATA" not in os.environ:
        pytest.skip("ENCDEC_DATA names no folder with reference data")
    return Path(os.environ["ENCDEC_DATA"])


@pytest.fixture(scope="session")
def read_rows(data_folder: Path) -> Callable[[str], list[dict[str, Any]]]:
    """Read a `.jsonl.gz` below the data folder."""

    def read(name: str) -> list[dict[str, Any]]:
        with gzip.open(data_folder / name, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    return read


@pytest.fixture(scope="session")
def read_json(data_folder: Path) -> Callable[[str], Any]:
    """Read a `.json` below the data folder."""
    return lambda name: json.loads((data_folder / name).read_text(encoding="utf-8"))
