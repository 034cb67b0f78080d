"""`encdec generate`: a line in, a line out, in order, as it comes."""

import gzip
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from encdec_train import console
from encdec_train.data.formats import is_object
from encdec_train.data.preprocess import TextCodec
from encdec_train.errors import DataError, fault

if TYPE_CHECKING:
    from encdec_train.decoding.search import Engine, SearchSettings

CHUNK = 256  # lines decoded together when so many are waiting
READ_BYTES = 1 << 20


class Generator:
    """Turns texts into texts.

    Args:
        engine: The model, ready to decode.
        codec: Both tokenizers.
        settings: How to search.
        max_source_tokens: Longer sources are cut, special tokens kept.
        precision: Entered around each search.
    """

    def __init__(
        self,
        engine: "Engine",
        codec: TextCodec,
        settings: "SearchSettings",
        max_source_tokens: int,
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._engine, self._codec, self._settings = engine, codec, settings
        self.max_source_tokens, self._precision = max_source_tokens, precision
        self.num_texts = self.num_truncated = self.num_empty = 0

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Decode texts; one that is empty, blank, or has no token that the tokenizer knows gives an empty text."""
        from encdec_train.decoding.predictions import predictions

        first = self.num_texts  # numbers count on, so that what is drawn does not repeat
        asked = [index for index, text in enumerate(texts) if text.strip()]
        ids = self._codec.encode_sources([texts[index] for index in asked])
        self.num_truncated += sum(len(tokens) > self.max_source_tokens for tokens in ids)
        ids = [self._codec.cut_source(tokens, self.max_source_tokens) for tokens in ids]
        sources = {first + index: tokens for index, tokens in zip(asked, ids, strict=True)}
        outputs = [""] * len(texts)
        with self._precision():
            for number, one in predictions(self._engine, self._codec, sources, self._settings, _line_name):
                outputs[number - first] = one.texts[0]
        self.num_texts += len(texts)
        self.num_empty += outputs.count("")
        return outputs


def _line_name(number: int) -> str:
    return f"input:{number + 1}"


def stream(
    generator: Generator, lines: BinaryIO, write: Callable[[str], object], column: str | None, *, look: bool = False
) -> int:
    """Read lines, write a line for each, in order.

    What is waiting is decoded together, up to `CHUNK` lines; so a file goes through in large batches, and a person at a
    terminal gets an answer to each line.

    Args:
        generator: Turns texts into texts.
        lines: UTF-8 lines; plain text, or JSON objects when `column` is given.
        write: Takes one output line.
        column: The key of the source text in JSON input; the object comes back with `prediction` added.
        look: The first line that is not blank says whether they are JSON objects.

    Returns:
        The number of lines.

    Raises:
        DataError: When a line is no UTF-8, or no such object, or the input ends in the middle of its compression;
            lines before it have been written.
    """
    count = 0
    for chunk in _chunks(lines):
        if look and (first := next((line for line in chunk if line.strip()), None)):
            column, look = (column if is_object(first) else None), False
        records, damage = _records(chunk, count + 1, column)
        texts = generator([text for _, text in records])
        for (record, _), text in zip(records, texts, strict=True):
            answer = " ".join(text.split("\n"))
            write(answer if record is None else json.dumps({**record, "prediction": text}, ensure_ascii=False))
        if damage is not None:
            raise damage
        count += len(chunk)
    return count


_Record = tuple[dict[str, object] | None, str]


def _records(chunk: Sequence[bytes], first: int, column: str | None) -> tuple[list[_Record], DataError | None]:
    """Read lines up to the first that cannot be used, and say what is wrong with that one."""
    records: list[_Record] = []
    for number, line in enumerate(chunk, start=first):
        try:
            records.append(_record(line, number, column))
        except DataError as error:
            return records, error
    return records, None


def _record(line: bytes, number: int, column: str | None) -> _Record:
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        if column is None or not text.strip():
            return None, text
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "UTF-8 text" if column is None else "a JSON object in UTF-8"
        raise DataError(fault(f"input:{number}", what, None, str(error))) from error
    if not isinstance(record, dict):
        raise DataError(fault(f"input:{number}", "a JSON object", None, f"its type is {type(record).__name__}"))
    given = record.get(column)
    if not isinstance(given, str):
        reason = f"its fields are {', '.join(map(repr, record)) or 'none'}" if column not in record else ""
        remedy = "Name the column with task.source_column"
        raise DataError(fault(f"input:{number}:{column}", "a text", given, reason, remedy))
    return record, given


def _chunks(stream: BinaryIO) -> Iterator[list[bytes]]:
    """Yield the lines that have come, without waiting for more while there is something to do."""
    rest = b""
    while data := _read(stream):
        *lines, rest = (rest + data).split(b"\n")
        for start in range(0, len(lines), CHUNK):
            yield lines[start : start + CHUNK]
    if rest:
        yield [rest]


def _read(stream: BinaryIO) -> bytes:
    try:
        data: bytes = stream.read1(READ_BYTES)  # type: ignore[attr-defined]  # at most one read of the pipe or file
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(fault("input", "a file that can be read to its end", None, str(error))) from error
    return data


def open_input(name: str) -> AbstractContextManager[BinaryIO]:
    """Open a file or pipe (unzipped where its name ends in `.gz`), or standard input for `-`.

    Raises:
        DataError: When it cannot be read.
    """
    if name == "-":
        return nullcontext(sys.stdin.buffer)
    path = Path(name)
    try:
        return cast(BinaryIO, gzip.open(path)) if path.name.endswith(".gz") else path.open("rb")
    except OSError as error:
        raise DataError(fault("input", "a file, or - for standard input", name, error.strerror or "")) from error


@contextmanager
def open_output(name: str) -> Iterator[Callable[[str], object]]:
    """Open what takes output lines: standard output for `-`, else a file that appears whole when all is written.

    A pipe or device (`/dev/null`) is written to as it stands.

    Raises:
        DataError: When it cannot be written.
    """
    if name == "-":
        yield console.out
        return
    path = Path(name)
    plain = path.is_file() or not path.exists()
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp") if plain else path
    try:
        file = beside.open("w", encoding="utf-8")
    except OSError as error:
        raise DataError(fault("output", "a file that can be written", name, error.strerror or "")) from error
    try:
        with file:
            yield lambda text: file.write(text + "\n")
        if plain:
            beside.replace(path)
    finally:
        if plain:
            beside.unlink(missing_ok=True)
