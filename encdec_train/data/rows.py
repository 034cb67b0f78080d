"""Pairs of texts by index: lists in memory, or columns of an Arrow table, which may be mapped from a file."""

import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from encdec_train.data.store import map_table

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
_BATCH_ROWS = 4096  # made into Python objects at once
_PASS_ROWS = 256  # read at once by somebody who goes through all of them
_COLUMNS, _ABOUT = ("id", "source", "target", "references"), ("set_aside", "drawn_from")  # in a table and its metadata


@dataclass(frozen=True)
class Rows:
    """Pairs of texts in the order of their file; the four columns have one length and are read like lists.

    Attributes:
        ids: The row's own `id`, else its index from 0; distinct.
        sources: What the model reads.
        targets: What it is trained to write.
        references: What its output is scored against, one text or more a row: the list that the target column holds,
            or the `references` column beside it (which need not hold the target), else the target alone.
        set_aside: Records of the file that are not among them: `file`, `line` (or `row`) and `reason` of each.
        drawn_from: How many rows there were, where these are a part of them; else None.
    """

    ids: Sequence[str]
    sources: Sequence[str]
    targets: Sequence[str]
    references: Sequence[list[str]]
    set_aside: tuple[Mapping[str, Any], ...] = ()
    drawn_from: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of_table(cls, table: "pa.Table", pages: mmap.mmap | None = None) -> "Rows":
        """Read from the columns `source` and `target`, and from `id` and `references` where they are and not null.

        Args:
            table: The columns.
            pages: The map that they lie in. Who reads all rows lets go of what was read.
        """
        ids, sources, targets, references = (Column[Any](table, name, pages) for name in _COLUMNS)
        known = table.schema.metadata or {}
        about = {name: json.loads(known[name.encode()]) for name in _ABOUT if name.encode() in known}
        return cls(ids, sources, targets, references, tuple(about.get("set_aside", ())), about.get("drawn_from"))

    @classmethod
    def mapped(cls, file: Path) -> "Rows":
        """Map an Arrow file: what is never read takes no memory."""
        return cls.of_table(*map_table(file))

    def table(self, start: int = 0, stop: int | None = None) -> "pa.Table":
        """Copy some rows into an Arrow table that `of_table` reads."""
        import pyarrow as pa

        columns = {"id": self.ids, "source": self.sources, "target": self.targets, "references": self.references}
        kinds = {name: pa.list_(pa.string()) if name == "references" else pa.string() for name in columns}
        table = pa.table({name: pa.array(column[start:stop], kinds[name]) for name, column in columns.items()})
        about = {name: json.dumps(getattr(self, name)) for name in _ABOUT if getattr(self, name)}
        return table.replace_schema_metadata(about or None)

    def write(self, file: Path) -> None:
        """Write an Arrow file that `mapped` reads, a batch at a time."""
        import pyarrow as pa

        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, self.table(0, 0).schema) as writer:
            for start in range(0, len(self), _BATCH_ROWS):
                writer.write_table(self.table(start, start + _BATCH_ROWS))


class Column(Sequence[T]):
    """A column of `Rows` in an Arrow table."""

    def __init__(self, table: "pa.Table", name: str, pages: mmap.mmap | None) -> None:
        self._table, self._name, self._pages = table, name, pages

    def __reduce__(self) -> "tuple[type[Column[T]], tuple[pa.Table, str, None]]":
        return Column, (self._table, self._name, None)  # another process gets a copy

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self._read(start, max(start, stop)) if step == 1 else [self[n] for n in range(start, stop, step)]
        number = range(len(self))[index]
        return self._read(number, number + 1)[0]

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), _BATCH_ROWS):
            yield from self[start : start + _BATCH_ROWS]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(other) != len(self):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list has none

    def _read(self, start: int, stop: int) -> list[T]:
        values = self._values(self._name, start, stop)
        if self._name == "id":
            values = [str(start + n) if own is None else own for n, own in enumerate(values)]
        elif self._name == "references" and None in values:
            targets = self._values("target", start, stop)
            values = [[target] if own is None else own for own, target in zip(values, targets, strict=True)]
        return cast("list[T]", values)

    def _values(self, name: str, start: int, stop: int) -> list[Any]:
        if name not in self._table.column_names:
            return [None] * (stop - start)
        values = list(self._table.column(name).slice(start, stop - start).to_pylist())
        if self._pages is not None and stop - start >= _PASS_ROWS:
            self._pages.madvise(mmap.MADV_DONTNEED)
        return values
