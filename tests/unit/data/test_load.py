import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from encdec_train.data.load import Rows, Sides, load_file
from encdec_train.errors import DataError

PAIRS = [("der Hund", "the dog"), ("die Katze", "the cat")]
GOOD = Rows(["0", "1"], ["der Hund", "die Katze"], ["the dog", "the cat"], [["the dog"], ["the cat"]])


def to_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def to_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def to_tsv(rows: list[dict[str, Any]]) -> bytes:
    return "".join("\t".join(cells) + "\n" for cells in [list(rows[0]), *(list(row.values()) for row in rows)]).encode()


def to_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "f.jsonl": to_jsonl,
    "f.json": to_jsonl,
    "f.csv": to_csv,
    "f.tsv": to_tsv,
    "f.parquet": to_parquet,
}
LINES = to_jsonl([{"source": "a", "target": "b"}] * 3)


def load(path: Path, data: bytes, **options: Any) -> Rows:
    path.write_bytes(data)
    sides = Sides("source", "target", options.pop("reverse", False))
    return load_file(path, sides, key="task.train_file", **options)


def refusal(path: Path, data: bytes, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, data, **options)
    return str(caught.value).replace(f"{path.parent}/", "")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_format_reads_the_same_rows(tmp_path: Path, name: str, zipped: bool) -> None:
    data = WRITERS[name]([{"source": source, "target": target} for source, target in PAIRS])
    path = tmp_path / (f"{name}.GZ" if zipped else name)
    assert load(path, gzip.compress(data) if zipped else data) == GOOD


@pytest.mark.parametrize("name", WRITERS)
def test_one_row_is_enough_and_other_columns_are_left_alone(tmp_path: Path, name: str) -> None:
    data = WRITERS[name]([{"note": "n", "target": "b", "id": "x7", "source": "a"}])
    assert load(tmp_path / name, data) == Rows(["x7"], ["a"], ["b"], [["b"]])


UNUSUAL = [
    "👩‍👩‍👧 family",  # joined by U+200D
    "שלום עולם \u202bאבג\u202c",  # right to left
    "x\u2028y\u2029z\x85w\x0bv\x0cu\x1cq",  # line ends for Unicode, not for files
    "\ufeff is no mark inside a file",
    '"quoted" and "" twice',
    " kept \u00a0",
    "x" * 1_000_000,
]


@pytest.mark.parametrize("name", WRITERS)
def test_unusual_text_arrives_unchanged(tmp_path: Path, name: str) -> None:
    data = WRITERS[name]([{"source": text, "target": f"{text}!"} for text in UNUSUAL])
    rows = load(tmp_path / name, data)
    assert rows.sources == UNUSUAL
    assert rows.targets == [f"{text}!" for text in UNUSUAL]


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "f.parquet"])
def test_byte_order_mark_carriage_returns_and_blank_lines_are_layout(tmp_path: Path, name: str) -> None:
    data = WRITERS[name]([{"source": source, "target": target} for source, target in PAIRS])
    lines = data.replace(b"\r\n", b"\n").splitlines()
    data = b"\xef\xbb\xbf" + b"\r\n\r\n".join(lines)  # no line end at the end
    assert load(tmp_path / name, data) == GOOD


def test_csv_quotes_and_tsv_does_not(tmp_path: Path) -> None:
    rows = load(tmp_path / "f.csv", b'source,target\n"one\ntwo, ""x""",b\nc,d\n')
    assert (rows.sources, rows.targets) == (['one\ntwo, "x"', "c"], ["b", "d"])
    rows = load(tmp_path / "f.tsv", b'source\ttarget\n"one, ""x""\t"b\n')
    assert (rows.sources, rows.targets) == (['"one, ""x""'], ['"b'])


def test_csv_leaves_the_field_limit_of_the_process_as_it_was(tmp_path: Path) -> None:
    before = csv.field_size_limit(1234)
    load(tmp_path / "f.csv", b"source,target\na,b\nc,d\n", limit=1)
    assert csv.field_size_limit(before) == 1234


@pytest.mark.parametrize("name", ["f.jsonl", "f.parquet"])
def test_references_are_a_list_of_targets_or_stand_beside_the_target(tmp_path: Path, name: str) -> None:
    rows = load(
        tmp_path / name, WRITERS[name]([{"source": "a", "target": ["b", "c"]}, {"source": "d", "target": ["e"]}])
    )
    assert (rows.targets, rows.references) == (["b", "e"], [["b", "c"], ["e"]])
    rows = load(tmp_path / name, WRITERS[name]([{"source": "a", "target": "b", "references": ["c", "d"]}]))
    assert (rows.targets, rows.references) == (["b"], [["c", "d"]])


def test_references_can_be_the_target_column_and_csv_holds_one(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(to_jsonl([{"source": "a", "references": ["b", "c"]}]))
    rows = load_file(path, ("source", "references"), key="task.test_file")
    assert (rows.targets, rows.references) == (["b"], [["b", "c"]])
    rows = load(tmp_path / "f.csv", b"source,target,references\na,b,c\n")
    assert (rows.targets, rows.references) == (["b"], [["c"]])


@pytest.mark.parametrize("name", ["f.jsonl", "f.parquet"])
def test_ids_may_be_numbers(tmp_path: Path, name: str) -> None:
    data = WRITERS[name]([{"id": 7, "source": "a", "target": "b"}, {"id": -1, "source": "a", "target": "b"}])
    assert load(tmp_path / name, data).ids == ["7", "-1"]


def test_limit_reads_no_further_than_it_needs(tmp_path: Path) -> None:
    data = LINES + b"not JSON\n"
    assert len(load(tmp_path / "f.jsonl", data, limit=3)) == 3
    assert len(load(tmp_path / "f.jsonl", data, limit=2)) == 2
    assert "line 4: expected a JSON object" in refusal(tmp_path / "f.jsonl", data, limit=4)


def test_reverse_swaps_the_sides(tmp_path: Path) -> None:
    rows = load(tmp_path / "f.jsonl", to_jsonl([{"id": "x", "source": "a", "target": "b"}]), reverse=True)
    assert rows == Rows(["x"], ["b"], ["a"], [["a"]])


def test_reverse_of_several_references_is_refused(tmp_path: Path) -> None:
    data = LINES + to_jsonl([{"source": "a", "target": "b", "references": ["b", "c"]}])
    assert refusal(tmp_path / "f.jsonl", data, reverse=True) == (
        "task.reverse: expected false, got True; "
        "f.jsonl:line 4 has references besides its target, which have no source."
    )


def zero_middle(data: bytes) -> bytes:
    return data[:40] + bytes(40) + data[80:]


ROW = b'{"source": "a", "target": "b"}\n'
# name, content, the whole message: what a reader of it sees first is the key, then the place
BAD_ROWS = [
    ("f.jsonl", ROW + b'{"source": "a"\n', "line 2: expected a JSON object; Expecting ',' delimiter at character 16."),
    ("f.jsonl", ROW + b"[1]\n", "line 2: expected a JSON object; its type is list. Write one object a line."),
    ("f.jsonl", ROW + b"7\n", "line 2: expected a JSON object; its type is int. Write one object a line."),
    ("f.jsonl", ROW + b"[" * 100_000 + b"\n", "line 2: expected a JSON object; maximum recursion depth exceeded"),
    ("f.jsonl", b"1" * 5000 + b"\n", "line 1: expected a JSON object; Exceeds the limit (4300 digits)"),
    ("f.jsonl", b'{"a": 1, "a": 2}\n', "line 1: expected a JSON object; field 'a' stands twice."),
    ("f.jsonl", b"\n\n" + ROW + b'{"source": "a\xff"}\n', "line 4: expected UTF-8; byte 14 is 0xff. Save the"),
    ("f.jsonl", gzip.compress(ROW, mtime=0), "line 1: expected UTF-8; byte 2 is 0x8b. Name it .gz."),
    ("f.jsonl", ROW + b'{"source": "a"}\n', "line 2:target: expected a text; this row has no such field."),
    ("f.jsonl", b'{"source": "a", "target": null}\n', "line 1:target: expected a text; it is null."),
    ("f.jsonl", b'{"source": 3, "target": "b"}\n', "line 1:source: expected a text, got 3; its type is int."),
    ("f.jsonl", b'{"source": true, "target": "b"}\n', "line 1:source: expected a text, got True; its type is bool."),
    ("f.jsonl", b'{"source": ["a"], "target": "b"}\n', "line 1:source: expected a text, got ['a']; its type is list."),
    ("f.jsonl", b'{"source": {"de": "a"}, "target": "b"}\n', "got {'de': 'a'}; its type is dict."),
    ("f.jsonl", b'{"source": [%s1], "target": "b"}\n' % (b"1," * 99), f"got '{str([1] * 99)[:60]}…'; its type is"),
    ("f.jsonl", b'{"source": "a", "target": []}\n', "line 1:target: expected one text or more, got []."),
    ("f.jsonl", b'{"source": "a", "target": ["b", 3]}\n', "line 1:target[1]: expected a text, got 3; its type is int."),
    ("f.jsonl", b'{"source": "a", "target": ["b", " "]}\n', "line 1:target[1]: expected a text; it is only white"),
    ("f.jsonl", b'{"source": "a", "target": "b", "references": [null]}\n', "line 1:references[0]: expected a text; it"),
    ("f.jsonl", b'{"source": "a", "target": ["b"], "references": ["b"]}\n',
     "line 1:target: expected a text; it is a list, and `references` stands beside it."),
    ("f.jsonl", b'{"source": "", "target": "b"}\n', "line 1:source: expected a text; it is empty."),
    ("f.jsonl", b'{"source": "a", "target": "\\u3000\\n"}\n', "line 1:target: expected a text; it is only white"),
    ("f.jsonl", b'{"source": "a\\ud83d", "target": "b"}\n',
     "line 1:source: expected a text; character 2, U+D83D, is half of a surrogate pair."),
    ("f.jsonl", b'{"source": "abc\\u0000", "target": "b"}\n', "line 1:source: expected a text; character 4 is NUL."),
    ("f.jsonl", b'{"id": 1.5, "source": "a", "target": "b"}\n', "line 1:id: expected a text, got 1.5; its type"),
    ("f.jsonl", b'{"id": true, "source": "a", "target": "b"}\n', "line 1:id: expected a text, got True; its type"),
    ("f.jsonl", b'{"id": null, "source": "a", "target": "b"}\n', "line 1:id: expected a text; it is null."),
    ("f.jsonl", b'{"id": 1, "source": "a", "target": "b"}\n' + ROW,
     "line 2:id: expected an id; it has none, and other rows have one."),
    ("f.jsonl", b'{"id": 1, "source": "a", "target": "b"}\n\n{"id": "1", "source": "a", "target": "b"}\n',
     "line 3:id: expected an id of its own, got '1'; line 1 has the same."),
    ("f.csv", b"id,source,target\nx,a,b\nx,a,b\n", "line 3:id: expected an id of its own, got 'x'; line 2 has"),
    ("f.csv", b"source,target\na,b\n,b\n", "line 3:source: expected a text; it is empty."),
    ("f.csv", b'source,target\n"a\nb",c\na\n', "line 4: expected 2 fields as in the header, got 1."),
    ("f.csv", b"source,target\na,b,c\n", "line 2: expected 2 fields as in the header, got 3."),
    ("f.csv", b"source,target,source\na,b,c\n", "line 1: expected names of columns; 'source' stands twice."),
    ("f.csv", b'source,target\na,"b\nc,d\n', "line 2: expected a row of CSV; unexpected end of data; nothing"),
    ("f.csv", b'source,target\n"a"x,b\n', "line 2: expected a row of CSV; ',' expected after '\"'; nothing"),
    ("f.csv", b"source,target\na,\xe9\nc,d\n", "line 2: expected UTF-8; byte 3 is 0xe9. Save the file as UTF-8."),
    ("f.csv", b"source,target\na,b\0\n", "line 2:target: expected a text; character 2 is NUL."),
    ("f.csv", b"source,targ\xe9t\na,b\n", "line 1: expected UTF-8; byte 12 is 0xe9. Save the file as UTF-8."),
    ("f.tsv", b"source\ttarget\na\tb\tc\n", "line 2: expected 2 fields as in the header, got 3."),
    ("f.tsv", b"source\ttarget\na\t\n", "line 2:target: expected a text; it is empty."),
    ("f.tsv", b"source\ttarget\n\xed\xa0\x80\tb\n", "line 2: expected UTF-8; byte 1 is 0xed. Save the file as UTF-8."),
    ("f.tsv", b"a\ta\nb\tc\n", "line 1: expected names of columns; 'a' stands twice."),
    ("f.parquet", to_parquet([{"source": 3, "target": "b"}]), "row 1:source: expected a text, got 3; its type is int."),
    ("f.parquet", to_parquet([{"source": b"a", "target": "b"}]), "row 1:source: expected a text, got b'a'; its type"),
    ("f.parquet", to_parquet([{"source": "a", "target": "b"}, {"source": "a", "target": None}]),
     "row 2:target: expected a text; it is null."),
    ("f.parquet", to_parquet([{"source": "a", "target": [3]}]), "row 1:target[0]: expected a text, got 3; its type"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "message"), BAD_ROWS)
def test_a_bad_row_is_named_with_file_row_and_field(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    text = refusal(tmp_path / name, data)
    assert text.startswith(f"task.train_file: {name}:")
    assert message in text
    assert "\n" not in text


def broken_text_parquet() -> bytes:
    """Strings that are not UTF-8, which the writer of pyarrow does not notice."""
    bad = pa.array([b"\xff" if n == 4500 else b"a" for n in range(5000)]).view(pa.string())
    sink = io.BytesIO()
    parquet.write_table(pa.table({"source": bad, "target": pa.array(["b"] * 5000)}), sink)
    return sink.getvalue()


def bent_parquet() -> bytes:
    """One text is another than was written: only the checksum of its page can tell."""
    sink = io.BytesIO()
    table = pa.table({"source": ["cats"], "target": ["dogs"]})
    parquet.write_table(table, sink, compression="none", use_dictionary=False, write_page_checksum=True)
    return sink.getvalue().replace(b"\x04\0\0\0cats", b"\x04\0\0\0bats")


def twice_named_parquet() -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table([pa.array(["a"])] * 2, names=["source", "source"]), sink)
    return sink.getvalue()


GZ = gzip.compress(to_jsonl([{"source": str(n), "target": str(n * n)} for n in range(5000)]), mtime=0)
PARQUET = to_parquet([{"source": f"{n} cats", "target": f"{n} dogs"} for n in range(100)])
CORRUPT = "expected a file that can be read to its end, got 'f"
BAD_FILES = [
    ("f.jsonl", b"", "task.train_file: expected a file with rows, got 'f.jsonl'; it has none."),
    ("f.jsonl", b"\xef\xbb\xbf", "it has none."),
    ("f.jsonl", b"\n \n", "it has none."),
    ("f.csv", b"", "it has none."),
    ("f.csv", b"source,target\n", "it has none."),
    ("f.tsv", b"source\ttarget\r\n", "it has none."),
    ("f.jsonl.gz", gzip.compress(b""), "it has none."),
    ("f.parquet", to_parquet([{"source": "a", "target": "b"}][:0]), "it has none."),
    ("f.jsonl.gz", GZ[:-9], f"{CORRUPT}.jsonl.gz'; after 4935 rows: Compressed file ended before the end-"),
    ("f.jsonl.gz", GZ[: len(GZ) // 2], "Compressed file ended before the end-of-stream marker"),
    ("f.jsonl.gz", GZ[:200] + b"\xff" * 50 + GZ[250:], "Write or fetch the file again, or make it readable."),
    ("f.jsonl.gz", GZ[:-8] + bytes(8), "CRC check failed"),
    ("f.jsonl.gz", LINES, f"{CORRUPT}.jsonl.gz'; after 0 rows: Not a gzipped file"),
    ("f.csv.gz", gzip.compress(b"source,target\na,b\n")[:-4], f"{CORRUPT}.csv.gz'"),
    ("f.parquet", b"", f"{CORRUPT}.parquet'; after 0 rows: Parquet file size is 0 bytes"),
    ("f.parquet", PARQUET[:-20], f"{CORRUPT}.parquet'; after 0 rows: Parquet magic bytes not found"),
    ("f.parquet", zero_middle(PARQUET), f"{CORRUPT}.parquet'; after 0 rows: "),
    ("f.parquet", bent_parquet(), "CRC checksum verification failed"),
    ("f.parquet.gz", gzip.compress(PARQUET)[:-30], f"{CORRUPT}.parquet.gz'; after 0 rows: "),
    ("f.parquet", broken_text_parquet(), "f.parquet:row 4501: expected UTF-8; a text in it is something else."),
    ("f.parquet", twice_named_parquet(), "f.parquet:schema: expected names of columns; 'source' stands twice."),
    ("f.xlsx", b"x",
     "task.train_file: expected a file that ends in .jsonl, .json, .csv, .tsv, .parquet, or one of these and .gz, got"),
    ("f.gz", b"x", "or one of these and .gz, got 'f.gz'."),
    ("f.jsonl", b'{"sources": "a", "target": "b"}\n',
     "task.source_column: expected a column of f.jsonl (task.train_file), whose first row has 'sources', 'target', "
     "got 'source'. Set task.source_column; the nearest name is 'sources'."),
    ("f.csv", b"de,en\na,b\n", "whose first row has 'de', 'en', got 'target'. Set task.target_column."),
    ("f.parquet", to_parquet([{"source": "a", "summary": "b"}]), "has 'source', 'summary', got 'target'."),
    ("f.jsonl", to_jsonl([{f"c{n:02}": "" for n in range(25)}]), "'c19' and 5 more, got 'source'."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "message"), BAD_FILES)
def test_a_bad_file_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    assert message in refusal(tmp_path / name, data)


def test_both_missing_columns_are_named_at_once(tmp_path: Path) -> None:
    lines = refusal(tmp_path / "f.tsv", b"a\tb\nc\td\n").split("\n")
    assert [line.split(":")[0] for line in lines] == ["task.source_column", "task.target_column"]


def test_columns_are_checked_on_the_first_row_that_can_be_read(tmp_path: Path) -> None:
    assert "whose first row has 'src'" in refusal(tmp_path / "f.jsonl", b'oops\n{"src": "a"}\n')


@pytest.mark.parametrize(("num_bad", "more"), [(2, ""), (5, ""), (6, "\n  and 1 more."), (1000, "\n  and 995 more.")])
def test_five_bad_rows_are_shown_and_all_are_counted(tmp_path: Path, num_bad: int, more: str) -> None:
    shown = [
        f"\n  f.jsonl:line {n + 4}:source: expected a text, got {n}; its type is int." for n in range(min(num_bad, 5))
    ]
    text = refusal(tmp_path / "f.jsonl", LINES + to_jsonl([{"source": n, "target": "b"} for n in range(num_bad)]))
    assert text == f"task.train_file: {num_bad} rows of f.jsonl cannot be used:{''.join(shown)}{more}"


def test_bad_ids_take_their_place_among_the_other_bad_rows(tmp_path: Path) -> None:
    rows = [{"id": 1, "source": "a", "target": "b"}] * 2 + [{"id": n, "source": 0, "target": "b"} for n in range(2, 8)]
    text = refusal(tmp_path / "f.jsonl", to_jsonl(rows))
    assert re.findall(r"line (\d+):(\w+): expected", text) == [("2", "id"), *((str(n), "source") for n in range(3, 7))]
    assert "7 rows" in text
    assert "and 2 more" in text


def test_a_missing_file_names_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(
        DataError, match=r"train.json'; there is no such file. Set task.x_file; the nearest name is 'train.jsonl'"
    ):
        load_file(tmp_path / "train.json", ("source", "target"), key="task.x_file")
    with pytest.raises(
        DataError, match=r"task.x_file: expected a file, got '.*'; there is no folder .*/gone. Set task.x_file\."
    ):
        load_file(tmp_path / "gone" / "train.json", ("source", "target"), key="task.x_file")


def test_a_folder_and_an_unreadable_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="task.x_file: expected a file, got '.*'; it is a folder"):
        load_file(tmp_path, ("source", "target"), key="task.x_file")
    with pytest.raises(DataError, match="after 0 rows: .*File name too long"):
        load_file(tmp_path / f"{'x' * 300}.jsonl", ("source", "target"), key="task.x_file")


def test_damage_of_the_stream_is_what_the_standard_library_calls_it() -> None:
    """The three kinds of error that reading a damaged file raises; each is one of `BAD_FILES`."""
    kinds = {}
    for damage, data in {"cut": GZ[:-9], "bits": GZ[:200] + b"\xff" * 50 + GZ[250:], "plain": LINES}.items():
        with pytest.raises((OSError, EOFError, zlib.error)) as caught:
            gzip.decompress(data)
        kinds[damage] = type(caught.value)
    assert kinds == {"cut": EOFError, "bits": zlib.error, "plain": gzip.BadGzipFile}


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40).filter(
    str.strip
)
ROWS = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=ROWS, own_ids=st.booleans())
@pytest.mark.parametrize("name", ["f.jsonl", "f.parquet", "f.jsonl.gz"])
def test_any_text_makes_the_round_trip(
    tmp_path: Path, name: str, pairs: list[tuple[str, list[str]]], own_ids: bool
) -> None:
    ids = [f"r{n}" if own_ids else str(n) for n in range(len(pairs))]
    records = [{"source": source, "target": targets} for source, targets in pairs]
    records = [{"id": own, **record} for own, record in zip(ids, records, strict=True)] if own_ids else records
    data = WRITERS[name.removesuffix(".gz")](records)
    rows = load(tmp_path / name, gzip.compress(data) if name.endswith(".gz") else data)
    assert rows == Rows(ids, [pair[0] for pair in pairs], [pair[1][0] for pair in pairs], [pair[1] for pair in pairs])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
def test_any_text_makes_the_round_trip_through_csv(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    rows = load(tmp_path / "f.csv", to_csv([{"source": source, "target": target} for source, target in pairs]))
    assert list(zip(rows.sources, rows.targets, strict=True)) == pairs


@pytest.mark.skipif("ENCDEC_DATA" not in os.environ, reason="ENCDEC_DATA is not set: no real data")
def test_real_files_have_the_rows_that_their_notes_say() -> None:
    data = Path(os.environ["ENCDEC_DATA"])
    wikisplit = load_file(data / "wikisplit/validation.jsonl.gz", ("source", "target"), key="task.validation_file")
    assert (len(wikisplit), wikisplit.references[0]) == (1000, [wikisplit.targets[0]])
    turk = load_file(data / "turkcorpus/test.jsonl.gz", ("source", "target"), key="task.test_file")
    assert (len(turk), {len(references) for references in turk.references}) == (359, {8})
    assert turk.targets == [references[0] for references in turk.references]
