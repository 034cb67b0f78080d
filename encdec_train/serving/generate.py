"""`encdec generate`: a line in, a line out, in order, as it comes."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from encdec_train import console
from encdec_train.data.preprocess import TextCodec
from encdec_train.errors import DataError, fault

if TYPE_CHECKING:
    from transformers import EncoderDecoderModel

    from encdec_train.decoding.search import SearchSettings

CHUNK = 256  # lines decoded together when so many are waiting
READ_BYTES = 1 << 20


class Generator:
    """Turns texts into texts.

    Args:
        model: The pair, on its device.
        codec: Both tokenizers.
        settings: How to search.
        max_source_tokens: Longer sources are cut, special tokens kept.
        precision: Entered around each search.
    """

    def __init__(
        self,
        model: "EncoderDecoderModel",
        codec: TextCodec,
        settings: "SearchSettings",
        max_source_tokens: int,
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._model, self._codec, self._settings = model, codec, settings
        self.max_source_tokens, self._precision = max_source_tokens, precision
        self.num_truncated = 0

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Decode texts; an empty or blank text gives an empty text."""
        from encdec_train.decoding.search import decode

        asked = [index for index, text in enumerate(texts) if text.strip()]
        ids = self._codec.encode_sources([texts[index] for index in asked])
        self.num_truncated += sum(len(tokens) > self.max_source_tokens for tokens in ids)
        ids = [self._codec.cut_source(tokens, self.max_source_tokens) for tokens in ids]
        with self._precision():
            found = decode(self._model, ids, self._settings)
        outputs = [""] * len(texts)
        for index, tokens in zip(asked, found, strict=True):
            outputs[index] = self._codec.decode(tokens)
        return outputs


def stream(generator: Generator, lines: BinaryIO, write: Callable[[str], object], column: str | None) -> int:
    """Read lines, write a line for each, in order.

    What is waiting is decoded together, up to `CHUNK` lines; so a file goes through in large batches, and a person at a
    terminal gets an answer to each line.

    Args:
        generator: Turns texts into texts.
        lines: UTF-8 lines; plain text, or JSON objects when `column` is given.
        write: Takes one output line.
        column: The key of the source text in JSON input; the object comes back with `prediction` added.

    Returns:
        The number of lines.

    Raises:
        DataError: When a line is no UTF-8, or no such object; lines before it have been written.
    """
    count = 0
    for chunk in _chunks(lines):
        records = [_record(line, count + offset + 1, column) for offset, line in enumerate(chunk)]
        texts = generator([text for _, text in records])
        for (record, _), text in zip(records, texts, strict=True):
            answer = " ".join(text.split("\n"))
            write(answer if record is None else json.dumps({**record, "prediction": text}, ensure_ascii=False))
        count += len(chunk)
    return count


def _record(line: bytes, number: int, column: str | None) -> tuple[dict[str, object] | None, str]:
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        if column is None:
            return None, text
        record = json.loads(text)
    except ValueError as error:
        what = "UTF-8 text" if column is None else "a JSON object in UTF-8"
        raise DataError(fault(f"input:{number}", what, None, str(error))) from error
    if not isinstance(record, dict) or not isinstance(record.get(column), str):
        raise DataError(
            fault(f"input:{number}:{column}", "text", record, remedy="Name the column with task.source_column")
        )
    return record, record[column]


def _chunks(stream: BinaryIO) -> Iterator[list[bytes]]:
    """Yield the lines that have come, without waiting for more while there is something to do."""
    rest = b""
    while data := stream.read1(READ_BYTES):  # type: ignore[attr-defined]  # at most one read of the pipe or file
        *lines, rest = (rest + data).split(b"\n")
        for start in range(0, len(lines), CHUNK):
            yield lines[start : start + CHUNK]
    if rest:
        yield [rest]


def open_input(name: str) -> AbstractContextManager[BinaryIO]:
    """Open a file, or standard input for `-`.

    Raises:
        DataError: When there is no such file.
    """
    if name == "-":
        return nullcontext(sys.stdin.buffer)
    if not Path(name).is_file():
        raise DataError(fault("input", "a file, or - for standard input", name, "there is no such file"))
    return Path(name).open("rb")


@contextmanager
def open_output(name: str) -> Iterator[Callable[[str], object]]:
    """Open what takes output lines: standard output for `-`, else a file that appears whole when all is written."""
    if name == "-":
        yield console.out
        return
    path = Path(name)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        file = beside.open("w", encoding="utf-8")
    except OSError as error:
        raise DataError(fault("output", "a file that can be written", name, str(error))) from error
    with file:
        yield lambda text: file.write(text + "\n")
    beside.replace(path)
