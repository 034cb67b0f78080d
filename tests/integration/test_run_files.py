"""`encdec train task=files`, from the command to its files."""

import csv
import gzip
import io
import json
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet
from results import load, losses, read

from encdec_train import config as config_module
from encdec_train.compose import compose, valid_keys
from encdec_train.config import TrainConfig, to_dict
from encdec_train.metrics.score import score

Encdec = Callable[..., Any]
METRICS = ["sacrebleu", "rouge1", "rouge2", "rougeL", "rougeLsum", "sari", "exact_match"]
SHORT = ("trainer.max_steps=2", "run.name=short")


def test_the_run_folder_has_every_file_of_the_contract(finished_folder: Path) -> None:
    run = finished_folder / "out" / "run"
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()} - {".lock"}
    assert found == {
        "audit.json", "audit.svg",
        "config.yaml", "manifest.json", "metrics.jsonl", "metrics.json", "report.html", "predictions/test.jsonl",
        *(f"checkpoints/step_00000030/{name}"
          for name in ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")),
        *(f"export/{name}" for name in ("model.safetensors", "config.json", "generation_config.json",
                                        "tokenizer.json", "tokenizer_config.json", "README.md")),
    }  # fmt: skip
    assert [path.name for path in (finished_folder / "out").iterdir() if not path.name.startswith(".")] == ["run"]


def test_the_config_that_is_kept_makes_the_same_run(finished_folder: Path, shared: ModuleType) -> None:
    kept = yaml.safe_load((finished_folder / "out/run/config.yaml").read_text(encoding="utf-8"))
    assert kept == to_dict(compose("train", [*shared.BASE, *shared.SPLITS, "run.name=run"]))


def test_the_manifest_says_what_the_run_was(finished_folder: Path) -> None:
    manifest = load(finished_folder / "out/run/manifest.json")
    assert manifest["finished"] is True
    assert manifest["splits"] == {
        name: {"examples": count, "truncated_sources": 0, "truncated_targets": 0, "set_aside": 0}
        for name, count in (("train", 24), ("validation", 6), ("test", 8))
    }
    assert manifest["checkpoints"] == {half: {"name": "bert", "revision": None} for half in ("encoder", "decoder")}
    assert set(manifest["identity"]) == {"task", "data", "model", "batch", "optim", "steps", "seed"}
    assert {"git", "versions", "hardware", "command_line", "parameters"} <= set(manifest)
    assert list(manifest["startup_seconds"]) == [
        "command", "torch", "rows", "checkpoint files", "tokens", "model", "checks", "files and tracker",
        "checkpoint and libraries", "trainer", "first step",
    ]  # fmt: skip
    assert manifest["peak_memory_gib"] > 0.1


def test_predictions_are_in_data_order(finished_folder: Path, shared: ModuleType) -> None:
    rows = read(finished_folder / "out/run/predictions/test.jsonl")
    assert [list(row) for row in rows] == [["id", "source", "prediction", "references"]] * 8
    expected = [(row["id"], row["source"], [row["target"]]) for row in shared.pairs(range(200, 208))]
    assert [(row["id"], row["source"], row["references"]) for row in rows] == expected
    assert len({row["prediction"] for row in rows}) > 3  # something was learnt, so order can be seen


def test_scores_are_those_of_the_prediction_file(finished_folder: Path) -> None:
    rows = read(finished_folder / "out/run/predictions/test.jsonl")
    texts, sources, references = ([row[key] for row in rows] for key in ("prediction", "source", "references"))
    metrics = load(finished_folder / "out/run/metrics.json")
    assert list(metrics) == ["test", "baselines"]
    assert list(metrics["test"]) == METRICS
    assert metrics["test"] == score(texts, references, sources, METRICS, seed=0)
    firsts = [texts[0] for texts in references]  # which the tiny vocabulary covers, in at most 16 tokens
    assert metrics["baselines"] == {
        "copy": {"test": score(sources, references, sources, METRICS, seed=0)},
        "ceiling": {"test": score(firsts, references, sources, METRICS, seed=0)},
    }
    for found in metrics["test"].values():
        assert list(found) == ["value", "signature", "ci95"]
        assert 0 <= found["ci95"][0] <= found["value"] <= found["ci95"][1] <= 100
    assert metrics["test"]["sacrebleu"]["signature"].startswith("BLEU|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|")


TIMES = ("time/tokens_per_second", "time/data_wait", "time/padding", "time/utilisation", "time/step_seconds_p50",
         "time/step_seconds_p95", "time/peak_memory_gib")  # fmt: skip


def test_the_curves_have_a_row_a_step(finished_folder: Path) -> None:
    rows = read(finished_folder / "out/run/metrics.jsonl")
    steps = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 31))
    assert {tuple(row) for row in steps} == {
        ("step", "train/loss", "train/grad_norm", "train/epoch", "optim/lr", *TIMES)
    }
    assert [row["train/epoch"] for row in steps] == list(range(30))  # a batch is all 24 pairs
    assert [row["optim/lr"] for row in steps[:2]] == pytest.approx([1e-2, 1e-2 * 29 / 30])
    assert steps[-1]["train/loss"] < steps[0]["train/loss"] - 1
    validations = [row for row in rows if "validation/loss" in row]
    assert [row["step"] for row in validations] == [15, 30]
    assert list(validations[0]) == ["step", "validation/loss", *(f"validation/{name}" for name in METRICS)]


def test_the_export_needs_nothing_of_ours(finished_folder: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    export = finished_folder / "out/run/export"
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(export), AutoTokenizer.from_pretrained(export)
    for row in read(finished_folder / "out/run/predictions/test.jsonl"):
        ids = model.generate(**tokenizer(row["source"], return_tensors="pt", return_token_type_ids=False))
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == row["prediction"]


def to_jsonl(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def to_csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def to_tsv(rows: list[dict[str, str]]) -> bytes:
    return "".join("\t".join(cells) + "\n" for cells in [[*rows[0]], *([*row.values()] for row in rows)]).encode()


def to_parquet(rows: list[dict[str, str]]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


KINDS = {"json": to_jsonl, "csv": to_csv, "tsv": to_tsv, "parquet": to_parquet}


def test_every_kind_of_file_makes_the_same_run(here: Path, train: Encdec, shared: ModuleType) -> None:
    train(*SHORT, *shared.SPLITS)
    expected = losses("out/short")
    predictions = read("out/short/predictions/test.jsonl")
    for kind, write in KINDS.items():
        overrides = []
        zipped = kind == "json"
        for split, numbers in (("train", range(24)), ("validation", range(100, 106)), ("test", range(200, 208))):
            data, name = write(shared.pairs(numbers)), f"{split}.{kind}"
            if zipped := not zipped:
                data, name = gzip.compress(data), f"{name}.gz"
            (here / name).write_bytes(data)
            overrides.append(f"task.{split}_file={name}")
        train(*SHORT, *overrides, f"run.name={kind}")
        assert losses(f"out/{kind}") == expected
        assert read(f"out/{kind}/predictions/test.jsonl") == predictions


def test_reverse_swaps_the_two_sides(here: Path, train: Encdec, shared: ModuleType) -> None:
    train(*SHORT, *shared.SPLITS, "task.reverse=true")
    train(*SHORT, *shared.SPLITS, "task.source_column=target", "task.target_column=source", "run.name=columns")
    rows = read("out/short/predictions/test.jsonl")
    assert [(row["source"], row["references"]) for row in rows] == [
        (row["target"], [row["source"]]) for row in shared.pairs(range(200, 208))
    ]
    assert losses("out/short") == losses("out/columns")
    assert rows == read("out/columns/predictions/test.jsonl")


def test_several_references(here: Path, train: Encdec, shared: ModuleType) -> None:
    test = [
        {"source": "the cat sat", "target": "sat cat the", "references": ["sat cat the", "sat the cat"]},
        {"source": "a dog", "target": ["dog a", "a dog", "dog"]},
    ]
    shared.write_jsonl(here / "list.jsonl", [{**row} for row in test[1:]])
    shared.write_jsonl(here / "beside.jsonl", test[:1])
    train(*SHORT, "task.test_file=list.jsonl")
    train(*SHORT, "task.test_file=beside.jsonl", "run.name=beside")
    (listed,) = read("out/short/predictions/test.jsonl")
    assert (listed["id"], listed["references"]) == ("0", ["dog a", "a dog", "dog"])
    (beside,) = read("out/beside/predictions/test.jsonl")
    assert beside["references"] == ["sat cat the", "sat the cat"]
    assert "|nrefs:3|" in load("out/short/metrics.json")["test"]["sacrebleu"]["signature"]
    assert "|nrefs:2|" in load("out/beside/metrics.json")["test"]["sacrebleu"]["signature"]


def test_without_validation_and_test(here: Path, train: Encdec) -> None:
    done = train(*SHORT)
    assert load("out/short/metrics.json") == {}
    assert not (here / "out/short/predictions").exists()
    assert "predictions/" not in done.err
    assert (here / "out/short/export/model.safetensors").is_file()
    assert (here / "out/short/report.html").is_file()
    assert [path.name for path in (here / "out/short/checkpoints").iterdir()] == ["step_00000002"]
    assert "is finished" in train(*SHORT).err


def test_without_metrics(here: Path, train: Encdec, shared: ModuleType) -> None:
    train(*SHORT, *shared.SPLITS, "task.metrics=[]")
    assert load("out/short/metrics.json") == {"test": {}, "baselines": {"copy": {"test": {}}, "ceiling": {"test": {}}}}
    assert len(read("out/short/predictions/test.jsonl")) == 8


def test_names_and_texts_of_any_script(here: Path, train: Encdec, encdec: Encdec, shared: ModuleType) -> None:
    rows = [{"id": "zeile é 1", "source": "日本 the cat\u2028sat", "target": "cät 🦜 the"}]
    folder = here / "mein Ordner, é"
    folder.mkdir()
    shared.write_jsonl(folder / "test = ü.jsonl", rows)
    where = '"mein Ordner, é/'
    train(*SHORT, f'task.test_file={where}test = ü.jsonl"', f'run.output_dir={where}out"')
    run = folder / "out" / "short"
    (found,) = read_lines(run / "predictions/test.jsonl")
    assert (found["id"], found["source"], found["references"]) == (
        rows[0]["id"],
        rows[0]["source"],
        [rows[0]["target"]],
    )
    assert "zeile é 1" in (run / "predictions/test.jsonl").read_text(encoding="utf-8")  # readable, no escapes
    scored = encdec("score", f'predictions={where}out/short/predictions/test.jsonl"')
    assert json.loads(scored.out) == load(run / "metrics.json")["test"]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON Lines by line feeds alone: texts may hold the other line ends of Unicode."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_fewer_examples(here: Path, train: Encdec, shared: ModuleType) -> None:
    limits = ("task.num_train_examples=5", "task.num_validation_examples=2", "task.num_test_examples=3")
    train(*SHORT, *shared.SPLITS, *limits)
    splits = load("out/short/manifest.json")["splits"]
    assert {name: split["examples"] for name, split in splits.items()} == {"train": 5, "validation": 2, "test": 3}
    assert [row["id"] for row in read("out/short/predictions/test.jsonl")] == ["row200", "row201", "row202"]


def test_the_weights_of_the_best_validation_are_exported(here: Path, train: Encdec, shared: ModuleType) -> None:
    from safetensors.torch import load_file

    # Nothing matches exactly so early, and a tie is no better: the first validation stays the best one.
    best = ("trainer.max_steps=3", "trainer.validate_every_steps=1", "trainer.best_metric=exact_match", "run.name=best")
    train(*shared.SPLITS, *best)
    assert [row["validation/exact_match"] for row in read("out/best/metrics.jsonl") if "validation/loss" in row] == [
        0
    ] * 3
    name = "decoder.bert.encoder.layer.0.crossattention.self.query.weight"
    kept = {step: load_file(f"out/best/checkpoints/step_0000000{step}/model.safetensors")[name] for step in (1, 3)}
    exported = load_file("out/best/export/model.safetensors")[name]
    assert exported.equal(kept[1])
    assert not exported.equal(kept[3])


def test_the_baseline_from_random_weights(here: Path, train: Encdec) -> None:
    done = train(*SHORT, "task.test_file=test.jsonl", "run.baselines=[copy,random]")
    baselines = load("out/short/metrics.json")["baselines"]
    assert list(baselines) == ["copy", "random"]
    assert list(baselines["random"]["test"]) == METRICS
    assert [row["step"] for row in read("out/short/baseline_random/metrics.jsonl")] == [1, 2]
    assert losses("out/short/baseline_random") != losses("out/short")
    assert "the same model from random weights" in done.err


UNREAD = {"task.revision"}  # pins a data set of the Hub, and `task=files` has none


PROPERTIES = {  # of the config: what each of them hands on
    ("TaskConfig", "limits"): ["max_source_tokens", "max_target_tokens"],
    ("ModelConfig", "sources"): ["encoder", "decoder", "encoder_revision", "decoder_revision"],
    ("ModelConfig", "layers"): ["encoder_layers", "decoder_layers"],
}


def test_every_key_is_read_by_a_run(here: Path, train: Encdec, shared: ModuleType) -> None:
    found: set[tuple[str, str]] = set()
    own = {"config.py", "check.py", "compose.py"}  # these look at every key, whether anything comes of it or not

    def record(cls: type) -> Callable[[object, str], object]:
        def read_attribute(self: object, name: str) -> object:
            caller = sys._getframe(1).f_code.co_filename
            if Path(caller).name not in own:
                found.add((cls.__name__, name))
            return object.__getattribute__(self, name)

        return read_attribute

    sections = {f.name: type(getattr(compose("train"), f.name)) for f in fields(TrainConfig)}
    classes = [cls for cls in vars(config_module).values() if isinstance(cls, type) and is_dataclass(cls)]
    with pytest.MonkeyPatch.context() as patched:
        for cls in classes:
            patched.setattr(cls, "__getattribute__", record(cls), raising=False)
        train("trainer.max_steps=null", "trainer.max_epochs=2", *shared.SPLITS, "tracking=tensorboard",
              "task.train_fraction=0.9")  # fmt: skip
    for (cls, property_name), keys in PROPERTIES.items():
        found |= {(cls, key) for key in keys if (cls, property_name) in found}
    read_keys = {
        key
        for key in valid_keys(TrainConfig)
        for section, _, name in [key.rpartition(".")]
        if (sections[section].__name__ if section else "TrainConfig", name) in found
    }
    of_wandb = {f"tracking.{name}" for name in ("project", "group", "tags")}
    assert set(valid_keys(TrainConfig)) - read_keys - of_wandb == UNREAD
