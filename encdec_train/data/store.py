"""Folders that are built once, by one process while the others wait, and used whole or not at all.

A folder is built beside its place, flushed, and renamed. The lock is the file system's (flock): it is let go of when
its process dies, however that happens, and who holds it next removes what the dead one left. On a file system without
locks several processes may build at once; one of them wins, and the result is the same.
"""

import errno
import fcntl
import json
import mmap
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from encdec_train import atomic, console
from encdec_train.errors import ConfigError, fault
from encdec_train.fingerprint import file_sha256

if TYPE_CHECKING:
    import pyarrow as pa

_MANIFEST, _VERIFIED = "MANIFEST.json", ".verified.json"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}

Facts = Mapping[str, Any]


def obtain(folder: Path, build: Callable[[Path], Facts]) -> Facts:
    """Return what is known of a folder's content, after building it where it is not there or damaged.

    Args:
        folder: Its place; the last part of its name is a key of everything that decides its content.
        build: Fills an empty folder, and returns what `facts` returns later: plain values.

    Raises:
        ConfigError: It cannot be written.
    """
    if folder.is_symlink():
        raise ConfigError(
            fault("run.cache_dir", "folders and no links", str(folder), "what is written lands elsewhere")
        )
    if (found := facts(folder)) is not None:
        return found
    with writing(folder), _only_one(folder) as alone:
        if (found := facts(folder)) is not None:  # the one before has built it
            return found
        for left in folder.parent.glob(f".{folder.name}.[!l]*") if alone else ():  # of a killed process
            shutil.rmtree(left, ignore_errors=True)
        built = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        try:
            built.mkdir(parents=True)
            made = build(built)
            (built / _MANIFEST).write_text(json.dumps({"facts": made, "files": _hashes(built)}, indent=1))
            (built / _VERIFIED).write_text(json.dumps(_stamps(built)))
            if facts(folder) is None:
                atomic.discard(folder)  # it is damaged, or not there
            atomic.install(built, folder, replace=False)
        finally:
            shutil.rmtree(built, ignore_errors=True)
    return made


def facts(folder: Path) -> Facts | None:
    """Return what `build` said of a folder, or None when the folder is not as it was built.

    Sizes count every time; hashes only when a file is another one (modification time, inode) than was hashed last.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        wanted, seen = manifest["files"], _stamps(folder)
        if {name: one["bytes"] for name, one in wanted.items()} != {name: stamp[0] for name, stamp in seen.items()}:
            return None
        if _read_stamps(folder) != seen:
            if _hashes(folder) != wanted:
                return None
            with suppress(OSError):  # a cache that cannot be written is hashed at every start
                atomic.write_json(folder / _VERIFIED, seen)
        return dict(manifest["facts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the system says about `<run.cache_dir>/<kind>/<folder>` into a message."""
    try:
        yield
    except OSError as error:
        place, remedy = str(folder.parent.parent), "Free space there or set run.cache_dir"
        raise ConfigError(fault("run.cache_dir", "a folder to write to", place, str(error), remedy)) from error


def map_table(file: Path) -> tuple["pa.Table", mmap.mmap]:
    """Map an Arrow file; the map can be told to let go of the pages that were read (`madvise`)."""
    import pyarrow as pa

    with file.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all()
    mapped.madvise(mmap.MADV_DONTNEED)  # the system maps many pages around each batch's head
    return table, mapped


def _names(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name != _MANIFEST and not file.name.startswith("."))


def _hashes(folder: Path) -> dict[str, dict[str, int | str]]:
    return {file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in _names(folder)}


def _stamps(folder: Path) -> dict[str, list[int]]:
    stats = {file.name: file.stat() for file in _names(folder)}
    return {name: [stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in stats.items()}


def _read_stamps(folder: Path) -> object:
    try:
        return json.loads((folder / _VERIFIED).read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def _only_one(folder: Path) -> Iterator[bool]:
    """Wait until this process is the only one here; False where the file system has no locks."""
    path = folder.with_name(f".{folder.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        with os.fdopen(lock, "a+", encoding="utf-8") as file:
            locked = _lock(file, path)
            if locked and not _is_at(file, path):
                continue  # the one before has removed it
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}")
            file.flush()
            try:
                yield locked
            finally:
                path.unlink(missing_ok=True)
            return


def _lock(file: IO[str], path: Path) -> bool:
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            console.say(f"waiting for {file.read().strip() or 'another process'}, which builds {path.parent}")
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _is_at(file: IO[str], path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
