"""A sweep of decoding settings: every one is scored, the best is chosen, and never on the test split."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from results import load, read

from encdec_train import evaluation
from encdec_train.decoding.decoder import Decoder

Encdec = Callable[..., Any]
DATA = ("checkpoint=out/run", "task=files", "task.validation_file=validation.jsonl", "task.metrics=[chrf,exact_match]")


def test_every_setting_is_scored_as_alone_and_the_sources_are_encoded_once(
    finished: Path, encdec: Encdec, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = Decoder.encode
    monkeypatch.setattr(Decoder, "encode", lambda self, ids, mask: encoded.append(len(ids)) or encode(self, ids, mask))
    swept = ("sweep.num_beams=[1,3]", "sweep.length_penalty=[-2.0,2.0]", "split=validation", "run.name=sweep")
    done = encdec("evaluate", *DATA, *swept)
    assert (done.status, done.out) == (0, "")
    assert sum(encoded) == len(read("validation.jsonl"))
    found = load("outputs/sweep/sweep.json")
    assert (found["split"], found["metric"]) == ("validation", "chrf")
    tried = [(row["num_beams"], row["length_penalty"]) for row in found["settings"]]
    assert tried == [(1, -2.0), (1, 2.0), (3, -2.0), (3, 2.0)]
    assert not list(Path("outputs/sweep").rglob("*.jsonl"))

    for row in found["settings"]:
        beams, penalty = row["num_beams"], row["length_penalty"]
        how = (f"decoding.num_beams={beams}", f"decoding.length_penalty={penalty}", f"run.name=one{beams}{penalty}")
        assert encdec("evaluate", *DATA, *how, "split=validation").status == 0
        alone = load(f"outputs/one{beams}{penalty}/metrics.json")["validation"]
        assert row["scores"] == {name: alone[name]["value"] for name in ("chrf", "exact_match")}

    best = max(found["settings"], key=lambda row: row["scores"]["chrf"])
    assert found["chosen"] == {key: best[key] for key in ("num_beams", "length_penalty")}
    table = [line.split() for line in done.err.splitlines()]
    assert [line[0] for line in table if line[-1:] == ["chosen"]] == [str(best["num_beams"])]
    assert f"decoding.num_beams={best['num_beams']} decoding.length_penalty={best['length_penalty']}" in done.err


def test_the_best_setting_is_chosen_whatever_its_place(
    finished: Path, encdec: Encdec, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([10.0, 30.0, 20.0])
    monkeypatch.setattr(
        evaluation, "scored", lambda *_: dict.fromkeys(("chrf", "exact_match"), {"value": next(values)})
    )
    swept = ("sweep.num_beams=[3,1,2]", "split=validation", "run.name=sweep")
    assert encdec("evaluate", *DATA, *swept).status == 0
    assert load("outputs/sweep/sweep.json")["chosen"] == {"num_beams": 1}


def test_a_test_split_is_not_tuned_on(finished: Path, encdec: Encdec) -> None:
    done = encdec("evaluate", *DATA, "task.test_file=test.jsonl", "split=test", "sweep.num_beams=[1,3]")
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        "encdec evaluate: split: expected validation, got 'test'; settings that are tuned on a test tell no score.\n"
    )
    assert not Path("outputs").exists()
