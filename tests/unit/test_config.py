import json
from dataclasses import fields, replace

import pytest
import yaml

from encdec_train.compose import CONFIGS, compose, valid_keys
from encdec_train.config import Overlong, TaskConfig, TrainConfig, leaves, to_dict, to_yaml

MAX_LEAVES = 120


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    limits = ["task.max_source_tokens=64", "task.max_target_tokens=48", "task.overlong=refuse"]
    return compose("train", ["task=files", *limits, "run.baselines=[copy,random]"])


def test_the_config_stays_small() -> None:
    assert len(list(valid_keys(TrainConfig))) <= MAX_LEAVES


CLUSTER = [
    "account", "constraint", "container", "cpus_per_task", "gpus_per_node", "memory", "nodes", "options", "partition",
    "qos", "setup", "stop_seconds", "time",
]  # fmt: skip


def test_the_verbs_share_their_keys() -> None:
    of_train = set(valid_keys(TrainConfig))
    own = {verb: sorted(set(valid_keys(cls)) - of_train) for verb, cls in CONFIGS.items()}
    assert own == {
        "train": [],
        "bundle": [],
        "verify": [],
        "evaluate": [
            "checkpoint",
            "split",
            "sweep.length_penalty",
            "sweep.max_length_ratio",
            "sweep.num_beams",
        ],  # fmt: skip
        "generate": ["checkpoint", "input", "output"],
        "score": ["predictions", "split"],
        "compare": ["a", "b", "split"],
        "report": ["runs", "split"],
        "submit": [*(f"cluster.{name}" for name in CLUSTER), "submit.dry_run"],
    }


def test_no_config_class_has_a_default() -> None:
    from dataclasses import MISSING

    classes = {TrainConfig, *(type(getattr(compose("train"), f.name)) for f in fields(TrainConfig))} - {int}
    found = [f"{cls.__name__}.{f.name}" for cls in classes for f in fields(cls) if f.default is not MISSING]
    assert found == []


def test_leaves_are_named_in_order(config: TrainConfig) -> None:
    found = [key for key, _, _ in leaves(config)]
    assert found == list(valid_keys(TrainConfig))
    assert found[:3] == ["seed", "run.name", "run.output_dir"]
    values = {key: (value, dict(limits)) for key, value, limits in leaves(config)}
    assert values["optim.lr"] == (1e-4, {"low": 0, "high": None, "below": None})
    assert values["seed"] == (0, {"low": 0, "high": 4294967295, "below": None})
    assert values["task.overlong"] == (Overlong.refuse, {})


def test_leaves_of_a_plain_value_are_none() -> None:
    assert list(leaves(3)) == []


def test_plain_values_have_no_enum_and_survive_json(config: TrainConfig) -> None:
    plain = to_dict(config)
    assert plain["task"]["overlong"] == "refuse"
    assert plain["run"]["baselines"] == ["copy", "random"]
    assert json.loads(json.dumps(plain)) == plain


def test_the_yaml_reads_back_as_the_same_config(config: TrainConfig) -> None:
    named = replace(config, run=replace(config.run, output_dir="Ausgänge: ü"))
    text = to_yaml(named)
    assert "Ausgänge: ü" in text
    assert yaml.safe_load(text) == to_dict(named)
    assert next(iter(yaml.safe_load(text))) == "seed"


def test_limits_are_the_tasks_two(config: TrainConfig) -> None:
    assert config.task.limits == (64, 48)
    open_ended: TaskConfig = replace(config.task, max_source_tokens=None, max_target_tokens=None)
    assert open_ended.limits == (0, 0)


@pytest.mark.parametrize(
    ("changes", "sources"),
    [
        ({"encoder_revision": "v1"}, (("bert", "v1"), ("bert", "v1"))),
        ({"encoder_revision": "v1", "decoder_revision": "v2"}, (("bert", "v1"), ("bert", "v2"))),
        ({"encoder_revision": "v1", "decoder": "other"}, (("bert", "v1"), ("other", None))),
        ({}, (("bert", None), ("bert", None))),
    ],
)
def test_a_pinned_checkpoint_is_pinned_in_both_halves(
    config: TrainConfig, changes: dict[str, str], sources: tuple[tuple[str, str | None], ...]
) -> None:
    assert replace(config.model, **{"encoder": "bert", "decoder": "bert", **changes}).sources == sources
