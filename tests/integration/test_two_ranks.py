"""Two ranks as people start them: `trainer.devices=2`, where Lightning starts the second, and under torchrun."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from results import load, losses, read

Encdec = Callable[..., Any]
NO_DROPOUT = ("model.dropout=0", "model.attention_dropout=0")  # its masks depend on the rank
TWO = (*NO_DROPOUT, "trainer.devices=2", "trainer.max_steps=4", "trainer.validate_every_steps=2", "run.name=two")
PYTHON = (sys.executable, "-m", "encdec_train")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "encdec_train")
LIMIT_SECONDS = 180


def start(launcher: Sequence[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [*launcher, "train", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)


@pytest.mark.parametrize("launcher", [PYTHON, TORCHRUN], ids=["lightning", "torchrun"])
def test_two_ranks_make_the_run_of_one(launcher: Sequence[str], here: Path, train: Encdec, shared: ModuleType) -> None:
    done = start(launcher, *shared.BASE, *shared.SPLITS, *TWO)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 4 validation:") == 1  # one rank speaks
    assert "unused" not in done.stderr  # BERT's pooler is not there to be reported (known_defects D8)
    train(*shared.SPLITS, *TWO, "trainer.devices=1", "run.name=one")
    assert losses("out/two") == pytest.approx(losses("out/one"), rel=1e-5)
    two, one = (read(f"out/{name}/predictions/test.jsonl") for name in ("two", "one"))
    assert two == one
    assert load("out/two/metrics.json") == load("out/one/metrics.json")
    again = start(launcher, *shared.BASE, *shared.SPLITS, *TWO)
    assert again.returncode == 0, again.stderr
    assert again.stderr.startswith("out/two is finished; nothing to do."), again.stderr


def test_a_fault_that_two_ranks_share_is_said_by_one_or_both(here: Path, shared: ModuleType) -> None:
    done = start(TORCHRUN, *shared.BASE, "task.train_file=missing.jsonl", *TWO)
    assert done.returncode != 0
    messages = [line for line in done.stderr.splitlines() if "task.train_file" in line and "missing.jsonl" in line]
    prefixes = {line.partition("encdec train: ")[0] for line in messages}
    assert set() < prefixes <= {"", "rank 1: "}  # torchrun ends the other one when the first has failed
    assert not (here / "out").exists()
