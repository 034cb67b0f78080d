"""The journal: what was decoded so far, by example, so that a killed evaluation goes on where it was.

Each rank appends a line to a file of its own as soon as an example is finished; the files lie in one folder, which is
named after everything that the predictions depend on. Whoever starts next, on however many ranks, reads all of them.
When nothing is missing, the lines become one file in data order, which appears whole, and the journal goes.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from encdec_train import atomic
from encdec_train.errors import ConfigError, DataError, fault

Ints = npt.NDArray[np.int64]


class Journal:
    """The journal of one prediction file; a context manager that holds this rank's part.

    Args:
        target: The prediction file.
        key: A hash of model, settings and sources: another one is another journal.
        num_examples: Of all ranks. Memory grows by 16 bytes an example, whatever is decoded.
        rank: Of this process.
    """

    def __init__(self, target: Path, key: str, num_examples: int, rank: int) -> None:
        self._target, self._rank = target, rank
        self._folder = target.with_name(f".{target.name}.{key}.journal")
        self._files: list[Path] = []
        self._file_of, self._offset_of = np.full(num_examples, -1), np.zeros(num_examples, np.int64)
        self._own: IO[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._own = (self._folder / f"rank_{self._rank:05d}.jsonl").open("a+b")
        except OSError as error:
            where = str(self._target.parent)
            raise ConfigError(fault("run.output_dir", "a folder that can be written", where, str(error))) from error
        try:
            fcntl.flock(self._own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._own.close()
            reason = f"another process decodes into {self._target}"
            raise ConfigError(fault("run.name", "a name of its own", None, reason)) from error
        self._drop_half_a_line(self._own)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own is not None:
            self._own.close()

    def missing(self) -> Ints:
        """Return the examples that no rank has finished, by number."""
        self._files, self._file_of[:] = sorted(self._folder.glob("rank_*.jsonl")), -1
        for number, path in enumerate(self._files):
            for offset, record in _lines(path):
                index = record.get("index")
                if isinstance(index, int) and 0 <= index < len(self._file_of):
                    self._file_of[index], self._offset_of[index] = number, offset
        return np.flatnonzero(self._file_of < 0)

    def append(self, index: int, values: Mapping[str, Any]) -> None:
        """Take note of a finished example; it survives the death of the process."""
        if self._own is None:
            raise RuntimeError("a journal is written inside of `with`")
        self._own.write(json.dumps({"index": index, **values}, ensure_ascii=False).encode() + b"\n")
        self._own.flush()

    def finish(self, line: Callable[[int, Mapping[str, Any]], str]) -> None:
        """Write the prediction file, in data order, and remove the journal; one rank calls it when all have finished.

        Args:
            line: Makes a line of a number and what was noted.

        Raises:
            DataError: An example is missing: the other ranks write elsewhere.
        """
        if len(missing := self.missing()):
            reason = "this rank does not see what the others wrote"
            remedy = "Choose a folder that all machines share"
            raise DataError(fault("run.output_dir", "predictions of all ranks", f"{len(missing)} less", reason, remedy))
        beside = self._folder / "whole"
        with beside.open("wb") as file:
            file.writelines(line(index, record).encode() for index, record in enumerate(self._records()))
        atomic.sync(beside)
        beside.replace(self._target)
        atomic.sync(self._target.parent)
        for folder in self._target.parent.glob(f".{self._target.name}.*.journal"):  # older settings' too
            shutil.rmtree(folder, ignore_errors=True)

    def _records(self) -> Iterator[Mapping[str, Any]]:
        files = [path.open("rb") for path in self._files]
        try:
            for number, offset in zip(self._file_of.tolist(), self._offset_of.tolist(), strict=True):
                files[number].seek(offset)
                yield json.loads(files[number].readline())
        finally:
            for file in files:
                file.close()

    def _drop_half_a_line(self, file: IO[bytes]) -> None:
        """Cut off what a killed process did not finish to write."""
        end = file.seek(0, os.SEEK_END)
        whole = end
        while whole:
            start = max(0, whole - (1 << 16))
            file.seek(start)
            found = file.read(whole - start).rfind(b"\n")
            if found >= 0:
                whole = start + found + 1
                break
            whole = start
        if whole < end:
            file.truncate(whole)


def _lines(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    """Yield where a record begins, and the record; what a crash of the machine damaged is decoded again."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if isinstance(record, dict):
                    yield offset, record
            offset += len(line)
