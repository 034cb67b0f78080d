"""Pairs of texts from a file, each of them checked.

Nothing is repaired or skipped in silence: a row is used as it stands, or it is named in the error; by choice a few are
set aside and named beside the rows (docs/adr/0021).
"""

import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from encdec_train import console
from encdec_train.data import store
from encdec_train.data.formats import Ending, nearest, reader_of, unzipped
from encdec_train.data.rows import Rows
from encdec_train.errors import DataError, fault
from encdec_train.fingerprint import file_sha256, json_sha256

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ("CACHED_FROM_BYTES", "NUM_SHOWN_ROWS", "ROWS", "Rows", "load_file", "open_file")

NUM_SHOWN_ROWS = 5  # of the rows that cannot be used
MAX_SET_ASIDE, MAX_SHARE_SET_ASIDE = 100, 0.01  # of a file's records: more than either is a broken file; not studied
CACHED_FROM_BYTES = 16 << 20  # smaller files are read every time, into memory
ROWS, _ROWS_FORMAT = "rows.arrow", 1  # raise the format when what is stored changes
_BATCH_ROWS = 4096
_NUM_SHOWN_COLUMNS = 20
_NUM_SHOWN_CHARACTERS = 60


class Sides(NamedTuple):
    """Where a pair's texts stand."""

    source: str  # the column of the text to read
    target: str  # of the text to write; a list of texts is a target with its alternatives, first one first
    reverse: bool = False  # swap the two after reading


Named = Sides | tuple[str, str]


def load_file(path: Path, sides: Named, *, key: str, limit: int | None = None, skip: bool = False) -> Rows:
    """Read pairs and check every one of them.

    Args:
        path: A `.jsonl`, `.json` (lines too), `.csv`, `.tsv` or `.parquet` file, or one of these with `.gz` after it.
        sides: The columns. In CSV and TSV a `references` column holds one reference.
        key: The config key that named the file, for messages.
        limit: Read only the first so many rows that can be used.
        skip: Set bad records aside, where they are at most `MAX_SET_ASIDE` and `MAX_SHARE_SET_ASIDE` of those read.

    Raises:
        DataError: The file, a column or a row cannot be used. All faults of a kind come in one message, which shows
            the first `NUM_SHOWN_ROWS` bad rows and counts the rest. Ids that clash are no single record's fault.
    """
    intake = _Intake(path, key, Sides(*sides), skip)
    _read(intake, limit)
    return intake.rows()


def open_file(
    cache_dir: Path, path: Path, sides: Named, *, key: str, limit: int | None = None, skip: bool = False
) -> Rows:
    """Read pairs as `load_file` does; those of a large file are written to the cache once, and mapped from there.

    Args:
        cache_dir: `rows/` in it holds them, by content.
        path: The file.
        sides: The columns.
        key: The config key that named the file, for messages.
        limit: Read only the first so many rows that can be used.
        skip: Set bad records aside.

    Raises:
        ConfigError: The cache cannot be written.
        DataError: As `load_file`.
    """
    if path.stat().st_size < CACHED_FROM_BYTES or (limit is not None and limit <= _BATCH_ROWS):
        return load_file(path, sides, key=key, limit=limit, skip=skip)
    import pyarrow as pa

    def build(folder: Path) -> store.Facts:
        console.say(f"reading {path} (once; kept in {cache_dir / 'rows'})")
        with pa.OSFile(str(folder / ROWS), "wb") as sink, pa.ipc.new_file(sink, _schema()) as writer:

            def write(batch: pa.RecordBatch) -> None:
                with store.writing(folder):  # or it would read as a fault of the file
                    writer.write_batch(batch)

            intake = _Intake(path, key, Sides(*sides), skip, write)
            _read(intake, limit)
            intake.flush()
        intake.check(Rows.mapped(folder / ROWS).ids)
        return {"rows": intake.num_good, "set_aside": intake.set_aside()}

    suffixes = "".join(path.suffixes[-2:]).lower()
    what = [_ROWS_FORMAT, file_sha256(path), suffixes, *Sides(*sides), limit, *(["skip"] if skip else [])]
    folder = cache_dir / "rows" / json_sha256(what)
    aside = store.obtain(folder, build).get("set_aside", [])
    return replace(Rows.mapped(folder / ROWS), set_aside=tuple({**one, "file": str(path)} for one in aside))


def _schema() -> "pa.Schema":
    import pyarrow as pa

    text = pa.string()
    return pa.schema({"id": text, "source": text, "target": text, "references": pa.list_(text)})


def _read(intake: "_Intake", limit: int | None) -> None:
    path, key = intake.path, intake.key
    try:
        reader, intake.unit = reader_of(path, key)
        with path.open("rb") as file, unzipped(file, path) as stream:
            records = reader(stream, {intake.sides.source, intake.sides.target})
            for number, record in islice(records, limit):
                intake.add(number, record)
            while intake.skip and limit is not None and intake.num_good < limit and (more := next(records, None)):
                intake.add(*more)
    except (OSError, EOFError, zlib.error) as error:
        reason = f"after {intake.num_rows} rows: {error}"
        remedy = "Write or fetch the file again, or make it readable"
        raise DataError(fault(key, "a file that can be read to its end", str(path), reason, remedy)) from error


@dataclass
class _Intake:
    """Rows on their way in, and the complaints about those that cannot be used."""

    path: Path
    key: str
    sides: Sides
    skip: bool  # bad rows are set aside where they are few
    write: "Callable[[pa.RecordBatch], None] | None" = None  # where rows go, which are held else
    unit: str = "line"  # what an editor or a data viewer numbers: lines, rows
    columns_checked: bool = False
    num_rows: int = 0
    several: int | None = None  # the number of the first row with other references than its target
    numbers: "array[int]" = field(default_factory=lambda: array("q"))
    own_ids: "array[int]" = field(default_factory=lambda: array("q"))  # a hash of each, 0 for none
    held: list[tuple[str | None, str, str, list[str] | None]] = field(default_factory=list)
    num_bad: int = 0
    bad: dict[int, str] = field(default_factory=dict)  # the first bad rows, by number
    spoilt: bool = False  # by what is no single row's fault

    @property
    def num_good(self) -> int:
        return len(self.numbers)

    def add(self, number: int, record: dict[str, Any] | str) -> None:
        self.num_rows += 1
        if isinstance(record, str):
            self._complain(number, record)
            self.spoilt |= isinstance(record, Ending)
            return
        if not self.columns_checked:
            self._check_columns(list(record))
            self.columns_checked = True
        try:
            source = _text(record, self.sides.source)
            target, references = self._target(record)
            own_id = _id(record)
        except _BadFieldError as error:
            self._complain(number, f"{self.unit} {number}:{error}")
            return
        self.numbers.append(number)
        self.own_ids.append(0 if own_id is None else hash(own_id) or 1)
        if references != [target] and self.several is None:
            self.several = number
        if self.sides.reverse:
            self.held.append((own_id, target, source, None))
        else:
            self.held.append((own_id, source, target, None if references == [target] else references))
        if self.write is not None and len(self.held) >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if not self.held:
            return
        import pyarrow as pa

        schema, columns = _schema(), zip(*self.held, strict=True)
        arrays = [pa.array(column, one.type) for column, one in zip(columns, schema, strict=True)]
        if self.write is not None:
            self.write(pa.record_batch(arrays, schema=schema))
        self.held.clear()

    def _complain(self, number: int, text: str) -> None:
        self.num_bad += 1
        self.bad[number] = text
        if len(self.bad) > (MAX_SET_ASIDE if self.skip else NUM_SHOWN_ROWS):
            del self.bad[max(self.bad)]

    def _check_columns(self, columns: list[str]) -> None:
        present = ", ".join(repr(name) for name in columns[:_NUM_SHOWN_COLUMNS])
        present += f" and {len(columns) - _NUM_SHOWN_COLUMNS} more" if len(columns) > _NUM_SHOWN_COLUMNS else ""
        expected = f"a column of {self.path} ({self.key}), whose first row has {present}"
        faults = []
        for key, name in (("task.source_column", self.sides.source), ("task.target_column", self.sides.target)):
            if name not in columns:
                faults.append(fault(key, expected, name, remedy=f"Set {key}{nearest(name, columns)}"))
        if faults:
            raise DataError("\n".join(faults))

    def _target(self, record: dict[str, Any]) -> tuple[str, list[str]]:
        column = self.sides.target
        beside = "references" in record and "references" not in self.sides
        if isinstance(record.get(column), list):
            if beside:
                reason = "it is a list, and `references` stands beside it"
                raise _BadFieldError(fault(column, "a text", None, reason))
            references = _texts(record, column)
            return references[0], references
        target = _text(record, column)
        return target, _texts(record, "references") if beside else [target]

    def rows(self) -> Rows:
        """Put the rows that are held together, or refuse them all."""
        ids = [str(index) if row[0] is None else row[0] for index, row in enumerate(self.held)]
        self.check(ids)
        sources, targets = [row[1] for row in self.held], [row[2] for row in self.held]
        references = [[row[2]] if row[3] is None else row[3] for row in self.held]
        return Rows(ids, sources, targets, references, tuple(self.set_aside()))

    def set_aside(self) -> list[dict[str, Any]]:
        """List the bad rows, after `check` has let them pass."""
        return [{"file": str(self.path), self.unit: number, "reason": self.bad[number]} for number in sorted(self.bad)]

    def check(self, ids: Sequence[str]) -> None:
        """Refuse all rows where some cannot be used, unless these may be set aside."""
        if any(self.own_ids):
            self._check_ids(ids)
        few = self.num_bad <= min(MAX_SET_ASIDE, MAX_SHARE_SET_ASIDE * self.num_rows)
        if self.bad and not (self.skip and few and not self.spoilt):
            raise DataError(self._complaint())
        if not self.numbers:
            raise DataError(fault(self.key, "a file with rows", str(self.path), "it has none"))
        if self.sides.reverse and self.several is not None:
            reason = f"{self.path}:{self.unit} {self.several} has references besides its target, which have no source"
            raise DataError(fault("task.reverse", "false", True, reason))

    def _check_ids(self, ids: Sequence[str]) -> None:
        """Compare by hash: 4.5 million texts in a dict would be half a gigabyte."""
        own, num_bad = np.array(self.own_ids), self.num_bad
        order = np.argsort(own, kind="stable")
        same = np.append(False, own[order][1:] == own[order][:-1])
        first = np.maximum.accumulate(np.where(same, 0, np.arange(len(own))))
        for place in np.flatnonzero(same | (own[order] == 0)):
            index = int(order[place])
            number, where = self.numbers[index], f"{self.unit} {self.numbers[index]}:id"
            if own[index] == 0:
                self._complain(number, fault(where, "an id", None, "it has none, and other rows have one"))
            else:
                reason = f"{self.unit} {self.numbers[int(order[first[place]])]} has the same"
                self._complain(number, fault(where, "an id of its own", ids[index][:_NUM_SHOWN_CHARACTERS], reason))
        self.spoilt |= self.num_bad > num_bad

    def _complaint(self) -> str:
        shown = [f"{self.path}:{self.bad[number]}" for number in sorted(self.bad)[:NUM_SHOWN_ROWS]]
        most = f"at most {MAX_SHARE_SET_ASIDE:.0%} and {MAX_SET_ASIDE} rows"
        over = f"; task.bad_records=skip sets {most} aside" if self.skip and not self.spoilt else ""
        if self.num_bad == 1 and not over:
            return f"{self.key}: {shown[0]}"
        more = self.num_bad - len(shown)
        head = f"{self.key}: {self.num_bad} rows of {self.path} cannot be used{over}:"
        return "\n".join([head, *(f"  {text}" for text in shown), *([f"  and {more} more."] if more else [])])


class _BadFieldError(ValueError):
    """One field of one row cannot be used."""


def _text(record: dict[str, Any], column: str) -> str:
    if column not in record:
        raise _BadFieldError(fault(column, "a text", None, "this row has no such field"))
    return _checked(record[column], column)


def _texts(record: dict[str, Any], column: str) -> list[str]:
    value = record[column]
    if not isinstance(value, list):
        return [_checked(value, column)]
    if not value:
        raise _BadFieldError(fault(column, "one text or more", value))
    return [_checked(text, f"{column}[{index}]") for index, text in enumerate(value)]


def _id(record: dict[str, Any]) -> str | None:
    if "id" not in record:
        return None
    value = record["id"]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _checked(value, "id")


def _checked(value: object, where: str) -> str:
    """Pass on a text that can be tokenised and written to a file, or say why it is none."""
    if value is None:
        raise _BadFieldError(fault(where, "a text", None, "it is null"))
    if not isinstance(value, str):
        shown = repr(value)
        short = value if len(shown) <= _NUM_SHOWN_CHARACTERS else f"{shown[:_NUM_SHOWN_CHARACTERS]}…"
        raise _BadFieldError(fault(where, "a text", short, f"its type is {type(value).__name__}"))
    if not value or value.isspace():
        raise _BadFieldError(fault(where, "a text", None, "it is empty" if not value else "it is only white space"))
    if "\0" in value:
        raise _BadFieldError(fault(where, "a text", None, f"character {value.index(chr(0)) + 1} is NUL"))
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            reason = f"character {error.start + 1}, U+{ord(value[error.start]):04X}, is half of a surrogate pair"
            raise _BadFieldError(fault(where, "a text", None, reason)) from error
    return value
