import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from encdec_train.check import check, check_ranges
from encdec_train.compose import compose, valid_keys
from encdec_train.config import Schedule, Share, TrainConfig, leaves

RUNS = "letters, digits, `.`, `_` and `-`, a letter or digit first"


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    names = ["task.train_file=train.jsonl", "task.validation_file=validation.jsonl", "task.test_file=test.jsonl"]
    return compose("train", ["task=files", *names, "model.encoder=bert", "trainer.max_steps=100"])


def changed(config: TrainConfig, **values: Any) -> TrainConfig:
    """Set leaves by their full name, with `__` for the dot."""
    for key, value in values.items():
        section, _, name = key.rpartition("__")
        part = {section: replace(getattr(config, section), **{name: value})} if section else {name: value}
        config = replace(config, **part)
    return config


def test_what_composes_has_no_fault(config: TrainConfig) -> None:
    assert check_ranges(config) + check(config) == []


NAMES = ["a", "A1", "2024-01-02_x.y", "x" * 128]
NO_NAMES = ["", ".", "..", "../x", "a/b", "a\\b", "-a", ".a", "_a", "a b", "é", "a\n", "x" * 129]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_name_is_a_folder(config: TrainConfig, name: str) -> None:
    assert check(changed(config, run__name=name)) == []


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_run_name_leads_nowhere_else(config: TrainConfig, name: str) -> None:
    assert check(changed(config, run__name=name)) == [
        f"run.name: expected {RUNS}, got {name!r}; it is the run's folder below run.output_dir."
    ]
    assert check(changed(config, model__name=name)) == [
        f"model.name: expected {RUNS}, got {name!r}; it is a part of the run's folder."
    ]


NUMBERS = [key for key, _, limits in leaves(compose("train")) if limits]


def test_every_number_has_a_range() -> None:
    free = {"decoding.length_penalty"}  # below 0 it favours short outputs
    numbers = {key for key, value, _ in leaves(compose("train")) if type(value) in {int, float}}
    assert numbers - set(NUMBERS) == free
    assert len(NUMBERS) == 47


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_stays_in_its_range(config: TrainConfig, key: str) -> None:
    limits = next(limits for name, _, limits in leaves(config) if name == key)
    low, high, below = limits["low"], limits["high"], limits["below"]
    upper = f"..{high}" if high is not None else f" to below {below}" if below is not None else " or more"
    leaf = key.replace(".", "__")
    bad = [low - 1, *([high + 1] if high is not None else []), *([below] if below is not None else [])]
    for value in bad:
        assert check_ranges(changed(config, **{leaf: value})) == [f"{key}: expected {low}{upper}, got {value}."]
    for value in [low, *([high] if high is not None else [])]:
        assert check_ranges(changed(config, **{leaf: value})) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["optim.lr", "model.dropout", "decoding.length_penalty"])
def test_a_number_is_finite(config: TrainConfig, key: str, value: float) -> None:
    found = check_ranges(changed(config, **{key.replace(".", "__"): value}))
    assert found == [f"{key}: expected a finite number, got {value}."]


Change = dict[str, Any]
CONTRADICTIONS: list[tuple[Change, str]] = [
    (
        {"data__batch_target_tokens": 100},
        "data.batch_examples: expected either it or data.batch_target_tokens, got 32 and 100. "
        "Set the one that you do not want to null.",
    ),
    (
        {"data__batch_examples": None},
        "data.batch_examples: expected either it or data.batch_target_tokens, got null for both. Set one of them.",
    ),
    ({"data__max_micro_tokens": "all"}, "data.max_micro_tokens: expected auto, or 1 or more tokens, got 'all'."),
    ({"data__max_micro_tokens": 0}, "data.max_micro_tokens: expected auto, or 1 or more tokens, got 0."),
    (
        {"trainer__max_steps": None, "trainer__max_epochs": None},
        "trainer.max_steps: expected it or trainer.max_epochs, got null for both. Set one (steps win).",
    ),
    (
        {"optim__warmup_steps": 100},
        "optim.warmup_steps: expected below trainer.max_steps=100, got 100; "
        "the learning rate would never reach optim.lr.",
    ),
    *(
        (
            {"optim__betas": betas},
            f"optim.betas: expected two numbers from 0 to below 1, such as [0.9,0.999], got {betas}.",
        )
        for betas in ([], [0.9], [0.9, 0.99, 0.999], [0.9, 1.0], [-0.1, 0.9], [0.9, math.nan])
    ),
    (
        {"optim__max_grad_norm": 0.0},
        "optim.max_grad_norm: expected above 0, got 0.0; it would clip every gradient to nothing. "
        "Set null for no clipping.",
    ),
    (
        {"task__validation_file": None, "trainer__patience_validations": 3},
        "trainer.patience_validations: expected null, got 3; there is no task.validation_file to lose patience over.",
    ),
    (
        {"task__validation_file": None, "trainer__best_metric": "sari"},
        "trainer.best_metric: expected loss, got 'sari'; there is no task.validation_file to measure it on.",
    ),
    (
        {"trainer__sharding": True, "data__max_micro_tokens": 4096},
        "trainer.sharding: expected false, got 'true'; it lays weights in parts over several ranks, and there is one. "
        "Set trainer.devices or trainer.num_nodes.",
    ),
    (
        {"trainer__sharding": True, "trainer__num_nodes": 2},
        "data.max_micro_tokens: expected a number, got 'auto'; what it tries out on one rank is a pass of all ranks "
        "with trainer.sharding=true. Try 4096.",
    ),
    (
        {"trainer__decoded_examples": 0, "trainer__best_metric": "sari"},
        "trainer.best_metric: expected loss, got 'sari'; trainer.decoded_examples=0 leaves nothing to measure it on.",
    ),
    (
        {"decoding__max_new_tokens": 129},
        "decoding.max_new_tokens: expected 1..128, got 129; the model is never trained past task.max_target_tokens.",
    ),
    (
        {"task__source_column": "text", "task__target_column": "text"},
        "task.target_column: expected another column than task.source_column, got 'text'.",
    ),
    (
        {"task__validation_file": "./train.jsonl"},
        "task.validation_file: expected another file than task.train_file, got './train.jsonl'; "
        "scores on training data say nothing.",
    ),
    (
        {"task__test_file": "x/../train.jsonl"},
        "task.test_file: expected another file than task.train_file, got 'x/../train.jsonl'; "
        "scores on training data say nothing.",
    ),
    (
        {"task__revision": "main"},
        "task.revision: expected null, got 'main'; task=files reads nothing from the Hub.",
    ),
    (
        {"model__share": Share.all, "model__decoder": "other"},
        "model.share: expected none or embeddings, got 'all'; sharing all needs one checkpoint for both halves, "
        "got bert and other. Leave model.decoder out, or share less.",
    ),
    (
        {"task__name": "demo", "task__validation_file": None, "task__test_file": None},
        "task.train_file: expected null, got 'train.jsonl'; the demo writes its own files. Add task=files.",
    ),
    *[
        ({key.replace(".", "__"): None}, f"{key}: expected a number, got 'null'; only an export can fill it in.")
        for key in (
            "task.max_source_tokens",
            "task.max_target_tokens",
            "decoding.num_beams",
            "decoding.length_penalty",
            "decoding.no_repeat_ngram",
        )  # fmt: skip
    ],
]


@pytest.mark.parametrize(("change", "text"), CONTRADICTIONS, ids=[" ".join(change) for change, _ in CONTRADICTIONS])
def test_a_contradiction_is_named(config: TrainConfig, change: Change, text: str) -> None:
    assert check(changed(config, **change)) == [text]


DECODING = [
    ({"temperature": 0.0, "num_beams": 1}, "temperature: expected above 0, got 0.0; the most probable"),
    ({"temperature": 1.0}, "num_beams: expected 1, got 4; decoding.temperature draws tokens at random."),
    ({"num_return_sequences": 5}, "num_return_sequences: expected 1..4, got 5; a search returns no more"),
    (
        {"min_new_tokens": 41, "max_new_tokens": 40},
        "min_new_tokens: expected at most decoding.max_new_tokens=40, got 41;",
    ),
]


@pytest.mark.parametrize(("change", "text"), DECODING)
def test_a_contradiction_of_the_search_is_named(config: TrainConfig, change: Change, text: str) -> None:
    (found,) = check(changed(config, **{f"decoding__{key}": value for key, value in change.items()}))
    assert found.startswith(f"decoding.{text}")


HARMLESS: list[Change] = [
    {"optim__warmup_steps": 99},
    {"optim__warmup_steps": 100, "optim__schedule": Schedule.constant},
    {"optim__warmup_steps": 1000, "trainer__max_steps": None},
    {"optim__max_grad_norm": None},
    {"data__batch_examples": None, "data__batch_target_tokens": 1},
    {"trainer__max_epochs": None},
    {"trainer__decoded_examples": 0},
    {"model__share": Share.all},
    {"model__share": Share.embeddings, "model__decoder": "other"},
    {"decoding__max_new_tokens": 128},
    {"decoding__temperature": 0.5, "decoding__num_beams": 1, "decoding__num_return_sequences": 5},
    {"task__test_file": "validation.jsonl"},
]


@pytest.mark.parametrize("change", HARMLESS, ids=[" ".join(change) for change in HARMLESS])
def test_what_only_looks_like_a_contradiction(config: TrainConfig, change: Change) -> None:
    assert check(changed(config, **change)) == []


def test_a_link_to_the_training_file_is_the_training_file(config: TrainConfig, tmp_path: Path) -> None:
    train, link = tmp_path / "train.jsonl", tmp_path / "link.jsonl"
    train.write_text("{}\n", encoding="utf-8")
    link.symlink_to(train)
    (found,) = check(changed(config, task__train_file=str(train), task__validation_file=str(link)))
    assert found.startswith("task.validation_file: expected another file than task.train_file")


def test_all_contradictions_come_at_once(config: TrainConfig) -> None:
    found = check(changed(config, run__name="/", trainer__max_steps=None, trainer__max_epochs=None,
                          task__source_column="x", task__target_column="x"))  # fmt: skip
    assert [text.partition(":")[0] for text in found] == ["run.name", "task.target_column", "trainer.max_steps"]


@pytest.mark.parametrize(("verb", "needed"), [("evaluate", "checkpoint=x"), ("generate", "checkpoint=x")])
def test_only_training_needs_the_numbers_of_an_export(verb: str, needed: str) -> None:
    assert check(compose(verb, [needed])) == []


def test_the_demo_validates_on_its_own_split() -> None:
    assert compose("train", ["trainer.patience_validations=2", "trainer.best_metric=sari"]).task.name == "demo"


def test_every_leaf_is_looked_at_once(config: TrainConfig) -> None:
    found = check_ranges(changed(config, **{key.replace(".", "__"): -1 for key in NUMBERS}))
    assert [text.partition(":")[0] for text in found] == NUMBERS
    assert set(NUMBERS) <= set(valid_keys(TrainConfig))
