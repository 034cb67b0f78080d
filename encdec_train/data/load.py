"""Pairs of texts from a file, each of them checked.

Nothing is repaired or skipped in silence: a row is used as it stands, or it is named in the error.
"""

import zlib
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from encdec_train.data.formats import nearest, reader_of, unzipped
from encdec_train.errors import DataError, fault

NUM_SHOWN_ROWS = 5  # of the rows that cannot be used
_NUM_SHOWN_COLUMNS = 20
_NUM_SHOWN_CHARACTERS = 60


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
        reader, intake.unit = reader_of(path, key)
        with path.open("rb") as file, unzipped(file, path) as stream:
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
                faults.append(fault(key, expected, name, remedy=f"Set {key}{nearest(name, columns)}"))
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
