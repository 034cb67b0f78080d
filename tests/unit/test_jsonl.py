"""Rows that this package wrote, and what a kill may have left of the last one."""

from pathlib import Path

import pytest

from encdec_train.errors import DataError
from encdec_train.jsonl import parse_object, read_rows


def test_a_line_that_was_never_finished_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n\n{"step": 2}\n{"step": 3', encoding="utf-8")
    assert list(read_rows(tmp_path / "metrics.jsonl")) == [{"step": 1}, {"step": 2}]


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert list(read_rows(tmp_path / "metrics.jsonl")) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [("{broken", "expected a JSON object; it is damaged: Expecting"), ("[1, 2]", "expected a JSON object, got [1, 2]")],
)
def test_a_damaged_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert str(caught.value).startswith(f"{path}:2: {message}")
    with pytest.raises(DataError, match=r"^manifest: expected a JSON object"):
        parse_object(line, "manifest")
