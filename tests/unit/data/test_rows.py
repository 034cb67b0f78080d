"""Columns in an Arrow table are read like lists."""

import pickle
import re
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from encdec_train.data.load import Rows
from encdec_train.data.rows import Column

TABLE = pa.table({"source": ["a", "b", "c"], "target": ["x", "y", "z"], "references": [None, ["y", "w"], None]})
LISTS = Rows(["0", "1", "2"], ["a", "b", "c"], ["x", "y", "z"], [["x"], ["y", "w"], ["z"]])


def test_a_table_is_equal_to_lists() -> None:
    assert Rows.of_table(TABLE) == LISTS
    assert LISTS == Rows.of_table(TABLE)  # noqa: SIM300 - either side is asked
    assert Rows.of_table(TABLE.slice(1)) != LISTS
    assert Rows.of_table(TABLE.append_column("id", pa.array(["p", "q", "r"]))).ids == ["p", "q", "r"]


def test_over_chunks_indices_and_slices_are_a_lists() -> None:
    table = pa.concat_tables([pa.table({"source": [f"s{n}"], "target": [f"t{n}"]}) for n in range(9)])
    sources: Column[str] = Rows.of_table(table).sources  # type: ignore[assignment]
    plain = [f"s{n}" for n in range(9)]
    assert list(sources) == plain
    assert [sources[0], sources[-1], sources[8]] == ["s0", "s8", "s8"]
    for part in (slice(2, 5), slice(7, 99), slice(5, 2), slice(None, None, -2), slice(-3, None)):
        assert sources[part] == plain[part]
    assert (sources.index("s4"), "s9" in sources, len(sources)) == (4, False, 9)
    with pytest.raises(IndexError):
        sources[9]


def test_rows_of_a_table_are_pickled() -> None:
    assert pickle.loads(pickle.dumps(Rows.of_table(TABLE))) == LISTS


def test_mapped_rows_are_those_of_the_file(tmp_path: Path) -> None:
    with pa.OSFile(str(tmp_path / "f.arrow"), "wb") as sink, pa.ipc.new_file(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
    assert Rows.mapped(tmp_path / "f.arrow") == LISTS


def resident_bytes(file: Path) -> int:
    """Count the bytes of a file's maps that are in this process's memory."""
    found = re.findall(rf"{re.escape(str(file))}\nSize:.*?\nRss: +(\d+) kB", Path("/proc/self/smaps").read_text(), re.S)
    assert found
    return 1024 * sum(map(int, found))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
def test_who_goes_through_all_mapped_rows_holds_few_of_them(tmp_path: Path) -> None:
    file, texts = tmp_path / "f.arrow", [f"{n:0>1000}" for n in range(10_000)]
    Rows([str(n) for n in range(10_000)], texts, texts, [[text] for text in texts]).write(file)
    rows, most = Rows.mapped(file), 0
    for start in range(0, 10_000, 1000):
        assert rows.sources[start : start + 1000] == texts[start : start + 1000]
        assert rows.targets[start] == texts[start]
        most = max(most, resident_bytes(file))
    assert file.stat().st_size > 30_000_000
    assert 0 < most < 5_000_000
    assert pickle.loads(pickle.dumps(rows)) == rows
