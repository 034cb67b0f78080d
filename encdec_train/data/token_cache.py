"""The tokens of a split: columns that are memory-mapped from Arrow files, each cache folder whole or not used."""

import json
import secrets
import shutil
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from encdec_train import atomic
from encdec_train.errors import ConfigError, fault
from encdec_train.fingerprint import file_sha256

if TYPE_CHECKING:
    from datasets import Dataset

Ids = npt.NDArray[np.int32]
_MANIFEST = "MANIFEST.json"


class TokenColumn:
    """Token ids of all examples, `column[i]` one example's; memory-mapped when they come from the cache.

    Pickles by file name where it can, so that a worker process maps the same pages.
    """

    def __init__(self, dataset: "Dataset", name: str) -> None:
        self._dataset, self._name = dataset, name
        chunks = dataset.data.column(name).chunks
        self._values: list[Ids] = [chunk.values.to_numpy() for chunk in chunks]
        self._offsets: list[Ids] = [chunk.offsets.to_numpy() for chunk in chunks]
        self._starts = [0]
        for offsets in self._offsets:
            self._starts.append(self._starts[-1] + len(offsets) - 1)

    def __reduce__(self) -> tuple[type["TokenColumn"], tuple["Dataset", str]]:
        return TokenColumn, (self._dataset, self._name)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Ids:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index}: expected 0..{len(self) - 1}")
        chunk = bisect_right(self._starts, index) - 1
        offsets, row = self._offsets[chunk], index - self._starts[chunk]
        return self._values[chunk][offsets[row] : offsets[row + 1]]

    def lengths(self) -> Ids:
        """Count the tokens of each example, `[B]`."""
        counts = [np.diff(offsets).astype(np.int32) for offsets in self._offsets]
        return np.concatenate(counts) if counts else np.zeros(0, np.int32)


class Tokens(NamedTuple):
    """What is kept of a split: the columns `source_ids` and `target_ids`, and how many of each side were cut."""

    table: "Dataset"
    num_truncated_sources: int
    num_truncated_targets: int


def read(folder: Path, num_rows: int) -> Tokens | None:
    """Map what `store` wrote, or return None when it is not there or not as it was written."""
    from datasets import Dataset

    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest["rows"] != num_rows or manifest["files"] != _files(folder):
            return None
        with _without_progress_bars():
            table = Dataset.load_from_disk(str(folder), keep_in_memory=False)
        return Tokens(table, manifest["num_truncated_sources"], manifest["num_truncated_targets"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store(tokens: Tokens, folder: Path) -> None:
    """Write a cache folder; whoever comes second leaves the first one's.

    Raises:
        ConfigError: It cannot be written.
    """
    table, num_sources, num_targets = tokens
    built = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        built.mkdir(parents=True)
        with _without_progress_bars():
            table.save_to_disk(str(built))
        counts = {"rows": len(table), "num_truncated_sources": num_sources, "num_truncated_targets": num_targets}
        (built / _MANIFEST).write_text(json.dumps({**counts, "files": _files(built)}, indent=2))
        if read(folder, len(table)) is None:
            atomic.discard(folder)  # it is damaged, or not there
        atomic.install(built, folder, replace=False)
    except OSError as error:
        place, remedy = str(folder.parent.parent), "Free space there or set run.cache_dir"
        raise ConfigError(fault("run.cache_dir", "a folder to write to", place, str(error), remedy)) from error
    finally:
        shutil.rmtree(built, ignore_errors=True)


def _files(folder: Path) -> dict[str, dict[str, int | str]]:
    """Return size and hash of every file of a cache folder but the manifest."""
    names = sorted(file.name for file in folder.iterdir() if file.name != _MANIFEST and not file.name.startswith("."))
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in names}


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
