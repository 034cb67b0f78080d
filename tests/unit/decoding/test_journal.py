"""The journal: what was written before a kill counts, half a line does not, and the file is in data order."""

import json
from pathlib import Path

import pytest

from encdec_train.decoding.journal import Journal
from encdec_train.errors import ConfigError, DataError


def line(index: int, values: object) -> str:
    return json.dumps([index, values["prediction"]]) + "\n"  # type: ignore[index]


def written(path: Path) -> list[list[object]]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def folders(path: Path) -> list[Path]:
    return sorted(path.glob(".*.journal"))


def test_any_order_becomes_data_order(tmp_path: Path) -> None:
    target = tmp_path / "sub" / "test.jsonl"
    with Journal(target, "key", 4, 0) as first, Journal(target, "key", 4, 1) as second:
        assert first.missing().tolist() == [0, 1, 2, 3]
        for journal, index in ((first, 3), (second, 0), (first, 1), (second, 2)):
            journal.append(index, {"prediction": f"é {index}"})
        assert second.missing().tolist() == []
        assert not target.exists()
        first.finish(line)
    assert written(target) == [[index, f"é {index}"] for index in range(4)]
    assert [path.name for path in target.parent.iterdir()] == ["test.jsonl"]


def test_another_start_goes_on_with_any_number_of_ranks(tmp_path: Path) -> None:
    target = tmp_path / "test.jsonl"
    for rank in (0, 1, 2):
        with Journal(target, "key", 5, rank) as journal:
            journal.append(rank, {"prediction": "a"})
    with Journal(target, "key", 5, 0) as journal:
        assert journal.missing().tolist() == [3, 4]
        with pytest.raises(DataError, match=r"^run.output_dir: expected predictions of all ranks, got '2 less'"):
            journal.finish(line)
        journal.append(4, {"prediction": "b"})
        journal.append(3, {"prediction": "c"})
        journal.finish(line)
    assert written(target) == [[0, "a"], [1, "a"], [2, "a"], [3, "c"], [4, "b"]]


@pytest.mark.parametrize("torn", [b'{"index": 1, "predic', b'{"index": 1, "prediction": "b"}', b"x" * 200_000])
def test_half_a_line_is_cut_off(torn: bytes, tmp_path: Path) -> None:
    target = tmp_path / "test.jsonl"
    with Journal(target, "key", 2, 0) as journal:
        journal.append(0, {"prediction": "a"})
    (folder,) = folders(tmp_path)
    with (folder / "rank_00000.jsonl").open("ab") as file:
        file.write(torn)
    with Journal(target, "key", 2, 0) as journal:
        assert journal.missing().tolist() == [1]
        journal.append(1, {"prediction": "whole"})
        journal.finish(line)
    assert written(target) == [[0, "a"], [1, "whole"]]


def test_a_damaged_line_is_decoded_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "test.jsonl", "key", 3, 0) as journal:
        for index in range(3):
            journal.append(index, {"prediction": "a"})
    (path,) = folders(tmp_path)[0].iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0" * (len(lines[1]) - 1) + b"\n" + lines[2] + b"[1]\n" + b'{"index": 7}\n')
    with Journal(tmp_path / "test.jsonl", "key", 3, 0) as journal:
        assert journal.missing().tolist() == [1]


def test_other_settings_have_another_journal_until_one_is_finished(tmp_path: Path) -> None:
    with Journal(tmp_path / "test.jsonl", "old", 1, 0) as journal:
        journal.append(0, {"prediction": "old"})
    with Journal(tmp_path / "other.jsonl", "old", 1, 0):
        pass
    with Journal(tmp_path / "test.jsonl", "new", 1, 0) as journal:
        assert journal.missing().tolist() == [0]
        journal.append(0, {"prediction": "new"})
        journal.finish(line)
    assert written(tmp_path / "test.jsonl") == [[0, "new"]]
    assert [path.name for path in folders(tmp_path)] == [".other.jsonl.old.journal"]


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    with (
        Journal(tmp_path / "test.jsonl", "key", 1, 0),
        pytest.raises(ConfigError, match=r"^run.name: expected a name of its own; another process decodes into"),
        Journal(tmp_path / "test.jsonl", "key", 1, 0),
    ):
        pass
    with Journal(tmp_path / "test.jsonl", "key", 1, 0) as journal:
        assert journal.missing().tolist() == [0]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"^run.output_dir: expected a folder that can be written"),
        Journal(tmp_path / "file" / "test.jsonl", "key", 1, 0),
    ):
        pass
