"""Reading files of pairs: JSON Lines, CSV, TSV and Parquet, each also gzipped.

Nothing is repaired or skipped in silence: a row is used as it stands, or it is named in the error. The one exception
are blank lines, which hold no row. JSON Lines holds an object a line; CSV follows RFC 4180; TSV knows no quoting (a
quote is a character like any other, and a field holds neither tab nor newline); CSV and TSV start with a header.
"""

import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from encdec_train.errors import DataError, fault

NUM_SHOWN_ROWS = 5  # of the rows that cannot be used
_NUM_SHOWN_COLUMNS = 20
_NUM_SHOWN_CHARACTERS = 60
_BATCH_ROWS = 4096  # of Parquet, read at once

# The number of a line (1 is the first, the header where there is one) or row, with its fields or with what is wrong.
_Record = tuple[int, dict[str, Any] | str]
_Reader = Callable[[BinaryIO, set[str]], Iterator[_Record]]  # the set: columns that the file must have
_OPTIONAL_COLUMNS = {"references", "id"}


@dataclass(frozen=True)
class Rows:
    """Pairs of texts in the order of their file; the four lists have one length.

    Attributes:
        ids: The row's own `id`, else its index from 0; distinct.
        sources: What the model reads.
        targets: What it is trained to write.
        references: What its output is scored against, one text or more a row: the list that the target column holds,
            or the `references` column beside it (which need not hold the target), else the target alone.
    """

    ids: list[str]
    sources: list[str]
    targets: list[str]
    references: list[list[str]]

    def __len__(self) -> int:
        return len(self.ids)


def load_file(
    path: Path, source_column: str, target_column: str, *, key: str, reverse: bool = False, limit: int | None = None
) -> Rows:
    """Read pairs and check every one of them.

    Args:
        path: A `.jsonl`, `.json` (lines too), `.csv`, `.tsv` or `.parquet` file, or one of these with `.gz` after it.
        source_column: The column of the text to read.
        target_column: The column of the text to write; a list of texts is a target with its alternatives, first one
            first. In CSV and TSV a `references` column holds one reference.
        key: The config key that named the file, for messages.
        reverse: Swap the two sides after reading.
        limit: Read only the first so many rows.

    Raises:
        DataError: The file, a column or a row cannot be used. All faults of a kind come in one message, which shows
            the first `NUM_SHOWN_ROWS` bad rows and counts the rest.
    """
    intake = _Intake(path, key, source_column, target_column)
    try:
        reader, intake.unit = _reader(path, key)
        with path.open("rb") as file, _unzipped(file, path) as stream:
            for number, record in islice(reader(stream, {source_column, target_column}), limit):
                intake.add(number, record)
    except (OSError, EOFError, zlib.error) as error:
        reason = f"after {intake.num_rows} rows: {error}"
        remedy = "Write or fetch the file again, or make it readable"
        raise DataError(fault(key, "a file that can be read to its end", str(path), reason, remedy)) from error
    rows = intake.rows()
    return _reversed(rows, intake) if reverse else rows


@dataclass
class _Intake:
    """Rows on their way in, and the complaints about those that cannot be used."""

    path: Path
    key: str
    source: str  # column
    target: str
    unit: str = "line"  # what an editor or a data viewer numbers: lines, rows
    columns_checked: bool = False
    num_rows: int = 0
    numbers: list[int] = field(default_factory=list)
    own_ids: list[str | None] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    references: list[list[str]] = field(default_factory=list)
    num_bad: int = 0
    bad: dict[int, str] = field(default_factory=dict)  # the first bad rows, by number

    def add(self, number: int, record: dict[str, Any] | str) -> None:
        self.num_rows += 1
        if isinstance(record, str):
            self._complain(number, record)
            return
        if not self.columns_checked:
            self._check_columns(list(record))
            self.columns_checked = True
        try:
            source = _text(record, self.source)
            target, references = self._target(record)
            own_id = _id(record)
        except _BadFieldError as error:
            self._complain(number, f"{self.unit} {number}:{error}")
            return
        self.numbers.append(number)
        self.own_ids.append(own_id)
        self.sources.append(source)
        self.targets.append(target)
        self.references.append(references)

    def _complain(self, number: int, text: str) -> None:
        self.num_bad += 1
        self.bad[number] = text
        if len(self.bad) > NUM_SHOWN_ROWS:
            del self.bad[max(self.bad)]

    def _check_columns(self, columns: list[str]) -> None:
        present = ", ".join(repr(name) for name in columns[:_NUM_SHOWN_COLUMNS])
        present += f" and {len(columns) - _NUM_SHOWN_COLUMNS} more" if len(columns) > _NUM_SHOWN_COLUMNS else ""
        expected = f"a column of {self.path} ({self.key}), whose first row has {present}"
        faults = []
        for key, name in (("task.source_column", self.source), ("task.target_column", self.target)):
            if name not in columns:
                faults.append(fault(key, expected, name, remedy=f"Set {key}{_nearest(name, columns)}"))
        if faults:
            raise DataError("\n".join(faults))

    def _target(self, record: dict[str, Any]) -> tuple[str, list[str]]:
        beside = "references" in record and "references" not in {self.source, self.target}
        if isinstance(record.get(self.target), list):
            if beside:
                reason = "it is a list, and `references` stands beside it"
                raise _BadFieldError(fault(self.target, "a text", None, reason))
            references = _texts(record, self.target)
            return references[0], references
        target = _text(record, self.target)
        return target, _texts(record, "references") if beside else [target]

    def rows(self) -> Rows:
        """Put the rows together, or refuse them all."""
        if any(own is not None for own in self.own_ids):
            self._check_ids()
        if self.bad:
            raise DataError(self._complaint())
        if not self.sources:
            raise DataError(fault(self.key, "a file with rows", str(self.path), "it has none"))
        ids = [str(index) if own is None else own for index, own in enumerate(self.own_ids)]
        return Rows(ids, self.sources, self.targets, self.references)

    def _check_ids(self) -> None:
        first: dict[str, int] = {}
        for number, own in zip(self.numbers, self.own_ids, strict=True):
            where = f"{self.unit} {number}:id"
            if own is None:
                self._complain(number, fault(where, "an id", None, "it has none, and other rows have one"))
            elif own in first:
                reason = f"{self.unit} {first[own]} has the same"
                self._complain(number, fault(where, "an id of its own", own[:_NUM_SHOWN_CHARACTERS], reason))
            else:
                first[own] = number

    def _complaint(self) -> str:
        shown = [f"{self.path}:{self.bad[number]}" for number in sorted(self.bad)]
        if self.num_bad == 1:
            return f"{self.key}: {shown[0]}"
        more = self.num_bad - len(shown)
        head = f"{self.key}: {self.num_bad} rows of {self.path} cannot be used:"
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


def _reversed(rows: Rows, intake: _Intake) -> Rows:
    for number, target, references in zip(intake.numbers, rows.targets, rows.references, strict=True):
        if references != [target]:
            reason = f"{intake.path}:{intake.unit} {number} has references besides its target, which have no source"
            raise DataError(fault("task.reverse", "false", True, reason))
    return Rows(rows.ids, rows.targets, rows.sources, [[source] for source in rows.sources])


def _reader(path: Path, key: str) -> tuple[_Reader, str]:
    """Choose by the file's name how to read it, and by what its rows are numbered."""
    if path.is_dir():
        raise DataError(fault(key, "a file", str(path), "it is a folder"))
    if not path.exists():
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else None
        reason = "there is no such file" if siblings is not None else f"there is no folder {path.parent}"
        raise DataError(fault(key, "a file", str(path), reason, f"Set {key}{_nearest(path.name, siblings or [])}"))
    name = path.name.lower().removesuffix(".gz")
    suffix = next((suffix for suffix in _READERS if name.endswith(suffix)), None)
    if suffix is None:
        raise DataError(fault(key, f"a file that ends in {', '.join(_READERS)}, or one of these and .gz", str(path)))
    return _READERS[suffix]


def _nearest(name: str, names: Iterable[str]) -> str:
    close = get_close_matches(name, sorted(names), n=1)
    return f"; the nearest name is {close[0]!r}" if close else ""


def _unzipped(file: BinaryIO, path: Path) -> BinaryIO:
    return io.BufferedReader(gzip.open(file)) if path.name.lower().endswith(".gz") else file


def _lines(stream: BinaryIO) -> Iterator[tuple[int, str, str]]:
    """Yield number, text with its line end, and the complaint (else an empty text) of every line.

    Lines end at a line feed alone: texts may hold the other characters that Unicode counts as line ends.
    """
    for number, data in enumerate(stream, start=1):
        line = data.removeprefix(codecs.BOM_UTF8) if number == 1 else data
        try:
            yield number, line.decode(), ""
        except UnicodeDecodeError as error:
            what = f"byte {error.start + 1} is 0x{line[error.start]:02x}"
            remedy = "Name it .gz" if number == 1 and line.startswith(b"\x1f\x8b") else "Save the file as UTF-8"
            yield number, line.decode(errors="replace"), fault(f"line {number}", "UTF-8", None, what, remedy)


def _json_lines(stream: BinaryIO, _required: set[str]) -> Iterator[_Record]:
    decode = json.JSONDecoder(object_pairs_hook=_distinct).decode
    for number, line, complaint in _lines(stream):
        if complaint:
            yield number, complaint
        elif line and not line.isspace():
            yield number, _json_object(decode, line, number)


def _json_object(decode: Callable[[str], object], line: str, number: int) -> dict[str, Any] | str:
    try:
        value = decode(line)
    except json.JSONDecodeError as error:
        return fault(f"line {number}", "a JSON object", None, f"{error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        return fault(f"line {number}", "a JSON object", None, str(error))
    if isinstance(value, dict):
        return value
    reason = f"its type is {type(value).__name__}"
    return fault(f"line {number}", "a JSON object", None, reason, "Write one object a line")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError(f"field {_twice([name for name, _ in pairs])!r} stands twice")
    return members


def _twice(names: list[str]) -> str:
    return next((name for index, name in enumerate(names) if name in names[:index]), "")


def _csv(stream: BinaryIO, _required: set[str]) -> Iterator[_Record]:
    limit = csv.field_size_limit(sys.maxsize)  # a setting of the whole process
    try:
        yield from _table(_csv_cells(stream))
    finally:
        csv.field_size_limit(limit)


def _csv_cells(stream: BinaryIO) -> Iterator[tuple[int, list[str], str]]:
    complaints: list[str] = []  # about the lines of the row at hand

    def texts() -> Iterator[str]:
        for _, line, complaint in _lines(stream):
            complaints.extend([complaint] if complaint else [])
            yield line

    reader = csv.reader(texts(), strict=True)
    start = 1
    try:
        for cells in reader:
            number, start = start, reader.line_num + 1
            if cells:
                yield number, cells, complaints[0] if complaints else ""
            complaints.clear()
    except csv.Error as error:
        yield start, [], fault(f"line {start}", "a row of CSV", None, f"{error}; nothing after it was read")


def _tsv(stream: BinaryIO, _required: set[str]) -> Iterator[_Record]:
    lines = ((number, line.removesuffix("\n").removesuffix("\r"), bad) for number, line, bad in _lines(stream))
    return _table((number, line.split("\t"), bad) for number, line, bad in lines if line)


def _table(rows: Iterator[tuple[int, list[str], str]]) -> Iterator[_Record]:
    """Give cells the names of the header."""
    number, header, complaint = next(rows, (1, [], ""))
    if complaint or len(set(header)) < len(header):
        yield number, complaint or fault(f"line {number}", "names of columns", None, f"{_twice(header)!r} stands twice")
        return
    for number, cells, complaint in rows:
        if complaint or len(cells) != len(header):
            yield number, complaint or fault(f"line {number}", f"{len(header)} fields as in the header", len(cells))
        else:
            yield number, dict(zip(header, cells, strict=True))


def _parquet(stream: BinaryIO, required: set[str]) -> Iterator[_Record]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        file = parquet.ParquetFile(pa.BufferReader(stream.read()), page_checksum_verification=True)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            yield 0, fault("schema", "names of columns", None, f"{_twice(names)!r} stands twice")
            return
        # All columns when a required one is missing: the message lists them.
        columns = [name for name in names if name in required | _OPTIONAL_COLUMNS] if required <= set(names) else None
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
            for row in _batch_rows(batch, number):
                number += 1
                yield number, row
    except pa.ArrowException as error:
        raise OSError(str(error)) from error


def _batch_rows(batch: Any, num_before: int) -> list[dict[str, Any] | str]:  # noqa: ANN401 - pyarrow is untyped
    """Turn a batch into dicts; Parquet does not promise that its strings are UTF-8."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        if batch.num_rows > 1:
            return [row for i in range(batch.num_rows) for row in _batch_rows(batch.slice(i, 1), num_before + i)]
        return [fault(f"row {num_before + 1}", "UTF-8", None, "a text in it is something else")]


_READERS: dict[str, tuple[_Reader, str]] = {
    ".jsonl": (_json_lines, "line"),
    ".json": (_json_lines, "line"),
    ".csv": (_csv, "line"),
    ".tsv": (_tsv, "line"),
    ".parquet": (_parquet, "row"),
}
