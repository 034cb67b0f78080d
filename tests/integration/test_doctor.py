"""The verb: a table on stdout, and a status that a script can trust."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

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
    assert done.err.splitlines()[-1] == "encdec doctor: 1 of 19 checks failed: labels."


def test_what_cannot_be_loaded_is_said_as_train_says_it(here: Path, encdec: Encdec, shared: ModuleType) -> None:
    done = encdec("doctor", *shared.BASE, "model.encoder=./nowhere")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("encdec doctor: model.encoder: ")
