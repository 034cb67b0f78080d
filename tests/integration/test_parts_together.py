"""Parts that know nothing of one another: an experiment that is bundled, a second test split in every verb."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.server import Hub
from results import load

pytest_plugins = ("hub.fixture",)

Encdec = Callable[..., Any]
SMALL = (
    "trainer.max_steps=2", "trainer.validate_every_steps=2", "optim.warmup_steps=0", "optim.schedule=constant",
    "data.batch_examples=4", "task.max_source_tokens=32", "task.max_target_tokens=32", "trainer.accelerator=cpu",
    "tracking=none", "decoding.num_beams=1", "run.baselines=[]",
)  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what a bundle does to the process."""
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "WANDB_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)


def done(encdec: Encdec, *words: str) -> Any:
    found = encdec(*words)
    assert found.status == 0, found.err
    return found


def test_an_experiment_of_the_paper_is_bundled_examined_trained_evaluated_and_scored(
    served: Hub, here: Path, encdec: Encdec
) -> None:
    words = ("experiment=paper/wikisplit/bertshare", "model.encoder=bert", *SMALL)
    done(encdec, "bundle", *words, "bundle.path=b")
    done(encdec, "train", *words, "run.output_dir=without")
    shutil.rmtree("outputs", ignore_errors=True)  # the cache of the files
    (here / "bert").unlink()
    asked = len(served.requests)
    assert "decoder inputs" in done(encdec, "doctor", "bundle.path=b").out
    done(encdec, "train", "bundle.path=b", "run.output_dir=with")
    [one], [other] = (sorted(Path(name).glob("wikisplit-*")) for name in ("with", "without"))
    assert one.name == other.name
    assert (one / "metrics.json").read_bytes() == (other / "metrics.json").read_bytes()
    given = ("task=wikisplit", "bundle.path=b")
    evaluated = ("trainer.accelerator=cpu", "run.output_dir=out", "run.name=again")
    done(encdec, "evaluate", f"checkpoint={one}", *given, *evaluated)
    assert load("out/again/metrics.json") == load(one / "metrics.json")
    scores = done(encdec, "score", f"predictions={one}/predictions/test.jsonl", *given).out
    assert json.loads(scores) == load(one / "metrics.json")["test"]
    assert len(served.requests) == asked


def test_a_second_test_split_is_evaluated_and_scored(served: Hub, here: Path, encdec: Encdec) -> None:
    run = ("run.output_dir=out", "run.name=run")
    done(encdec, "train", "task=wmt14_en_de", "model.encoder=bert", *SMALL, *run, "task.metrics=[bleu_wmt14]")
    given = ("task=wmt14_en_de", "split=newstest2016", "task.metrics=[bleu_wmt14]")
    evaluated = ("trainer.accelerator=cpu", "run.output_dir=out", "run.name=again")
    done(encdec, "evaluate", "checkpoint=out/run", *given, *evaluated)
    wanted = load("out/run/metrics.json")["newstest2016"]
    assert load("out/again/metrics.json") == {"newstest2016": wanted}
    scores = done(encdec, "score", "predictions=out/run/predictions/newstest2016.jsonl", *given).out
    assert json.loads(scores) == wanted
