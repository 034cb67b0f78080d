"""What is written is there whole, flushed before it has its name, or what was there before is."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from encdec_train import atomic


def folder(path: Path, text: str) -> Path:
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "file").write_text(text)
    return path


def text_of(path: Path) -> str:
    return (path / "deep" / "file").read_text()


def names(path: Path) -> list[str]:
    return sorted(one.name for one in path.iterdir())


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record by name what is flushed and what gets its name, in order."""
    found: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def flushed(descriptor: int) -> None:
        found.append(f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def named(original: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def move(path: Path, target: Path) -> Path:
            moved = original(path, target)
            found.append(f"name {target.name}")
            return moved

        return move

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "rename", named(rename))
    monkeypatch.setattr(Path, "replace", named(replace))
    return found


def test_a_file_is_flushed_before_it_has_its_name(tmp_path: Path, events: list[str]) -> None:
    atomic.write(tmp_path / "run" / "file", b"data")
    assert (tmp_path / "run" / "file").read_bytes() == b"data"
    assert events == ["flush .file.tmp", "name file", "flush run"]


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.json"
    atomic.write_json(path, {"é": 1})
    assert path.read_text(encoding="utf-8") == '{\n "é": 1\n}\n'
    with pytest.raises(TypeError):
        atomic.write_json(path, {"x": {1, 2}})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": 1}
    atomic.write_json(path, {"x": 2})
    assert names(path.parent) == ["metrics.json"]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("before")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write(tmp_path / "file", b"after")
    assert (tmp_path / "file").read_text() == "before"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_is_flushed_before_it_has_its_name(tmp_path: Path, events: list[str], replace: bool) -> None:
    atomic.install(folder(tmp_path / "built", "new"), tmp_path / "folder", replace=replace)
    assert text_of(tmp_path / "folder") == "new"
    assert set(events[:3]) == {"flush built", "flush deep", "flush file"}
    assert events[3:] == ["name folder", f"flush {tmp_path.name}"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize(("replace", "text"), [(True, "new"), (False, "old")])
def test_a_folder_that_is_there(tmp_path: Path, replace: bool, text: str) -> None:
    folder(tmp_path / "folder", "old")
    atomic.install(folder(tmp_path / "built", "new"), tmp_path / "folder", replace=replace)
    assert text_of(tmp_path / "folder") == text
    assert names(tmp_path) == ["folder"]


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").touch()
    with pytest.raises(NotADirectoryError):
        atomic.install(folder(tmp_path / "built", "new"), tmp_path / "folder", replace=False)


def test_a_folder_is_discarded_where_there_is_one(tmp_path: Path) -> None:
    for _ in range(2):
        folder(tmp_path / "folder", "old")
        atomic.discard(tmp_path / "folder")
        atomic.discard(tmp_path / "folder")
        assert names(tmp_path) == []


def test_a_link_in_the_place_of_the_file_beside_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".new.json.tmp").symlink_to(tmp_path / "precious")
    atomic.write(tmp_path / "new.json", b"data")
    assert (tmp_path / "precious").read_text() == "mine"
    assert ((tmp_path / "new.json").read_bytes(), (tmp_path / "new.json").is_symlink()) == (b"data", False)
