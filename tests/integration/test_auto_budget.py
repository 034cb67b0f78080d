"""`data.max_micro_tokens=auto`: measured once, bounded by what memory there is, and the same when a run goes on."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from results import load, losses

from encdec_train.training import budget, memory
from encdec_train.training.callbacks import EveryStep

Encdec = Callable[..., Any]
STEPS = ("trainer.max_steps=4", "trainer.checkpoint_every_steps=1", "model.dropout=0.1")


def test_a_run_keeps_its_budget(
    here: Path, train: Encdec, encdec: Encdec, shared: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = train(*STEPS, "run.name=plenty")
    assert load("out/plenty/manifest.json")["max_micro_tokens"] == {"cpu": 4096}
    assert "data.max_micro_tokens=auto" not in done.err
    [file] = (here / "out/.cache/budgets").iterdir()
    found = load(file)
    assert (found["longest"], found["device"], found["precision"]) == ([10, 9], "cpu", "fp32")
    assert 1000 < found["found"] < 1_000_000  # bytes a token, of two layers of width 32

    with monkeypatch.context() as patched:
        weights = load("out/plenty/manifest.json")["parameters"]["distinct"] * 4
        patched.setattr(memory, "available_bytes", lambda: 2 * (6 * weights + 100 * found["found"]))
        patched.setattr(budget, "_bytes_a_token", None)  # not measured again
        end = EveryStep.on_train_batch_end

        def interrupt(self: EveryStep, *given: Any) -> None:
            end(self, *given)
            if self.step == 2:
                raise KeyboardInterrupt

        patched.setattr(EveryStep, "on_train_batch_end", interrupt)
        done = encdec("train", *shared.BASE, *STEPS, "run.name=scarce")
        assert done.status == 130
        assert "data.max_micro_tokens=auto: 100 tokens are what fits into memory\n" in done.err
    train(*STEPS, "run.name=scarce")  # with all memory again
    assert load("out/scarce/manifest.json")["max_micro_tokens"] == {"cpu": 100}
    train(*STEPS, "run.name=given", "data.max_micro_tokens=100")
    assert losses("out/scarce") == losses("out/given")
    assert losses("out/scarce") != losses("out/plenty")  # other micro-batches, other dropout masks
    assert "max_micro_tokens" not in load("out/given/manifest.json")
