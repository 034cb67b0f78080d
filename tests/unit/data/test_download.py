"""What fetching a file leaves alone; the server's part is in tests/integration/test_tasks.py."""

from pathlib import Path

import pytest

from encdec_train.data import download
from encdec_train.errors import DataError

URL = "http://127.0.0.1:9/files/test.tsv"


def write(_: str, path: Path) -> str:
    path.write_text("A , b .\tA . <::::> B .\n")
    return "etag"


def fetch(cache: Path) -> Path:
    return download.fetch_url(URL, "task.test_file", cache)[0]


def test_what_another_rank_has_fetched_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Path, int]] = []

    def slow(url: str, path: Path) -> str:
        if not seen:
            seen.append((path, 0))
            other = fetch(tmp_path)
            seen.append((other, other.stat().st_ino))
        return write(url, path)

    monkeypatch.setattr(download, "is_offline_mode", lambda: False)
    monkeypatch.setattr(download, "_download", slow)
    monkeypatch.setattr(download.atomic, "discard", lambda path: pytest.fail(f"{path} was removed"))
    mine = fetch(tmp_path)
    assert (mine, mine.stat().st_ino) == seen[1]
    assert [path.name for path in (tmp_path / "files").iterdir()] == [mine.parent.name]


def test_a_damaged_file_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "is_offline_mode", lambda: False)
    monkeypatch.setattr(download, "_download", write)
    whole = fetch(tmp_path).read_bytes()
    fetch(tmp_path).write_bytes(whole[:5])
    assert fetch(tmp_path).read_bytes() == whole
    monkeypatch.setattr(download, "is_offline_mode", lambda: True)
    fetch(tmp_path).write_bytes(whole[:5])
    with pytest.raises(DataError, match=r"and set task\.test_file to the file; the other splits then need their keys"):
        fetch(tmp_path)
