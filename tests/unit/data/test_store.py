"""Built once, by one process, whole or not used: with real processes that are really killed."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from encdec_train.data import store
from encdec_train.errors import ConfigError

BUILDER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from encdec_train.data import store

    folder, log, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

    def build(built):
        (built / "half").write_text("h")
        with log.open("a") as out:
            out.write("building\\n")
        time.sleep(pause)
        (built / "data").write_text("whole")
        (built / "half").unlink()
        return {"rows": 3}

    facts = store.obtain(folder, build)
    print(facts["rows"], (folder / "data").read_text())
""")


def builder(folder: Path, log: Path, pause: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", BUILDER, str(folder), str(log), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until_building(log: Path) -> None:
    for _ in range(600):
        if log.is_file():
            return
        time.sleep(0.1)
    raise TimeoutError(log)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.faults
def test_of_several_processes_one_builds_and_the_others_wait(tmp_path: Path) -> None:
    folder, log = tmp_path / "rows" / "key", tmp_path / "log"
    first = builder(folder, log, 3)
    until_building(log)
    others = [builder(folder, log, 0) for _ in range(2)]
    said = [process.communicate(timeout=60) for process in (first, *others)]
    assert [out for out, _ in said] == ["3 whole\n"] * 3
    assert log.read_text() == "building\n"
    assert all(f"waiting for process {first.pid} on {os.uname().nodename}, which builds" in err for _, err in said[1:])
    assert names(folder.parent) == ["key"]


@pytest.mark.faults
def test_what_a_killed_builder_left_is_not_used_and_goes(tmp_path: Path) -> None:
    folder, log = tmp_path / "rows" / "key", tmp_path / "log"
    killed = builder(folder, log, 600)
    until_building(log)
    waiting = builder(folder, log, 0)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert waiting.communicate(timeout=60)[0] == "3 whole\n"
    assert log.read_text() == "building\n" * 2
    assert names(folder.parent) == ["key"]
    assert names(folder) == [".verified.json", "MANIFEST.json", "data"]


def put(folder: Path, text: str = "whole") -> store.Facts:
    def build(built: Path) -> store.Facts:
        (built / "data").write_text(text)
        return {"text": text}

    return store.obtain(folder, build)


@pytest.mark.faults
def test_a_whole_folder_is_used_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "rows" / "key")
    (tmp_path / "rows" / "key" / ".verified.json").unlink(missing_ok=True)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("encdec_train.atomic.write", refuse)
    monkeypatch.setattr(Path, "open", refuse)  # the lock's file
    assert store.facts(tmp_path / "rows" / "key") is None  # `open` is needed to hash: nothing is taken on trust
    monkeypatch.undo()
    monkeypatch.setattr("encdec_train.atomic.write", refuse)
    assert put(tmp_path / "rows" / "key", "another") == {"text": "whole"}
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match="run.cache_dir: expected a folder to write to, got .*Read-only file system"):
        put(tmp_path / "rows" / "other")


def test_contents_are_hashed_only_when_the_file_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, hashed = tmp_path / "rows" / "key", list[str]()
    put(folder)
    original = store.file_sha256

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return original(path)

    monkeypatch.setattr(store, "file_sha256", counting)
    assert [store.facts(folder) for _ in range(3)] == [{"text": "whole"}] * 3
    assert hashed == []  # the builder has just done so
    (folder / ".verified.json").unlink()
    assert [store.facts(folder) for _ in range(3)] == [{"text": "whole"}] * 3
    assert hashed == ["data"]
    (folder / "data").write_text("weird")  # as long
    os.utime(folder / "data", (1, 1))
    assert store.facts(folder) is None
    assert put(folder) == {"text": "whole"}
    assert (folder / "data").read_text() == "whole"


def test_links_are_not_followed(tmp_path: Path) -> None:
    folder, elsewhere, precious = tmp_path / "rows" / "key", tmp_path / "elsewhere", tmp_path / "precious"
    precious.write_text("mine")
    folder.parent.mkdir()
    (folder.parent / ".key.lock").symlink_to(precious)
    with pytest.raises(ConfigError, match="run.cache_dir: expected a folder to write to"):
        put(folder)
    assert precious.read_text() == "mine"
    (folder.parent / ".key.lock").unlink()
    put(elsewhere)
    folder.symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="run.cache_dir: expected folders and no links, got '.*rows/key'"):
        put(folder)


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(built: Path) -> store.Facts:
        (built / "data").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match="No space left on device. Free space there or set run.cache_dir"):
        store.obtain(tmp_path / "rows" / "key", build)
    assert names(tmp_path / "rows") == []
