"""The verb: a table on stdout, and a status that a script can trust."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from encdec_train.doctor.checks import CHECKS
from encdec_train.doctor.patient import Finding, Status

Encdec = Callable[..., Any]


def test_a_model_that_is_well(here: Path, encdec: Encdec, shared: ModuleType) -> None:
    done = encdec("doctor", *shared.BASE, *shared.SPLITS)
    assert done.status == 0, done.err
    header, rule, *lines = done.out.splitlines()
    assert header.split() == ["check", "found", "remedy"]
    width = rule.index("  ")
    assert [line[:width].strip() for line in lines] == list(CHECKS)
    assert {line[width:].split()[0] for line in lines} == {"ok"}
    assert not (here / "out").exists() or not list((here / "out").glob("*/metrics.jsonl"))


def test_a_check_that_fails_is_named_and_ends_with_2(
    here: Path, encdec: Encdec, shared: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHECKS, "labels", lambda _: Finding(Status.fail, "3 of 16 are wrong", "Shift them"))
    done = encdec("doctor", *shared.BASE)
    assert done.status == 2
    rows = {line.split("  ")[0]: line.split() for line in done.out.splitlines()[2:]}
    assert " ".join(rows["labels"]) == "labels FAIL 3 of 16 are wrong Shift them"
    assert " ".join(rows["overfit"]) == "overfit not run first: labels"
    assert done.err.splitlines()[-1] == "encdec doctor: 1 of 20 checks failed: labels."


def test_what_cannot_be_loaded_is_said_as_train_says_it(here: Path, encdec: Encdec, shared: ModuleType) -> None:
    done = encdec("doctor", *shared.BASE, "model.encoder=./nowhere")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("encdec doctor: model.encoder: ")


SHORT = ("run.name=run", "trainer.max_steps=2", "trainer.validate_every_steps=2", "run.baselines=[]")


def test_a_first_start_is_examined_in_a_line_and_a_resumed_one_is_not(
    here: Path, encdec: Encdec, shared: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encdec_train import run

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "score_tests", stop)
        first = encdec("train", *shared.BASE, *shared.SPLITS, *SHORT)
    assert first.status == 130
    lines = [line for line in first.err.splitlines() if line.startswith("doctor: ")]
    assert [re.sub(r"\d+\.\d s", "0.4 s", line) for line in lines] == ["doctor: 19 checks passed in 0.4 s"]
    assert first.err.index("doctor: ") < first.err.index("train 1/2")
    weights = read_weights(here)
    again = encdec("train", *shared.BASE, *shared.SPLITS, *SHORT)
    assert (again.status, again.err.count("doctor: ")) == (0, 0)

    monkeypatch.setattr("encdec_train.doctor.preflight", lambda *_: None)
    assert encdec("train", *shared.BASE, *shared.SPLITS, *SHORT, "run.name=unexamined").status == 0
    assert read_weights(here, "unexamined") == weights  # what is trained is the same to the bit


def read_weights(here: Path, name: str = "run") -> bytes:
    return (here / "out" / name / "checkpoints/step_00000002/model.safetensors").read_bytes()


def overflowing(here: Path) -> None:
    """Make a checkpoint whose weights are finite and whose gradients are not."""
    shutil.copytree(here / "bert", here / "other")
    file = here / "other/model.safetensors"
    tensors = load_file(file)
    tensors["bert.encoder.layer.1.attention.self.query.weight"].fill_(3e38)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_run_that_is_not_well_ends_before_anything_is_written(here: Path, encdec: Encdec, shared: ModuleType) -> None:
    overflowing(here)
    before = shared.snapshot(here)
    done = encdec("train", *shared.BASE, *shared.SPLITS, "model.encoder=other")
    assert (done.status, done.out) == (2, "")
    last = done.err.splitlines()[-1]
    assert last.startswith("encdec train: "), last
    assert last.endswith("`encdec doctor` with the same keys makes all checks."), last
    assert re.search(r"nan|not finite", last), last
    assert "train 1/" not in done.err
    assert shared.snapshot(here) == before


def test_two_ranks_that_are_not_well_end(here: Path, shared: ModuleType) -> None:
    overflowing(here)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m",
               "encdec_train", "train", *shared.BASE, "model.encoder=other", "trainer.devices=2"]  # fmt: skip
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode != 0
    assert "`encdec doctor` with the same keys makes all checks." in done.stderr
    assert {path.name for path in here.glob("out/*")} <= {".cache"}


def test_warnings_do_not_stop_a_run(here: Path, encdec: Encdec, shared: ModuleType) -> None:
    done = encdec("train", *shared.BASE, *SHORT, "task.max_source_tokens=6")
    assert done.status == 0, done.err
    assert "\ndoctor: 19 checks passed, 2 with a warning, in " in done.err
    assert "\ndoctor: truncation: 16 sources and 0 targets of 24 pairs are cut. Raise task.max_source_" in done.err
