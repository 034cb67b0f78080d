"""Memory: what a CPU keeps, how much there is and was used, and how large a micro-batch may be after it ran out."""

import ctypes
import gc
import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from encdec_train import atomic, console, distributed
from encdec_train.batch import MicroBatch
from encdec_train.jsonl import read_rows

Piece = tuple[tuple[int, ...], MicroBatch]  # where it was cut from: the micro-batch's number, then 0 or 1 a halving
GIB = 2**30
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)
_CGROUP_V1, _CGROUP_V2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")
_RAN_OUT = ("out of memory", "can't allocate memory", "ALLOC_FAILED")  # CUDA and its libraries; torch on a CPU


class MemoryLimits:
    """How many padded tokens of a micro-batch fit into this rank's memory, from which step on.

    What was found out is written down, since a resumed run makes the same pieces only with the same limits.

    Args:
        path: The record; None for none.
        made_for: What it holds for: rows of an earlier start with another value are left alone.
    """

    def __init__(self, path: Path | None = None, made_for: object = None) -> None:
        self._path, self._made_for = path, made_for
        self._rows = list(read_rows(path)) if path is not None else []

    def at(self, step: int) -> int | None:
        """Return the number of padded tokens at which a micro-batch of this step is too large; None: none is."""
        found = [row["tokens"] for row in self._rows if row["step"] <= step and row["made_for"] == self._made_for]
        return min(found, default=None)

    def lower(self, step: int, tokens: int) -> None:
        """Write down that from this step on so many tokens are too many."""
        self._rows.append({"step": step, "tokens": tokens, "made_for": self._made_for})
        if self._path is not None:
            atomic.write(self._path, "".join(json.dumps(row) + "\n" for row in self._rows).encode())
        rank = f"rank {distributed.rank()}: " if distributed.world_size() > 1 else ""
        console.warn(f"{rank}step {step}: out of memory; micro-batches of {tokens:,} tokens and more are split in two")

    def pieces(self, step: int, micro_batches: Sequence[MicroBatch]) -> list[Piece]:
        """Cut what is too large in halves, and those in halves, down to single examples."""
        limit = self.at(step)
        return [piece for index, micro in enumerate(micro_batches) for piece in _pieces((index,), micro, limit)]


def _pieces(path: tuple[int, ...], micro: MicroBatch, limit: int | None) -> list[Piece]:
    if limit is None or micro.num_tokens < limit or len(micro.source_ids_BS) == 1:
        return [(path, micro)]
    return [piece for at, half in enumerate(micro.halves()) for piece in _pieces((*path, at), half, limit)]


def ran_out(error: BaseException) -> bool:
    """Tell whether an error says that there was not enough memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _RAN_OUT)


def release() -> None:
    """Give back what a failed attempt held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_gib(device: str) -> float:
    """Return the most memory that was in use so far, in GiB: tensors on a GPU, else all that this process had."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / GIB
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return how much memory this process can still get: of the machine, and of every control group above it.

    Page cache that can be dropped counts as free. None where the system does not say.
    """
    found = [_fields(proc / "meminfo").get("MemAvailable", -1) * 1024]
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        names = _CGROUP_V1 if controllers else _CGROUP_V2
        root = cgroups / "memory" if controllers else cgroups
        group = root / path.strip("/")
        found += [_left(one, *names) for one in (group, *group.parents) if one == root or root in one.parents]
    return min((number for number in found if number >= 0), default=None)


def _left(group: Path, limit: str, used: str) -> int:
    """Return what a control group leaves, -1 where it has no limit."""
    numbers = [next(iter(_lines(group / name)), "") for name in (limit, used)]
    if not all(number.isdigit() for number in numbers):
        return -1
    cached = _fields(group / "memory.stat").get("inactive_file", 0)
    return max(int(numbers[0]) - int(numbers[1]) + cached, 0)


def _fields(path: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    words = [line.replace(":", " ").split() for line in _lines(path)]
    return {one[0]: int(one[1]) for one in words if len(one) > 1 and one[1].isdigit()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def peak_of(run: Any) -> int | None:  # noqa: ANN401 - any call without arguments
    """Measure by how many bytes this process grows at most during a call (Linux); None where that cannot be seen."""
    _libc("malloc_trim", 0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    except OSError:
        return None
    before = _fields(Path("/proc/self/status")).get("VmRSS")
    run()
    after = _fields(Path("/proc/self/status")).get("VmHWM")
    return None if before is None or after is None else max(after - before, 0) * 1024


def keep_freed_memory() -> bool:
    """Tell the C library not to give large blocks back to the system.

    A step on a CPU allocates and frees blocks of tens of megabytes (logits, gradients of the embeddings). glibc maps
    each anew, and the system clears every page of it again (docs/log.md has what that costs). What is kept is what the
    largest step needed.

    Returns:
        Whether the C library took it; others than glibc are left as they are.
    """
    return bool(_libc("mallopt", _M_MMAP_MAX, 0)) and bool(_libc("mallopt", _M_TRIM_THRESHOLD, 2**31 - 1))


def _libc(name: str, *given: int) -> int:
    """Call a function of glibc; 0 where there is none."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
    return 0 if function is None else int(function(*given))
