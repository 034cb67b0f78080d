"""Reading the records of a file: JSON Lines, CSV, TSV and Parquet, each also gzipped.

JSON Lines holds an object a line; CSV follows RFC 4180; TSV knows no quoting (a quote is a character like any other,
and a field holds neither tab nor newline); CSV and TSV start with a header. Blank lines hold no record.
"""

import codecs
import csv
import gzip
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from encdec_train.errors import DataError, fault

_BATCH_ROWS = 4096  # of Parquet, read at once
_OPTIONAL_COLUMNS = {"references", "id"}


class Ending(str):
    """What is wrong with a file, after which nothing of it can be read."""

    __slots__ = ()


# The number of a line (1 is the first, the header where there is one) or row, with its fields or with what is wrong.
Record = tuple[int, dict[str, Any] | str]
Reader = Callable[[BinaryIO, set[str]], Iterator[Record]]  # the set: columns that the file must have


def reader_of(path: Path, key: str, other: Reader | None = None) -> tuple[Reader, str]:
    """Choose by a file's name how to read it, and what an editor or a data viewer numbers in it: lines or rows.

    Raises:
        DataError: There is no such file, or its name ends in nothing known and there is no `other` reader for it.
    """
    if path.is_dir():
        raise DataError(fault(key, "a file", str(path), "it is a folder"))
    if not path.exists():
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else None
        reason = "there is no such file" if siblings is not None else f"there is no folder {path.parent}"
        raise DataError(fault(key, "a file", str(path), reason, f"Set {key}{nearest(path.name, siblings or [])}"))
    name = path.name.lower().removesuffix(".gz")
    suffix = next((suffix for suffix in _READERS if name.endswith(suffix)), None)
    if suffix is not None:
        return _READERS[suffix]
    if other is None:
        raise DataError(fault(key, f"a file that ends in {', '.join(_READERS)}, or one of these and .gz", str(path)))
    return other, "line"


def nearest(name: str, names: Iterable[str]) -> str:
    """Name the one of `names` that may have been meant, as the end of a remedy."""
    close = get_close_matches(name, sorted(names), n=1)
    return f"; the nearest name is {close[0]!r}" if close else ""


def unzipped(file: BinaryIO, path: Path) -> BinaryIO:
    """Read through gzip where the name says so."""
    return io.BufferedReader(gzip.open(file)) if path.name.lower().endswith(".gz") else file


def _lines(stream: Iterable[bytes]) -> Iterator[tuple[int, str, str]]:
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


def text_lines(stream: Iterable[bytes], required: set[str]) -> Iterator[Record]:
    """Give each line as a `prediction`, a blank one too; a file that starts with a JSON object is JSON Lines."""
    lines = iter(stream)
    first = next(lines, b"")
    again = chain([first] if first else [], lines)
    if is_object(first):
        return json_lines(again, required)
    return ((number, bad or {"prediction": line.rstrip("\r\n")}) for number, line, bad in _lines(again))


def is_object(line: bytes) -> bool:
    """Tell whether a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def json_lines(stream: Iterable[bytes], _required: set[str]) -> Iterator[Record]:
    """Yield the object of each line."""
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


def _csv(stream: BinaryIO, _required: set[str]) -> Iterator[Record]:
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
        yield start, [], Ending(fault(f"line {start}", "a row of CSV", None, f"{error}; nothing after it was read"))


def _tsv(stream: BinaryIO, _required: set[str]) -> Iterator[Record]:
    lines = ((number, line.removesuffix("\n").removesuffix("\r"), bad) for number, line, bad in _lines(stream))
    return _table((number, line.split("\t"), bad) for number, line, bad in lines if line)


def _table(rows: Iterator[tuple[int, list[str], str]]) -> Iterator[Record]:
    """Give cells the names of the header."""
    number, header, complaint = next(rows, (1, [], ""))
    if complaint or len(set(header)) < len(header):
        twice = fault(f"line {number}", "names of columns", None, f"{_twice(header)!r} stands twice")
        yield number, Ending(complaint or twice)
        return
    for number, cells, complaint in rows:
        if complaint or len(cells) != len(header):
            yield number, complaint or fault(f"line {number}", f"{len(header)} fields as in the header", len(cells))
        else:
            yield number, dict(zip(header, cells, strict=True))


def _parquet(stream: BinaryIO, required: set[str]) -> Iterator[Record]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        zipped = isinstance(getattr(stream, "raw", None), gzip.GzipFile)
        source = pa.BufferReader(stream.read()) if zipped else stream
        file = parquet.ParquetFile(source, page_checksum_verification=True)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            yield 0, Ending(fault("schema", "names of columns", None, f"{_twice(names)!r} stands twice"))
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


_READERS: dict[str, tuple[Reader, str]] = {
    ".jsonl": (json_lines, "line"),
    ".json": (json_lines, "line"),
    ".csv": (_csv, "line"),
    ".tsv": (_tsv, "line"),
    ".parquet": (_parquet, "row"),
}
