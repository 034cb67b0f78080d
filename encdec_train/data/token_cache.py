"""The tokens of a split: in memory or memory-mapped from an Arrow file, with one array of their lengths."""

import mmap
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from encdec_train.data import store
from encdec_train.data.store import Facts

if TYPE_CHECKING:
    import pyarrow as pa

Ids = npt.NDArray[np.int32]
TOKENS, LENGTHS = "tokens.arrow", "lengths.npy"  # the files of a cache folder


@dataclass(frozen=True, eq=False)
class Tokens:
    """What is kept of a split."""

    table: "pa.Table"  # the columns `source_ids` and `target_ids`, lists of int32
    lengths: Ids  # tokens of each source and target after cutting, `[N, 2]`
    num_truncated: tuple[int, int]  # sources and targets that were cut
    folder: Path | None = None  # where they are mapped from
    pages: mmap.mmap | None = None

    @classmethod
    def mapped(cls, folder: Path, facts: Facts) -> "Tokens":
        """Map what `write` left there; `facts` are what it returned."""
        table, pages = store.map_table(folder / TOKENS)
        sources, targets = facts["truncated"]
        return cls(table, np.load(folder / LENGTHS, mmap_mode="r"), (sources, targets), folder, pages)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is None:
            return Tokens, (self.table, self.lengths, self.num_truncated)
        return Tokens.mapped, (self.folder, {"truncated": self.num_truncated})  # a worker maps the same pages

    def release(self) -> None:
        """Let go of the pages that were read; they stay in the system's cache while it has room for them."""
        if self.pages is not None:
            self.pages.madvise(mmap.MADV_DONTNEED)


class TokenColumn:
    """Token ids of all examples, `column[i]` one example's."""

    def __init__(self, tokens: Tokens, name: str) -> None:
        self._tokens, self._name = tokens, name
        chunks = tokens.table.column(name).chunks
        self._values: list[Ids] = [chunk.values.to_numpy() for chunk in chunks]
        self._offsets: list[Ids] = [chunk.offsets.to_numpy() for chunk in chunks]
        self._starts = [0]
        for chunk in chunks:
            self._starts.append(self._starts[-1] + len(chunk))

    def __reduce__(self) -> tuple[type["TokenColumn"], tuple[Tokens, str]]:
        return TokenColumn, (self._tokens, self._name)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Ids:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index}: expected 0..{len(self) - 1}")
        chunk = bisect_right(self._starts, index) - 1
        offsets, row = self._offsets[chunk], index - self._starts[chunk]
        return self._values[chunk][offsets[row] : offsets[row + 1]]
