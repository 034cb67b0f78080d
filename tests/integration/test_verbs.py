"""The verbs that start from a finished run: score, evaluate, generate, and all of them as Python functions."""

import gzip
import io
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from results import load, read

import encdec_train
from encdec_train.metrics import METRICS

Encdec = Callable[..., Any]
SHORT = ("trainer.max_steps=2", "run.name=short")


def test_score_prints_what_the_run_says(finished: Path, encdec: Encdec) -> None:
    done = encdec("score", "predictions=out/run/predictions/test.jsonl")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out) == load("out/run/metrics.json")["test"]
    one = encdec("score", "predictions=out/run/predictions/test.jsonl", "task.metrics=[chrf]", "seed=3")
    assert list(json.loads(one.out)) == ["chrf"]


def test_every_score_can_be_made_again_from_the_prediction_file(finished: Path, encdec: Encdec) -> None:
    names = [name for name in METRICS if name != "sacrebleu_ja" or find_spec("MeCab")]
    metrics = f"task.metrics=[{','.join(names)}]"
    data = ("task=files", "task.test_file=test.jsonl", "run.output_dir=out", "run.name=all")
    assert encdec("evaluate", "checkpoint=out/run", *data, metrics).status == 0
    made = load("out/all/metrics.json")["test"]
    assert list(made) == names
    done = encdec("score", "predictions=out/all/predictions/test.jsonl", metrics)
    assert (done.status, json.loads(done.out)) == (0, made)


def test_score_takes_every_form_of_predictions(finished: Path, encdec: Encdec) -> None:
    rows = read("out/run/predictions/test.jsonl")
    short = [json.dumps({key: row[key] for key in ("id", "prediction")}) for row in rows]
    (finished / "short.jsonl").write_text("\n".join(short), encoding="utf-8")
    (finished / "reordered.jsonl").write_text("\n".join(sorted(short, key=hash)), encoding="utf-8")
    (finished / "lines.txt").write_text("\n".join(row["prediction"] for row in rows), encoding="utf-8")
    for name in ("out/run/predictions/test.jsonl", "short.jsonl", "reordered.jsonl", "lines.txt"):
        done = encdec("score", f"predictions={name}", "task.test_file=test.jsonl")
        assert json.loads(done.out) == load("out/run/metrics.json")["test"], name


def test_what_computes_does_not_name_the_folder_of_an_evaluation(finished: Path, encdec: Encdec) -> None:
    data = ("checkpoint=out/run", "task=files", "task.test_file=test.jsonl")
    for number, more in enumerate([[], ["data.max_micro_tokens=64"], ["run.cache_dir=x", "trainer.accelerator=cpu"]]):
        assert encdec("evaluate", *data, *more).status == 0
        assert len(list((finished / "outputs").glob("evaluate-*"))) == 1, number
    assert encdec("evaluate", *data, "decoding=greedy").status == 0
    assert len(list((finished / "outputs").glob("evaluate-*"))) == 2


def test_a_name_that_is_no_folder_is_looked_for_on_the_hub(finished: Path, encdec: Encdec) -> None:
    done = encdec("evaluate", "checkpoint=somebody/bert2bert", "task=files", "task.test_file=test.jsonl")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(
        "encdec evaluate: checkpoint: expected a folder, or a Hub id that can be reached or is cached, got 's"
    )
    assert not (finished / "outputs").exists()


@pytest.mark.parametrize("checkpoint", ["out/run", "out/run/export"])
def test_evaluate_decodes_as_the_run_did(checkpoint: str, finished: Path, encdec: Encdec) -> None:
    data = ("task=files", "task.test_file=test.jsonl", "task.validation_file=validation.jsonl")
    done = encdec("evaluate", f"checkpoint={checkpoint}", *data, "run.output_dir=out")
    assert (done.status, done.out) == (0, "")
    (folder,) = [path for path in (finished / "out").iterdir() if path.name.startswith("evaluate-files-")]
    assert (folder / "predictions/test.jsonl").read_bytes() == Path("out/run/predictions/test.jsonl").read_bytes()
    assert load(folder / "metrics.json") == {"test": load("out/run/metrics.json")["test"]}
    encdec("evaluate", f"checkpoint={checkpoint}", *data, "split=validation", "run.name=other", "decoding=greedy")
    assert len(read("outputs/other/predictions/validation.jsonl")) == 6
    assert list(load("outputs/other/metrics.json")) == ["validation"]
    training = ("task=files", "task.train_file=train.jsonl", "split=train", "run.name=training")
    assert encdec("evaluate", f"checkpoint={checkpoint}", *training).status == 0
    assert [row["id"] for row in read("outputs/training/predictions/train.jsonl")] == [f"row{i}" for i in range(24)]


def predicted(run: Path) -> tuple[list[str], list[str]]:
    rows = read(run / "out/run/predictions/test.jsonl")
    return [row["source"] for row in rows], [row["prediction"] for row in rows]


@pytest.mark.parametrize("input_name", ["lines.txt", "lines.txt.gz", "-"])
def test_generate_gives_the_predictions_of_the_run(
    input_name: str, finished: Path, encdec: Encdec, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, texts = predicted(finished)
    data = "\n".join([*sources[:3], "", *sources[3:]]).encode()  # without a line feed at the end
    (finished / "lines.txt").write_bytes(data)
    (finished / "lines.txt.gz").write_bytes(gzip.compress(data))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    done = encdec("generate", "checkpoint=out/run", f"input={input_name}")
    assert done.status == 0
    assert done.out.split("\n")[:-1] == [*texts[:3], "", *texts[3:]]
    assert done.err == "9 lines, 1 empty\n"


def test_generate_sees_records_on_standard_input(
    finished: Path, encdec: Encdec, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, texts = predicted(finished)
    data = b"\n" + Path("test.jsonl").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    done = encdec("generate", "checkpoint=out/run")
    first, *answers = done.out.splitlines()
    assert (first, [json.loads(line)["prediction"] for line in answers]) == ("", texts)
    assert [json.loads(line)["id"] for line in answers] == [row["id"] for row in read("test.jsonl")]


def test_a_run_in_bf16_is_scored_as_its_export_will_be(
    here: Path, train: Encdec, encdec: Encdec, shared: ModuleType
) -> None:
    assert train(*shared.SPLITS, "run.name=half", "trainer.precision=bf16", "run.baselines=[]").status == 0
    again = ["task=files", "task.test_file=test.jsonl", "trainer.accelerator=cpu", "run.output_dir=out"]
    assert encdec("evaluate", "checkpoint=out/half", *again, "run.name=again").status == 0
    assert read("out/again/predictions/test.jsonl") == read("out/half/predictions/test.jsonl")


def test_generate_answers_records_with_records(finished: Path, encdec: Encdec) -> None:
    _, texts = predicted(finished)
    done = encdec("generate", "checkpoint=out/run", "input=test.jsonl", "output=answers.jsonl")
    assert (done.status, done.out) == (0, "")
    assert read("answers.jsonl") == [
        {**row, "prediction": text} for row, text in zip(read("test.jsonl"), texts, strict=True)
    ]


def test_generate_cuts_what_is_too_long_and_says_so(finished: Path, encdec: Encdec) -> None:
    (finished / "long.txt").write_text("the cat sat " * 40 + "\nthe cat sat\n", encoding="utf-8")
    done = encdec("generate", "checkpoint=out/run", "input=long.txt")
    assert len(done.out.splitlines()) == 2
    assert done.err == "2 lines, 1 cut at 16 tokens\n"
    wider = encdec("generate", "checkpoint=out/run", "input=long.txt", "task.max_source_tokens=64")
    assert wider.err == "2 lines, 1 cut at 64 tokens\n"


def test_generate_stops_at_a_line_that_is_no_text(finished: Path, encdec: Encdec) -> None:
    sources, texts = predicted(finished)
    (finished / "bad.txt").write_bytes("\n".join(sources[:2]).encode() + b"\n\xff\n" + sources[2].encode())
    (finished / "answers.txt").write_text("old\n", encoding="utf-8")
    done = encdec("generate", "checkpoint=out/run", "input=bad.txt")
    assert done.status == 2
    assert done.out.splitlines() == texts[:2]
    assert done.err.startswith("encdec generate: input:3: expected UTF-8 text; ")
    assert encdec("generate", "checkpoint=out/run", "input=bad.txt", "output=answers.txt").status == 2
    assert (finished / "answers.txt").read_text(encoding="utf-8") == "old\n"
    assert [path.name for path in finished.glob(".answers*")] == []


def test_the_python_functions_do_the_same(finished: Path, shared: ModuleType) -> None:
    sources, texts = predicted(finished)
    assert encdec_train.train(*shared.BASE, *shared.SPLITS, "run.name=run") == Path("out/run")
    folder = encdec_train.evaluate("checkpoint=out/run", "task=files", "task.test_file=test.jsonl", "run.name=again")
    assert folder == Path("outputs/again")
    expected = load("out/run/metrics.json")["test"]
    assert load(folder / "metrics.json") == {"test": expected}
    assert encdec_train.score("predictions=outputs/again/predictions/test.jsonl") == expected
    assert list(encdec_train.generate(sources, "out/run")) == texts
    assert list(encdec_train.generate([*sources, ""], "out/run/export"))[-2:] == [texts[-1], ""]
    model, (source_tokenizer, target_tokenizer) = encdec_train.load("out/run")
    assert not model.training
    assert source_tokenizer is target_tokenizer
    started = encdec_train.warm_start("bert")
    assert {name for name, _ in started.named_parameters()} == {
        name for name, _ in model.named_parameters() if "pooler" not in name
    }


@pytest.mark.parametrize("model", ["bertshare", "rnd2rnd", "bert2rnd", "rnd2bert"])
def test_every_model_goes_through(model: str, here: Path, train: Encdec, encdec: Encdec) -> None:
    train(*SHORT, "task.test_file=test.jsonl", f"model={model}")
    again = encdec("evaluate", "checkpoint=out/short", "task=files", "task.test_file=test.jsonl", "run.name=again")
    assert again.status == 0
    assert read("outputs/again/predictions/test.jsonl") == read("out/short/predictions/test.jsonl")
    assert load("outputs/again/metrics.json")["test"] == load("out/short/metrics.json")["test"]
