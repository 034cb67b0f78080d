"""Which values cannot stand, alone or beside each other. Nothing is loaded to find out."""

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from encdec_train.config import (
    AnyConfig,
    DataConfig,
    ModelConfig,
    RunConfig,
    Schedule,
    Share,
    TaskConfig,
    TrainConfig,
    TrainerConfig,
    leaves,
)
from encdec_train.errors import fault

NEEDED_TO_TRAIN = {
    "task.max_source_tokens",
    "task.max_target_tokens",
    "decoding.num_beams",
    "decoding.length_penalty",
    "decoding.no_repeat_ngram",
}
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check(config: AnyConfig) -> list[str]:
    """Collect every value out of range and every contradiction, without loading anything.

    Returns:
        One message a fault, in the order of the keys; empty when the config can be run.
    """
    faults = [text for key, value, limits in leaves(config) if (text := _out_of_range(key, value, limits))]
    for section in (RunConfig, TaskConfig, ModelConfig, DataConfig, TrainerConfig):
        for f in fields(config):
            value = getattr(config, f.name)
            if isinstance(value, section):
                faults += _SECTION_CHECKS[section](value)
    if isinstance(config, TrainConfig):
        faults += _check_train(config)
    return faults


def _out_of_range(key: str, value: object, limits: Mapping[str, Any]) -> str | None:
    if not limits or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    low, high, below = limits["low"], limits["high"], limits["below"]
    if (
        value < low
        or (high is not None and value > high)
        or (below is not None and value >= below)
        or math.isnan(value)
    ):
        upper = f"..{high}" if high is not None else f" to below {below}" if below is not None else " or more"
        return fault(key, f"{low}{upper}", value)
    return None


def _check_run(run: RunConfig) -> list[str]:
    if run.name is None or RUN_NAME.fullmatch(run.name):
        return []
    return [
        fault(
            "run.name",
            "letters, digits, `.`, `_` and `-`, a letter or digit first",
            run.name,
            "it is the run's folder below run.output_dir",
        )
    ]


def _check_task(task: TaskConfig) -> list[str]:
    faults = []
    local = task.name in {"files", "demo"}
    if local and task.revision is not None:
        faults.append(fault("task.revision", "null", task.revision, f"task={task.name} reads nothing from the Hub"))
    if task.source_column == task.target_column:
        faults.append(fault("task.target_column", "another column than task.source_column", task.target_column))
    paths = {key: getattr(task, key) for key in ("train_file", "validation_file", "test_file")}
    named = {key: Path(path).resolve() for key, path in paths.items() if path is not None}
    faults += [
        fault(f"task.{key}", "another file than task.train_file", paths[key], "scores on training data say nothing")
        for key in ("validation_file", "test_file")
        if key in named and named[key] == named.get("train_file")
    ]
    return faults


def _check_model(model: ModelConfig) -> list[str]:
    if model.share is Share.all and model.encoder != model.decoder:
        return [
            fault(
                "model.share",
                "none or embeddings",
                model.share.value,
                f"sharing all needs one checkpoint for both halves, got {model.encoder} and {model.decoder}",
                "Set model.decoder=${model.encoder}",
            )
        ]
    return []


def _check_data(data: DataConfig) -> list[str]:
    faults = []
    if (data.batch_examples is None) == (data.batch_target_tokens is None):
        got = f"{data.batch_examples} and data.batch_target_tokens={data.batch_target_tokens}"
        faults.append(
            f"data.batch_examples: expected either it or data.batch_target_tokens, got {got}. "
            "Set the other one to null."
        )
    micro = data.max_micro_tokens
    if micro != "auto" and (not isinstance(micro, int) or isinstance(micro, bool) or micro < 1):
        faults.append(fault("data.max_micro_tokens", "auto, or 1 or more tokens", micro))
    return faults


def _check_trainer(trainer: TrainerConfig) -> list[str]:
    if trainer.max_steps is None and trainer.max_epochs is None:
        return ["trainer.max_steps: expected it or trainer.max_epochs, got null for both. Set one (steps win)."]
    return []


_SECTION_CHECKS: dict[type, Any] = {
    RunConfig: _check_run,
    TaskConfig: _check_task,
    ModelConfig: _check_model,
    DataConfig: _check_data,
    TrainerConfig: _check_trainer,
}


def _check_train(config: TrainConfig) -> list[str]:
    faults = [
        fault(key, "a number", "null", "only an export can fill it in")
        for key, value, _ in leaves(config)
        if value is None and key in NEEDED_TO_TRAIN
    ]
    steps, warmup = config.trainer.max_steps, config.optim.warmup_steps
    if steps is not None and warmup is not None and warmup >= steps and config.optim.schedule is not Schedule.constant:
        faults.append(
            fault(
                "optim.warmup_steps",
                f"below trainer.max_steps={steps}",
                warmup,
                "the learning rate would never reach optim.lr",
            )
        )
    validates = config.task.name != "files" or config.task.validation_file is not None
    if config.trainer.patience_validations is not None and not validates:
        faults.append(
            fault(
                "trainer.patience_validations",
                "null",
                config.trainer.patience_validations,
                "there is no task.validation_file to lose patience over",
            )
        )
    limit = config.decoding.max_new_tokens
    longest = config.task.max_target_tokens
    if limit is not None and longest is not None and limit > longest:
        faults.append(
            fault(
                "decoding.max_new_tokens",
                f"1..{longest}",
                limit,
                "the model is never trained past task.max_target_tokens",
            )
        )
    return faults
