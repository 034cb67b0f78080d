"""From the rows of a task's own files to pairs, a batch of columns at a time; all of them end in `rows_of`.

Test rows are used as they stand, or refused by number. Of the training and validation data, which nobody can repair at
its source, rows without a text on either side are left out, and counted.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from encdec_train import console
from encdec_train.config import TaskConfig
from encdec_train.data.formats import nearest, reader_of, unzipped
from encdec_train.data.hub_files import OWN_FILES
from encdec_train.data.load import NUM_SHOWN_ROWS, Rows
from encdec_train.errors import DataError, fault
from encdec_train.tasks.spec import TEXT, Columns, TaskSpec, plain_pairs

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

BATCH_ROWS = 10_000
DAMAGES = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)  # what reading half a file raises


def rows_of(
    tables: Iterable["pa.Table"], spec: TaskSpec, task: TaskConfig, split: str, place: str, limit: int | None
) -> Rows:
    """Turn tables into rows.

    Args:
        tables: What was read, in order, with the columns that the task names.
        spec: Makes pairs of them.
        task: Its values; `reverse` swaps the sides.
        split: Its rows are left out when they cannot be used, except in `test` splits.
        place: Where they come from, for messages.
        limit: Only the first so many that can be used.

    Raises:
        DataError: A test row holds no pair of texts, or nothing is left.
    """
    import pyarrow as pa

    prepare, kept, bad, start = spec.prepare or plain_pairs, list[pa.Table](), dict[int, str](), 0
    num_kept = 0
    for table in tables:
        pairs = prepare(table, task)
        ids = table.column("id") if "id" in table.column_names else None
        usable, faults = _examined(pairs)
        bad |= {start + int(index) + 1: side for index, side in faults}
        index = pa.array(np.arange(start, start + len(table))[usable])
        chosen = pairs.filter(pa.array(usable))
        own = index if ids is None else ids.filter(pa.array(usable))
        kept.append(chosen.append_column("index", index).append_column("id", own.cast(pa.string())))
        start, num_kept = start + len(table), num_kept + len(chosen)
        if limit is not None and num_kept >= limit:
            break
    if limit is not None and num_kept >= limit:  # what comes after the last row that is wanted does not matter
        start = pa.concat_tables(kept).column("index")[limit - 1].as_py() + 1
        bad = {number: side for number, side in bad.items() if number <= start}
    _say_unusable(bad, split, place, start)
    if not num_kept:
        raise DataError(fault(place, f"rows of {split}", None, "there are none"))
    whole = pa.concat_tables(kept).slice(0, limit)
    ids = whole.column("id").to_pylist()
    distinct = None not in ids and len(set(ids)) == len(ids)
    names = whole.column("id" if distinct else "index").cast(pa.string())
    source, target = (whole.column(name) for name in ("source", "target")[:: -1 if task.reverse else 1])
    return Rows.of_table(pa.table({"id": names, "source": source, "target": target}))


def _examined(pairs: "pa.Table") -> "tuple[npt.NDArray[np.bool_], list[tuple[int, str]]]":
    """Find the rows with a text on both sides, and say of the others which side has none."""
    import pyarrow.compute as pc

    usable, faults = np.ones(len(pairs), bool), []
    for side in ("source", "target"):
        column = pairs.column(side)
        blank = pc.or_(pc.equal(pc.utf8_trim_whitespace(column), ""), pc.match_substring(column, "\0"))
        missing = pc.fill_null(blank, True).to_numpy()
        faults += [(int(index), side) for index in np.flatnonzero(missing & usable)]
        usable &= ~missing
    return usable, faults


def _say_unusable(bad: dict[int, str], split: str, place: str, num_rows: int) -> None:
    if not bad:
        return
    shown = [f"row {number} ({side})" for number, side in islice(sorted(bad.items()), NUM_SHOWN_ROWS)]
    listed = ", ".join([*shown, *(["…"] if len(bad) > len(shown) else [])])
    if split not in {"train", "validation"}:
        reason = f"{len(bad)} of {num_rows:,} rows have none: {listed}"
        raise DataError(fault(f"{place}:{split}", "a text on both sides of every row", None, reason))
    console.say(f"{split}: {len(bad):,} of {num_rows:,} rows are left out, no text on one side: {listed}")


def tables_of(paths: Sequence[Path], columns: Columns, place: str) -> Iterator["pa.Table"]:
    """Read parquet files in batches, only the columns named and `id`.

    Raises:
        DataError: A file cannot be read to its end, or lacks a column, or has one of another type.
    """
    import pyarrow as pa
    from pyarrow import parquet

    for path in paths:
        try:
            with parquet.ParquetFile(path, page_checksum_verification=True) as file:
                _check_schema(file.schema_arrow, columns, f"{place}:{path.name}")
                names = [name for name in file.schema_arrow.names if name in columns or name == "id"]
                for batch in file.iter_batches(BATCH_ROWS, columns=names):
                    batch.validate(full=True)  # texts that are not UTF-8
                    yield pa.table(batch)
        except (pa.ArrowException, OSError) as error:
            remedy = "Remove it, and the next start fetches it again"
            raise DataError(fault(place, "a parquet file", str(path), str(error), remedy)) from error


def _check_schema(schema: "pa.Schema", columns: Columns, place: str) -> None:
    remedy = f"Pin an older task.revision, or {OWN_FILES}"
    for name, kind in columns.items():
        if name not in schema.names:
            have = ", ".join(schema.names)
            raise DataError(fault(place, f"a column {name!r}", have, "", remedy + nearest(name, schema.names)))
        actual = str(schema.field(name).type).replace("large_", "")
        if actual != TEXT if isinstance(kind, str) else not all(f"{field}: {TEXT}" in actual for field in kind):
            raise DataError(fault(f"{place}:{name}", _expected(kind), actual, "", remedy))


def _expected(kind: str | tuple[str, ...]) -> str:
    return "a text" if isinstance(kind, str) else f"texts named {' and '.join(kind)}"


def tables_of_file(path: Path, key: str, spec: TaskSpec, columns: Columns) -> Iterator["pa.Table"]:
    """Read a task's own file on disk: lines of its original form, or JSONL, CSV, TSV or Parquet with its columns.

    Raises:
        DataError: It cannot be read, or a row of it has fields of another type.
    """
    import pyarrow as pa

    types = {name: pa.string() if isinstance(kind, str) else pa.struct([(field, pa.string()) for field in kind])
             for name, kind in columns.items()}  # fmt: skip
    with _records(path, key, spec) as records:
        while batch := list(islice(records, BATCH_ROWS)):
            for number, record in batch:
                _check(record, columns, f"{key}: {path}:{number}")
            yield pa.Table.from_pylist([record for _, record in batch], schema=pa.schema(types))


@contextmanager
def _records(path: Path, key: str, spec: TaskSpec) -> Iterator[Iterator[tuple[int, Any]]]:
    try:
        with path.open("rb") as file:
            if spec.parse is not None and path.name.endswith((".tsv", ".tsv.gz", ".zip")):
                yield _lines(file, path, spec.parse)
            else:
                yield reader_of(path, key)[0](unzipped(file, path), set())
    except DAMAGES as error:
        raise DataError(fault(key, "a file that can be read to its end", str(path), str(error))) from error


def _lines(file: IO[bytes], path: Path, parse: Callable[[str], Any]) -> Iterator[tuple[int, Any]]:
    if path.name.endswith(".zip"):
        inside = zipfile.ZipFile(file)
        [name] = [name for name in inside.namelist() if name.endswith(".tsv") and "/" not in name]
        file = inside.open(name)
    for number, line in enumerate(unzipped(cast("BinaryIO", file), path), start=1):
        yield number, parse(line.decode().rstrip("\r\n"))


def _check(record: object, columns: Columns, place: str) -> None:
    if not isinstance(record, dict):
        raise DataError(f"{place}: {record}")
    for name, kind in columns.items():
        value = record.get(name, 0)
        inner = value if isinstance(value, dict) else dict.fromkeys(kind, 0)
        texts = [value] if isinstance(kind, str) else [inner.get(field) for field in kind]
        if not all(text is None or isinstance(text, str) for text in texts):
            raise DataError(fault(f"{place}:{name}", _expected(kind), value if name in record else "no such field"))


def is_plain(path: Path, key: str, columns: tuple[str, str]) -> bool:
    """Tell whether a file has the two columns of a pair, and is none of a task's own.

    Raises:
        DataError: There is no such file.
    """
    if path.name.endswith(".zip") and path.is_file():
        return False
    reader, _ = reader_of(path, key)
    try:
        with path.open("rb") as file:
            _, first = next(reader(unzipped(file, path), set()), (0, ""))
    except DAMAGES:
        return False  # whoever reads it says so
    return isinstance(first, dict) and {*columns} <= first.keys()


def part(num_rows: int, fraction: float, seed: int) -> "npt.NDArray[np.int64]":
    """Draw a fraction of the rows, in order; a function of its arguments alone, on every rank and in every version.

    With one seed a smaller fraction is a part of a larger one.
    """
    draws = np.random.RandomState(seed).random_sample(num_rows)  # noqa: NPY002 - frozen, unlike Generator's streams
    return np.sort(np.argsort(draws, kind="stable")[: max(1, round(num_rows * fraction))])


def taken(rows: Rows, indices: "npt.NDArray[np.int64]") -> Rows:
    """Take some rows, in order: a batch of all is read at a time."""
    import pyarrow as pa

    found = [rows.table(0, 0)]
    for start in range(0, len(rows), BATCH_ROWS):
        inside = indices[(indices >= start) & (indices < start + BATCH_ROWS)] - start
        found.append(rows.table(start, start + BATCH_ROWS).take(pa.array(inside)))
    return replace(Rows.of_table(pa.concat_tables(found)), drawn_from=len(rows))
