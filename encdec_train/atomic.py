"""Files and folders that appear whole: written beside their place, flushed to disk, renamed.

Whoever reads them, or comes back after a kill or a full disk, finds the old one or the new one and never half of one.
"""

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def write(path: Path, data: bytes) -> None:
    """Write a file, and the folders above it that are missing.

    Raises:
        OSError: It cannot be written; what was there is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        beside.unlink(missing_ok=True)  # a link there would be followed
        beside.write_bytes(data)
        sync(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as JSON."""
    write(path, f"{json.dumps(values, indent=1, ensure_ascii=False)}\n".encode())


def install(built: Path, folder: Path, *, replace: bool) -> None:
    """Put a finished folder into its place.

    Args:
        built: The folder as it was made, on the file system of its place; gone afterwards.
        folder: Its place.
        replace: Whether what is there goes. If not, it stays: another process was faster, and may be reading its own.

    Raises:
        OSError: Something cannot be flushed or renamed.
    """
    for path in (*built.rglob("*"), built):
        sync(path)
    old = _aside(folder) if replace else None
    try:
        built.rename(folder)
    except OSError:
        if old is not None and old.is_dir():
            old.rename(folder)
        if replace or not folder.is_dir():
            raise
        shutil.rmtree(built)
    sync(folder.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove a folder if it is there; nobody sees a part of it meanwhile."""
    shutil.rmtree(_aside(folder), ignore_errors=True)


def _aside(folder: Path) -> Path:
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    with suppress(FileNotFoundError):
        folder.rename(aside)
    return aside


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
