"""Records that are set aside by choice (docs/adr/0021), and what is refused all the same."""

from pathlib import Path
from typing import Any

import pytest

from encdec_train.data.load import Rows, load_file
from encdec_train.errors import DataError


def load(path: Path, data: bytes, **options: Any) -> Rows:
    path.write_bytes(data)
    return load_file(path, ("source", "target"), key="task.train_file", **options)


def refusal(path: Path, data: bytes, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, data, **options)
    return str(caught.value).replace(f"{path.parent}/", "")


def many(bad: dict[int, bytes], num_rows: int = 300) -> bytes:
    """Write lines counted from 1, some of them bad."""
    return b"".join(bad.get(n) or b'{"source": "s%d", "target": "t%d"}\n' % (n, n) for n in range(1, num_rows + 1))


EMPTY, BROKEN, LATIN1 = b'{"source": "", "target": "t"}\n', b'{"source": "s",\n', b'{"source": "\xe9", "target": "t"}\n'


def test_a_few_bad_records_are_set_aside_where_that_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    rows = load(file, many({1: BROKEN, 150: EMPTY, 300: LATIN1}), skip=True)
    assert list(rows.sources) == [f"s{n}" for n in range(2, 300) if n != 150]
    assert rows.ids[:2] + rows.ids[-1:] == ["0", "1", "296"]
    reasons = [
        "line 1: expected a JSON object; Expecting property name enclosed in double quotes at character 17.",
        "line 150:source: expected a text; it is empty.",
        "line 300: expected UTF-8; byte 13 is 0xe9. Save the file as UTF-8.",
    ]
    where = zip((1, 150, 300), reasons, strict=True)
    assert list(rows.set_aside) == [{"file": str(file), "line": number, "reason": reason} for number, reason in where]
    assert refusal(file, many({150: EMPTY})) == f"task.train_file: f.jsonl:{reasons[1]}"


@pytest.mark.parametrize(("num_rows", "num_bad"), [(300, 4), (99, 1), (20_000, 101)])
def test_many_bad_records_are_a_broken_file(tmp_path: Path, num_rows: int, num_bad: int) -> None:
    kept = load(tmp_path / "f.jsonl", many(dict.fromkeys(range(2, num_bad + 1), EMPTY), num_rows), skip=True)
    assert (len(kept), len(kept.set_aside)) == (num_rows - num_bad + 1, num_bad - 1)
    said = refusal(tmp_path / "f.jsonl", many(dict.fromkeys(range(2, num_bad + 2), EMPTY), num_rows), skip=True)
    head = f"task.train_file: {num_bad} rows of f.jsonl cannot be used; task.bad_records=skip sets at most 1% and 100 "
    assert said.splitlines()[:2] == [
        f"{head}rows aside:",
        "  f.jsonl:line 2:source: expected a text; it is empty.",
    ]
    assert len(said.splitlines()) == min(num_bad, 5) + 1 + (num_bad > 5)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("f.csv", b"source,target\n" + b"a,b\n" * 200 + b'"a"x,b\n', "nothing after it was read"),
        ("f.csv", b"source,source\n" + b"a,b\n" * 200, "'source' stands twice"),
        ("f.jsonl", b"".join(b'{"source": "a", "target": "b", "id": "%d"}\n' % max(n, 1) for n in range(200)),
         "line 1 has the same"),
        ("f.jsonl", b"", "it has none"),
    ],
)  # fmt: skip
def test_what_is_no_single_records_fault_is_refused_whatever_the_policy(
    tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    assert said in refusal(tmp_path / name, data, skip=True)
    assert refusal(tmp_path / name, data, skip=True) == refusal(tmp_path / name, data)


def test_a_limit_counts_the_records_that_can_be_used(tmp_path: Path) -> None:
    rows = load(tmp_path / "f.jsonl", many({2: EMPTY, 250: EMPTY}), skip=True, limit=200)
    assert (len(rows), rows.sources[-1], [one["line"] for one in rows.set_aside]) == (200, "s201", [2])
