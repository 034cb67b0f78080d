"""How much memory there is and was used, what did not fit, and that freed blocks are used again."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from encdec_train.data.collate import collate
from encdec_train.training.memory import MemoryLimits, available_bytes, peak_gib, peak_of, ran_out

FAULTS = """
import resource, sys
import torch
from encdec_train.training.memory import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
torch.ones(16 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_a_block_of_64_mib_is_not_mapped_again_and_again() -> None:
    run = [sys.executable, "-c", FAULTS]
    faults = {
        how: int(subprocess.run([*run, how], capture_output=True, text=True, check=True).stdout)
        for how in ("plain", "keep")
    }
    assert faults["plain"] > 40 * (64 << 20) // (64 << 10)  # pages of 4 KiB, or at most of 64
    assert faults["keep"] < faults["plain"] / 5


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: BaseException, expected: bool) -> None:
    assert ran_out(error) is expected


def test_torchs_own_words_on_a_cpu_are_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ran_out(caught.value)


def test_limits_hold_from_their_step_on_and_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "memory" / "rank0.jsonl"
    limits = MemoryLimits(path, [64, 1])
    assert limits.at(9) is None
    limits.lower(5, 400)
    limits.lower(5, 200)
    limits.lower(8, 100)
    for found in (limits, MemoryLimits(path, [64, 1])):
        assert [found.at(step) for step in (4, 5, 7, 8)] == [None, 200, 200, 100]
    assert MemoryLimits(path, [64, 2]).at(9) is None  # other ranks, or another budget: other micro-batches


def test_pieces_are_halves_of_halves_down_to_one_example() -> None:
    micro = collate([[2, 5, 3]] * 5, [[5, 3]] * 5, 2, (0, 0))  # 25 tokens
    limits = MemoryLimits()
    assert [place for place, _ in limits.pieces(1, [micro, micro])] == [(0,), (1,)]
    limits.lower(1, 16)  # 15 are not too many
    assert [(place, one.num_tokens) for place, one in limits.pieces(1, [micro])] == [((0, 0), 10), ((0, 1), 15)]
    limits.lower(1, 1)
    found = limits.pieces(1, [micro])
    assert [place for place, _ in found] == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1, 0), (0, 1, 1, 1)]
    assert {one.num_tokens for _, one in found} == {5}


GIB = 2**30
GROUPS = {
    "the machine": ({}, "0::/\n", 8 * GIB),
    "a group": ({"job/memory.max": f"{3 * GIB}", "job/memory.current": f"{2 * GIB}"}, "0::/job\n", GIB),
    "a group without a limit": ({"job/memory.max": "max", "job/memory.current": "1"}, "0::/job\n", 8 * GIB),
    "page cache can be dropped": (
        {"job/memory.max": f"{3 * GIB}", "job/memory.current": f"{2 * GIB}",
         "job/memory.stat": f"anon 5\ninactive_file {GIB}\n"}, "0::/job\n", 2 * GIB,
    ),
    "the group above": (
        {"a/memory.max": f"{GIB}", "a/memory.current": "0", "a/b/memory.max": f"{4 * GIB}", "a/b/memory.current": "0"},
        "0::/a/b\n", GIB,
    ),
    "a container": ({"memory.max": f"{2 * GIB}", "memory.current": "0"}, "0::/\n", 2 * GIB),
    "version 1": (
        {"memory/job/memory.limit_in_bytes": f"{GIB}", "memory/job/memory.usage_in_bytes": "0"},
        "3:cpu,cpuacct:/other\n2:memory:/job\n", GIB,
    ),
    "used up": ({"job/memory.max": f"{GIB}", "job/memory.current": f"{2 * GIB}"}, "0::/job\n", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPS)
def test_what_can_still_be_had_is_the_least_of_machine_and_groups(name: str, tmp_path: Path) -> None:
    files, groups, expected = GROUPS[name]
    written = {f"cgroup/{path}": text for path, text in files.items()}
    written |= {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {8 << 20} kB\n", "proc/self/cgroup": groups}
    for path, text in written.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert available_bytes(tmp_path / "proc", tmp_path / "cgroup") == expected


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert available_bytes(tmp_path, tmp_path) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc only")
def test_the_peak_of_a_call_is_what_it_held_at_most() -> None:
    found = peak_of(lambda: [torch.ones(16 << 20) for _ in range(3)])  # 64 MiB each, all held until the end
    if found is None:
        pytest.skip("this system does not let a process reset its peak")
    assert (3 * 64 - 1) << 20 <= found < (4 * 64) << 20  # a page of something else may have gone meanwhile
    assert peak_gib("cpu") > 3 / 16
