import gzip
import io
import json
import os
import re
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from encdec_train.decoding.loop import Found, Hypothesis
from encdec_train.errors import DataError
from encdec_train.serving.generate import CHUNK, READ_BYTES, Generator, open_input, open_output, stream


class Letters:
    """A codec of letters: a source is 0, its letters, 1."""

    def encode_sources(self, texts: Sequence[str]) -> list[list[int]]:
        return [[0, *map(ord, text), 1] for text in texts]

    def cut_source(self, ids: list[int], limit: int) -> list[int]:
        return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids)).upper()

    source_tokenizer = SimpleNamespace(all_special_ids=[0, 1, ord("?")])


class Calls(list[list[list[int]]]):
    """What was searched for, one entry a call."""


@pytest.fixture
def calls() -> Calls:
    return Calls()


class Echo:
    """An engine that gives the source's letters back, the last source first."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def search(self, sources: dict[int, list[int]], settings: object, name: object) -> Iterator[Found]:
        self._calls.append(list(sources.values()))
        for index in reversed(sources):
            outputs = [Hypothesis(list(sources[index][1:-1]), 0.0)] if len(sources[index]) else []
            yield Found(index, outputs, close=False)


def letters(calls: Calls, max_source_tokens: int = 100, **more: Any) -> Generator:
    codec: Any = Letters()
    engine: Any = Echo(calls)
    return Generator(engine, codec, SimpleNamespace(prefix=""), max_source_tokens, **more)  # type: ignore[arg-type]


def test_a_generator_answers_every_text_in_order(calls: Calls) -> None:
    assert letters(calls)(["ab", "", "c", "  \t"]) == ["AB", "", "C", ""]
    assert calls == [[[0, 97, 98, 1], [0, 99, 1]]]


def test_nothing_is_asked_for_nothing(calls: Calls) -> None:
    assert letters(calls)([]) == []
    assert letters(calls)(["", " "]) == ["", ""]
    assert calls in ([], [[], []])


def test_texts_of_unknown_tokens_are_counted_and_not_searched_for(calls: Calls) -> None:
    generator = letters(calls)
    assert generator(["??", "a?", "", "b"]) == ["", "A?", "", "B"]
    assert calls == [[(), [0, 97, 63, 1], [0, 98, 1]]]
    assert (generator.num_texts, generator.num_empty) == (4, 2)
    generator(["?"])
    assert (generator.num_texts, generator.num_empty) == (5, 3)


def test_long_sources_are_cut_and_counted(calls: Calls) -> None:
    generator = letters(calls, 4)
    assert generator(["ab", "abc", "abcd"]) == ["AB", "AB", "AB"]
    assert generator.num_truncated == 2
    generator(["abc"])
    assert generator.num_truncated == 3


def test_each_search_runs_in_the_precision_asked_for(calls: Calls) -> None:
    entered: list[int] = []

    @contextmanager
    def precision() -> Any:
        entered.append(len(calls))
        yield

    generator = letters(calls, precision=precision)
    generator(["a"])
    generator(["b"])
    assert entered == [0, 1]


def shouted(data: bytes, column: str | None = None, size: int = READ_BYTES, **more: bool) -> tuple[list[str], int]:
    """Stream bytes through a generator that shouts; `size` bytes come at a read."""

    class Slow(io.BytesIO):
        def read1(self, _size: int = -1) -> bytes:
            return self.read(size)

    written: list[str] = []
    generator: Any = lambda texts: [text.upper() for text in texts]  # noqa: E731
    return written, stream(generator, Slow(data), written.append, column, **more)


LINES = [
    (b"", []),
    (b"a", ["A"]),
    (b"a\n", ["A"]),
    (b"a\nb", ["A", "B"]),
    (b"a\n\n b \n\n", ["A", "", " B ", ""]),
    (b"a\r\nb\r\n", ["A", "B"]),
    (b"\xef\xbb\xbfa\nb\n", ["A", "B"]),
    ("é ü\n日本\n".encode(), ["É Ü", "日本"]),
    ("a\u2028b\x0bc\n".encode(), ["A\u2028B\x0bC"]),
]


@pytest.mark.parametrize("size", [1, 3, READ_BYTES])
@pytest.mark.parametrize(("data", "lines"), LINES)
def test_a_line_in_is_a_line_out(data: bytes, lines: list[str], size: int) -> None:
    assert shouted(data, size=size) == (lines, len(lines))


def test_a_file_goes_through_in_chunks() -> None:
    sizes: list[int] = []
    generator: Any = lambda texts: sizes.append(len(texts)) or list(texts)  # noqa: E731
    written: list[str] = []
    data = b"".join(b"%d\n" % number for number in range(2 * CHUNK + 1))
    assert stream(generator, io.BytesIO(data), written.append, None) == 2 * CHUNK + 1
    assert sizes == [CHUNK, CHUNK, 1]
    assert written == [str(number) for number in range(2 * CHUNK + 1)]


class Endless(io.RawIOBase):
    """A pipe that makes its lines when it is read, and looks at how many were answered then."""

    def __init__(self, num_lines: int, written: "Counted") -> None:
        super().__init__()
        self._rest, self._num_lines, self._made, self._written = bytearray(), num_lines, 0, written
        self.most_ahead = 0

    def read1(self, size: int) -> bytes:
        whole = self._made - (1 if self._rest else 0)  # lines whose end was read
        assert self._written.num_lines == whole
        while len(self._rest) < size and self._made < self._num_lines:
            self._rest += b"" if self._made % 7 == 0 else b"%d %s" % (self._made, b"x" * 50)
            self._rest += b"\n"
            self._made += 1
        self.most_ahead = max(self.most_ahead, self._made - self._written.num_lines)
        data = bytes(self._rest[:size])
        del self._rest[:size]
        return data


class Counted:
    """Takes lines in order and keeps none."""

    def __init__(self) -> None:
        self.num_lines = 0

    def __call__(self, line: str) -> None:
        number = self.num_lines
        assert line == ("" if number % 7 == 0 else f"{number} {'X' * 50}")
        self.num_lines += 1


def test_lines_without_end_go_through_in_order_and_in_little_memory() -> None:
    written = Counted()
    lines: Any = Endless(100_000, written)
    generator: Any = lambda texts: [text.upper() for text in texts]  # noqa: E731
    tracemalloc.start()
    try:
        assert stream(generator, lines, written, None) == 100_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written.num_lines == 100_000
    assert lines.most_ahead < 2.2 * READ_BYTES / 56  # a read at a time; the next when all its lines were answered
    assert peak < 6 * READ_BYTES  # of the 5 MB that came and the 5 MB that went


def test_an_output_stays_on_its_line() -> None:
    generator: Any = lambda texts: ["one\ntwo" for _ in texts]  # noqa: E731
    plain, records = list[str](), list[str]()
    stream(generator, io.BytesIO(b"x\n"), plain.append, None)
    stream(generator, io.BytesIO(b'{"source": "x"}\n'), records.append, "source")
    assert plain == ["one two"]
    assert [json.loads(line)["prediction"] for line in records] == ["one\ntwo"]


def test_a_record_in_is_the_record_with_its_prediction() -> None:
    data = '{"n": 1, "text": "é"}\n\n{"text": "b", "prediction": "old"}\n'.encode()
    written, count = shouted(data, column="text")
    assert written == ['{"n": 1, "text": "é", "prediction": "É"}', "", '{"text": "b", "prediction": "B"}']
    assert count == 3


LOOKED_AT = [
    (
        b'\n {"text": "a"}\n{"text": "b"}\n',
        ["", '{"text": "a", "prediction": "A"}', '{"text": "b", "prediction": "B"}'],
    ),
    (b'{"text": "a"\n{"text": "b"}\n', ['{"TEXT": "A"', '{"TEXT": "B"}']),
    (b'[1]\n{"text": "b"}\n', ["[1]", '{"TEXT": "B"}']),
    (b"3\n", ["3"]),
    (b"\n \n", ["", " "]),
]


@pytest.mark.parametrize("size", [1, READ_BYTES])
@pytest.mark.parametrize(("data", "lines"), LOOKED_AT)
def test_the_first_line_of_a_pipe_says_what_it_holds(data: bytes, lines: list[str], size: int) -> None:
    assert shouted(data, column="text", size=size, look=True) == (lines, len(lines))


BAD = [
    (b"a\nb\n\xe9\nc\n", None, "input:3: expected UTF-8 text; 'utf-8' codec can't decode byte 0xe9 in position 0"),
    (b'{"t": "a"}\n{"t": "b"}\n{"t"\n', "t", "input:3: expected a JSON object in UTF-8; Expecting ':' delimiter"),
    (b'{"t": "a"}\n{"t": "b"}\n{"t": "\xff"}\n', "t", "input:3: expected a JSON object in UTF-8; 'utf-8' codec"),
    (b'{"t": "a"}\n{"t": "b"}\n["t"]\n', "t", "input:3: expected a JSON object; its type is list."),
    (b'{"t": "a"}\n{"t": "b"}\n{"t": 3}\n', "t",
     "input:3:t: expected a text, got 3. Name the column with task.source_column."),
    (b'{"t": "a"}\n{"t": "b"}\n{"x": "c", "y": 1}\n', "t",
     "input:3:t: expected a text; its fields are 'x', 'y'. Name the column with task.source_column."),
    (b'{"t": "a"}\n{"t": "b"}\n{}\n', "t", "input:3:t: expected a text; its fields are none. Name"),
    (b'{"t": "a"}\n{"t": "b"}\n' + b"[" * 5_000 + b"\n", "t", "input:3: expected a JSON object in UTF-8; "),
]  # fmt: skip


@pytest.mark.parametrize("size", [2, READ_BYTES])
@pytest.mark.parametrize(("data", "column", "text"), BAD)
def test_lines_before_a_bad_one_are_answered(data: bytes, column: str | None, text: str, size: int) -> None:
    written: list[str] = []
    generator: Any = lambda texts: [text.upper() for text in texts]  # noqa: E731

    class Slow(io.BytesIO):
        def read1(self, _size: int = -1) -> bytes:
            return self.read(size)

    with pytest.raises(DataError, match=f"^{re.escape(text)}"):
        stream(generator, Slow(data), written.append, column)
    assert [line if column is None else json.loads(line)["prediction"] for line in written] == ["A", "B"]


def test_a_person_gets_an_answer_before_the_next_line() -> None:
    reader, writer = os.pipe()
    answered = threading.Event()
    written: list[str] = []

    def write(line: str) -> None:
        written.append(line)
        answered.set()

    generator: Any = lambda texts: [text.upper() for text in texts]  # noqa: E731
    with os.fdopen(reader, "rb") as lines:
        thread = threading.Thread(target=stream, args=(generator, lines, write, None))
        thread.start()
        for number in range(3):
            os.write(writer, b"line\n")
            assert answered.wait(timeout=10)
            answered.clear()
            assert written == ["LINE"] * (number + 1)
        os.close(writer)
        thread.join(timeout=10)
    assert not thread.is_alive()


def test_input_is_a_file_or_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.txt").write_bytes(b"file\n")
    with open_input(str(tmp_path / "in.txt")) as lines:
        assert lines.read() == b"file\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"typed\n")))
    with open_input("-") as lines:
        assert lines.read() == b"typed\n"
    assert not sys.stdin.buffer.closed


def test_input_may_be_zipped(tmp_path: Path) -> None:
    path = tmp_path / "in.txt.gz"
    path.write_bytes(gzip.compress(b"zipped\n"))
    with open_input(str(path)) as lines:
        assert stream(lambda texts: list(texts), lines, [].append, None) == 1


def test_input_may_be_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    thread = threading.Thread(target=pipe.write_bytes, args=(b"piped\n",))
    thread.start()
    with open_input(str(pipe)) as lines:
        assert lines.read() == b"piped\n"
    thread.join()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none.txt", "No such file or directory"), ("none.txt.gz", "No such file or directory"), ("", "Is a directory")],
)
def test_an_input_that_is_not_there(name: str, reason: str, tmp_path: Path) -> None:
    path = str(tmp_path / name)
    with pytest.raises(DataError, match=f"^input: expected a file, or - for standard input, got '{path}'; {reason}.$"):
        open_input(path)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"plain text\n"])
def test_an_input_that_ends_too_soon(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "in.gz"
    path.write_bytes(damage(gzip.compress(b"a\n" * 5000, mtime=0)))
    with open_input(str(path)) as lines, pytest.raises(DataError, match="^input: expected a file that can be read to"):
        stream(lambda texts: list(texts), lines, [].append, None)


def test_output_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    with open_output(str(path)) as write:
        write("é")
        write("")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "é\n\n"
    assert [file.name for file in tmp_path.iterdir()] == ["out.txt"]


def test_an_output_that_exists_is_kept_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old\n", encoding="utf-8")

    def fail() -> None:
        with open_output(str(path)) as write:
            write("new")
            raise DataError("stop")

    with pytest.raises(DataError, match="stop"):
        fail()
    assert path.read_text(encoding="utf-8") == "old\n"
    assert [file.name for file in tmp_path.iterdir()] == ["out.txt"]


def test_output_may_be_a_pipe_or_a_device(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    thread = threading.Thread(target=lambda: read.append(pipe.read_text(encoding="utf-8")))
    thread.start()
    with open_output(str(pipe)) as write:
        write("piped")
    thread.join()
    assert read == ["piped\n"]
    assert pipe.is_fifo()


def test_output_may_be_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with open_output("-") as write:
        write("é")
    assert capsys.readouterr().out == "é\n"


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "none" / "out.txt"
    with (
        pytest.raises(DataError, match=f"^output: expected a file that can be written, got '{path}'; No such file"),
        open_output(str(path)),
    ):
        pass
    with (
        pytest.raises(DataError, match="^output: expected a file that can be written, .*; Is a directory"),
        open_output(str(tmp_path)),
    ):
        pass
