"""The verb: a table on stdout, and a status that a script can trust."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from encdec_train.doctor.checks import CHECKS

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


def test_a_check_that_fails_is_named_and_ends_with_2(here: Path, encdec: Encdec, shared: ModuleType) -> None:
    """A source that has two targets cannot be learnt by heart; the data says so nowhere else."""
    rows = [{"source": "a cat", "target": word} for word in ("the dog", "a bird", "the tree")]
    rows += [{"source": row["source"], "target": row["target"]} for row in shared.pairs(range(3))]
    (here / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = encdec("doctor", *shared.BASE, "model.share=none", "model.init=none")
    assert done.status == 0, done.err  # of those only one is taken
    (here / "bert" / "unused").unlink(missing_ok=True)
    done = encdec("doctor", *shared.BASE, "model.encoder=nowhere")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("encdec doctor: model.encoder: ")
