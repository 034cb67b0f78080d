"""A large file is read once and mapped from then on; what `load_file` says of it holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from encdec_train.data import load
from encdec_train.data.load import Rows, Sides, load_file, open_file
from encdec_train.errors import ConfigError, DataError

COLUMNS = ("source", "target")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "CACHED_FROM_BYTES", 0)
    monkeypatch.setattr(load, "_BATCH_ROWS", 3)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def opened(path: Path, cache: Path, **options: Any) -> Rows:
    sides = Sides(*COLUMNS, options.pop("reverse", False))
    return open_file(cache, path, sides, key="task.train_file", **options)


ROWS = [{"source": f"s{n}", "target": [f"t{n}", "u"] if n == 4 else f"t{n}"} for n in range(7)]


@pytest.mark.parametrize("own_ids", [False, True])
@pytest.mark.parametrize("limit", [None, 5])
def test_mapped_rows_are_those_that_are_read(tmp_path: Path, own_ids: bool, limit: int | None) -> None:
    rows = [{**row, "id": f"r{n}"} for n, row in enumerate(ROWS)] if own_ids else ROWS
    path = write(tmp_path / "f.jsonl", rows)
    plain = load_file(path, COLUMNS, key="task.train_file", limit=limit)
    for _ in range(2):
        assert opened(path, tmp_path / "cache", limit=limit) == plain


def test_sides_are_swapped_as_load_file_does(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", ROWS[:4])
    found = opened(path, tmp_path / "cache", reverse=True)
    assert found == load_file(path, Sides(*COLUMNS, True), key="task.train_file")
    assert (found.sources[1], found.targets[1], found.references[1]) == ("t1", "s1", ["s1"])
    with pytest.raises(DataError, match=r"task.reverse: .*f.jsonl:line 5 has references besides its target"):
        opened(write(tmp_path / "f.jsonl", ROWS), tmp_path / "cache", reverse=True)


def test_a_second_start_reads_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = write(tmp_path / "f.jsonl", ROWS), list[object]()
    monkeypatch.setattr(load, "_read", lambda *args, read=load._read: (reads.append(1), read(*args)))
    first = opened(path, tmp_path / "cache")
    assert opened(write(tmp_path / "moved.jsonl", ROWS), tmp_path / "cache") == first  # by content, not by name
    assert len(reads) == 1
    for options in ({"limit": 4}, {"reverse": True, "limit": 4}):
        opened(path, tmp_path / "cache", **options)
    opened(write(tmp_path / "f.jsonl", ROWS[:6]), tmp_path / "cache")
    assert len(reads) == 4


def test_few_rows_and_small_files_are_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "f.jsonl", ROWS)
    assert opened(path, tmp_path / "cache", limit=3).sources == ["s0", "s1", "s2"]
    monkeypatch.setattr(load, "CACHED_FROM_BYTES", 1 << 20)
    assert len(opened(path, tmp_path / "cache")) == 7
    assert not (tmp_path / "cache").exists()


BAD = {
    "bad row": [*ROWS, {"source": "a", "target": 3}],
    "same id": [{**row, "id": "x" if n in {1, 5} else str(n)} for n, row in enumerate(ROWS)],
    "no id": [{**row, "id": n} if n != 3 else row for n, row in enumerate(ROWS)],
    "no rows": [],
    "only bad rows": [{"source": "a", "target": 3}] * 4,
}


@pytest.mark.parametrize("case", BAD)
def test_the_message_is_load_files_and_nothing_is_left(tmp_path: Path, case: str) -> None:
    path = write(tmp_path / "f.jsonl", BAD[case])
    with pytest.raises(DataError) as plain:
        load_file(path, COLUMNS, key="task.train_file")
    with pytest.raises(DataError) as mapped:
        opened(path, tmp_path / "cache")
    assert str(mapped.value) == str(plain.value)
    assert list((tmp_path / "cache" / "rows").iterdir()) == []


@pytest.mark.faults
def test_a_full_disk_is_no_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """An Arrow writer on a full disk."""

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def write_batch(self, _: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.ipc.new_file", lambda *_: Full())
    with pytest.raises(ConfigError, match="run.cache_dir: expected a folder to write to, got '.*cache'; .*No space"):
        opened(write(tmp_path / "f.jsonl", ROWS), tmp_path / "cache")
    assert list((tmp_path / "cache" / "rows").iterdir()) == []


def test_records_set_aside_are_remembered_with_the_name_that_the_file_has_now(tmp_path: Path) -> None:
    rows = [*ROWS[:1], {"source": "", "target": "t"}, *ROWS[1:], *[ROWS[0]] * 100]
    path = write(tmp_path / "f.jsonl", rows)
    with pytest.raises(DataError, match=r"f.jsonl:line 2:source: expected a text; it is empty"):
        opened(path, tmp_path / "cache")
    reason = "line 2:source: expected a text; it is empty."
    for name in ("f.jsonl", "moved.jsonl"):
        found = opened(path.rename(path := tmp_path / name), tmp_path / "cache", skip=True)
        assert found == load_file(path, COLUMNS, key="task.train_file", skip=True)
        assert found.set_aside == ({"file": str(path), "line": 2, "reason": reason},)
    with pytest.raises(DataError, match="line 2"):
        opened(path, tmp_path / "cache")
