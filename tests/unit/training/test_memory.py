"""Freed blocks are used again instead of being mapped and cleared anew."""

import subprocess
import sys

import pytest

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
