"""Tables become rows: whole columns at a time, what cannot be used left out or refused, files of many forms."""

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from encdec_train.compose import compose
from encdec_train.config import TaskConfig
from encdec_train.data import hub_data
from encdec_train.data.hub_data import is_plain, part, rows_of, tables_of, tables_of_file, taken
from encdec_train.data.load import Rows
from encdec_train.errors import DataError
from encdec_train.tasks import TASKS


def task(name: str = "xsum", *overrides: str) -> TaskConfig:
    config: TaskConfig = compose("train", [f"task={name}", "model.encoder=bert", *overrides]).task
    return config


def table(sources: list[Any], targets: list[Any], **more: list[Any]) -> pa.Table:
    texts = {"document": pa.array(sources, pa.string()), "summary": pa.array(targets, pa.string())}
    return pa.table({**texts, **{name: pa.array(values) for name, values in more.items()}})


def read(*tables: pa.Table, split: str = "train", limit: int | None = None, config: TaskConfig | None = None) -> Rows:
    return rows_of(tables, TASKS["xsum"], config or task(), split, "place", limit)


def test_tables_become_rows_in_order() -> None:
    found = read(table(["a", "b"], ["A", "B"]), table(["c"], ["C\nc"]))
    assert found == Rows(["0", "1", "2"], ["a", "b", "c"], ["A", "B", "C\nc"], [["A"], ["B"], ["C\nc"]])


def test_own_ids_are_kept_where_each_row_has_one_of_its_own() -> None:
    assert read(table(["a", "b"], ["A", "B"], id=["x", "y"])).ids == ["x", "y"]
    assert read(table(["a", "b"], ["A", "B"], id=[7, 5])).ids == ["7", "5"]
    assert read(table(["a", "b"], ["A", "B"], id=["x", "x"])).ids == ["0", "1"]
    assert read(table(["a", "b"], ["A", "B"], id=["x", None])).ids == ["0", "1"]


def test_a_limit_reads_no_further() -> None:
    def tables() -> Any:
        yield table(["a", "b"], ["A", "B"])
        raise AssertionError("read on")

    assert rows_of(tables(), TASKS["xsum"], task(), "train", "place", 2).ids == ["0", "1"]
    assert rows_of(tables(), TASKS["xsum"], task(), "train", "place", 1).ids == ["0"]


def test_reverse_swaps_the_sides() -> None:
    found = read(table(["a"], ["A"]), config=task("xsum", "task.reverse=true"))
    assert (found.sources, found.targets, found.references) == (["A"], ["a"], [["a"]])


BAD = table(["a", None, "c", " \n\u00a0", "e", "f"], ["A", "B", "", "D", "E\0", "F"])


def test_training_rows_without_text_are_left_out_and_counted(capfd: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "validation"):
        found = read(table(["first"], ["First"]), BAD, split=split)
        assert (found.ids, found.sources) == (["0", "1", "6"], ["first", "a", "f"])
        said = "row 3 (source), row 4 (target), row 5 (source), row 6 (target)"
        assert f"{split}: 4 of 7 rows are left out, no text on one side: {said}\n" in capfd.readouterr().err


def test_test_rows_without_text_are_refused() -> None:
    message = r"^place:test: expected a text on both sides of every row; 4 of 6 rows have none: row 2 \(source\), row 3"
    with pytest.raises(DataError, match=message):
        read(BAD, split="test")
    with pytest.raises(DataError, match="8 of 12 rows have none: .*row 8 .source., …"):
        read(BAD, BAD, split="newstest2016")


def test_rows_after_the_last_one_that_is_wanted_do_not_matter(capfd: pytest.CaptureFixture[str]) -> None:
    assert read(BAD, split="test", limit=1).sources == ["a"]
    assert read(BAD, limit=1).sources == ["a"]
    assert "left out" not in capfd.readouterr().err
    with pytest.raises(DataError, match=r"^place:test: .*; 4 of 6 rows have none: row 2 \(source\)"):
        read(BAD, split="test", limit=2)


def test_nothing_left_is_refused() -> None:
    for tables in ([], [table([""], [""])]):
        with pytest.raises(DataError, match=r"^place: expected rows of train; there are none"):
            read(*tables)


def test_parquet_is_read_in_batches_with_the_columns_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_data, "BATCH_ROWS", 2)
    paths = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    for start, path in enumerate(paths):
        parquet.write_table(table(["a", "b", "c"], ["A", "B", "C"], label=[1, 2, start], id=["x", "y", "z"]), path)
    columns = TASKS["xsum"].columns(task())
    found = list(tables_of(paths, columns, "place"))
    assert [len(batch) for batch in found] == [2, 1, 2, 1]
    assert {tuple(batch.column_names) for batch in found} == {("document", "summary", "id")}


def test_what_is_no_utf8_is_refused(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")])
    path = tmp_path / "0.parquet"
    parquet.write_table(pa.table({"document": bad, "summary": ["A"]}), path)
    with pytest.raises(DataError, match=r"^place: expected a parquet file, got .*0.parquet'; .*UTF8"):
        list(tables_of([path], TASKS["xsum"].columns(task()), "place"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [{"de": "a", "fr": "b"}],
            r"0.parquet:translation: expected texts named en and de, got 'struct<de: string, fr: ",
        ),
        (["a"], r"0.parquet:translation: expected texts named en and de, got 'string'"),
        ([{"de": 1, "en": "b"}], r"expected texts named en and de, got 'struct<de: int64, en: string>'"),
    ],
)
def test_a_struct_of_other_fields_is_named(values: list[Any], message: str, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"translation": values}), tmp_path / "0.parquet")
    with pytest.raises(DataError, match=message):
        list(tables_of([tmp_path / "0.parquet"], TASKS["wmt14_en_de"].columns(task("wmt14_en_de")), "place"))


def of_file(path: Path, name: str) -> Rows:
    config, spec = task(name), TASKS[name]
    tables = tables_of_file(path, "task.train_file", spec, spec.columns(config))
    return rows_of(tables, spec, config, "test", str(path), None)


WIKI = "\" A '' , b .\t\" A '' . <::::> B .\nC , d .\tC . <::::> D .\n"


@pytest.mark.parametrize("name", ["test.tsv", "test.tsv.gz", "train.tsv.zip"])
def test_wikisplits_own_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("train.tsv", WIKI)
            packed.writestr("__MACOSX/._train.tsv", "x")
    else:
        path.write_bytes(gzip.compress(WIKI.encode()) if name.endswith(".gz") else WIKI.encode())
    assert not is_plain(path, "task.train_file", ("source", "target"))
    found = of_file(path, "wikisplit")
    assert (found.sources, found.targets) == (["\" A '' , b .", "C , d ."], ["\" A '' . B .", "C . D ."])


def test_files_with_a_tasks_own_columns(tmp_path: Path) -> None:
    names = ["incoherent_first_sentence", "incoherent_second_sentence", "connective_string"]
    names += ["coherent_first_sentence", "coherent_second_sentence"]
    tsv = tmp_path / "train_balanced.tsv"
    tsv.write_text("\t".join(names) + '\nA "\tB .\tand\tA " and B .\t\nC .\tD .\t\tC .\tD .\n', encoding="utf-8")
    assert not is_plain(tsv, "task.train_file", ("source", "target"))
    found = of_file(tsv, "discofuse")
    assert (found.sources, found.targets) == (['A " B .', "C . D ."], ['A " and B .', "C . D ."])
    jsonl = tmp_path / "test.jsonl"
    jsonl.write_text(json.dumps({"translation": {"en": "a", "de": "b", "x": 1}}) + "\n")
    assert of_file(jsonl, "wmt14_en_de").targets == ["b"]


def test_a_file_that_holds_pairs_is_plain(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"source": "a", "target": "b"}\n')
    assert is_plain(path, "task.train_file", ("source", "target"))
    assert not is_plain(path, "task.train_file", ("source", "summary"))
    with pytest.raises(DataError, match=r"^task.train_file: .*there is no such file"):
        is_plain(tmp_path / "nothing.tsv", "task.train_file", ("source", "target"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"translation": {"en": "a", "de": 5}}', r"^task.train_file: .*x.jsonl:1:translation: expected texts"),
        ('{"translation": {"en": "a", "de": "b"}}\n{"translation": "a"}', r"x.jsonl:2:translation: expected texts"),
        ('{"text": "a"}', r"x.jsonl:1:translation: .*no such field"),
        ('{"translation": {"en": "a", "de": "b"}}\n{', r"x.jsonl:2: line 2: expected a JSON object"),
    ],
)  # fmt: skip
def test_a_row_of_another_type_is_named(lines: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(lines + "\n")
    with pytest.raises(DataError, match=message):
        of_file(path, "wmt14_en_de")


@pytest.mark.parametrize(
    ("name", "data"), [("x.tsv.zip", b"PK\3\4 half"), ("x.tsv.gz", b"half"), ("x.tsv", b"\xff\t\n")]
)
def test_a_damaged_file_is_named(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert not is_plain(tmp_path / name, "task.train_file", ("source", "target"))
    with pytest.raises(
        DataError, match=rf"^task.train_file: expected a file that can be read to its end, got '\S+{name}'"
    ):
        of_file(tmp_path / name, "wikisplit")


def test_a_part_is_a_function_of_seed_and_size() -> None:
    assert part(20, 0.25, 0).tolist() == [4, 9, 14, 15, 16]  # the least of MT19937's known numbers: 0.549, 0.715, …
    assert part(20, 0.25, 1).tolist() != part(20, 0.25, 0).tolist()
    tenth, hundredth = part(10_000, 0.1, 3), part(10_000, 0.01, 3)
    assert (len(tenth), len(hundredth), len(part(3, 0.01, 0)), len(part(45, 1.0, 0))) == (1000, 100, 1, 45)
    assert set(hundredth) < set(tenth)
    assert np.all(np.diff(tenth) > 0)
    deciles = np.bincount(tenth // 1000)
    assert deciles.min() > 70  # of 100 each on average: standard deviation 9.5
    assert deciles.max() < 130


def test_rows_are_taken() -> None:
    rows = Rows(["x", "y", "z"], ["a", "b", "c"], ["A", "B", "C"], [["A"], ["B", "b"], ["C"]])
    assert taken(rows, np.array([0, 2])) == Rows(["x", "z"], ["a", "c"], ["A", "C"], [["A"], ["C"]], drawn_from=3)
