"""Which values cannot stand, alone or beside each other. Nothing is loaded to find out."""

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from encdec_train.config import (
    AnyConfig,
    CrossInit,
    DataConfig,
    DecodingConfig,
    Group,
    Init,
    ModelConfig,
    OptimConfig,
    Parts,
    RunConfig,
    Schedule,
    Share,
    TaskConfig,
    TrainConfig,
    TrainerConfig,
    layer_numbers,
    leaves,
    shared_groups,
    spelled,
)
from encdec_train.config_cluster import SubmitConfig, check_submit
from encdec_train.errors import fault

NEEDED_TO_TRAIN = {
    "task.max_source_tokens",
    "task.max_target_tokens",
    "decoding.num_beams",
    "decoding.length_penalty",
    "decoding.no_repeat_ngram",
}
FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NGRAMS_OF_PREFIX = "without an encoder the source's n-grams would count as repeated, and no output could quote it"
IN_A_FOLDER_NAME = "letters, digits, `.`, `_` and `-`, a letter or digit first"


def check_ranges(config: AnyConfig) -> list[str]:
    """Collect every number out of its range; a leaf that has no value yet is skipped."""
    return [text for key, value, limits in leaves(config) if (text := _out_of_range(key, value, limits))]


def check(config: AnyConfig) -> list[str]:
    """Collect every contradiction between values, without loading anything.

    Returns:
        One message a fault, section by section; empty when the config can be run.
    """
    faults: list[str] = []
    for section, check_section in _SECTION_CHECKS.items():
        for f in fields(config):
            value = getattr(config, f.name)
            if isinstance(value, section):
                faults += check_section(value)
    if isinstance(config, TrainConfig):
        faults += _check_train(config)
    if isinstance(config, SubmitConfig):
        faults += check_submit(config)
    return faults


def _out_of_range(key: str, value: object, limits: Mapping[str, Any]) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return fault(key, "a finite number", value)
    if not limits or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    low, high, below = limits["low"], limits["high"], limits["below"]
    if value < low or (high is not None and value > high) or (below is not None and value >= below):
        upper = f"..{high}" if high is not None else f" to below {below}" if below is not None else " or more"
        return fault(key, f"{low}{upper}", value)
    return None


def _check_run(run: RunConfig) -> list[str]:
    if run.name is None or FOLDER_NAME.fullmatch(run.name):
        return []
    return [fault("run.name", IN_A_FOLDER_NAME, run.name, "it is the run's folder below run.output_dir")]


def _check_task(task: TaskConfig) -> list[str]:
    faults = []
    local = task.name in {"files", "demo", "wikisplit"}
    if (local or task.files) and task.revision is not None:
        what = f"task={task.name}" if local else "with files of your own it"
        faults.append(fault("task.revision", "null", task.revision, f"{what} reads nothing from the Hub"))
    if task.source_column == task.target_column:
        faults.append(fault("task.target_column", "another column than task.source_column", task.target_column))
    paths = {key: getattr(task, key) for key in ("train_file", "validation_file", "test_file")}
    named = {key: Path(path).resolve() for key, path in paths.items() if path is not None}
    if task.name == "demo" and named:
        key = next(iter(named))
        return [*faults, fault(f"task.{key}", "null", paths[key], "the demo writes its own files", "Add task=files")]
    faults += [
        fault(f"task.{key}", "another file than task.train_file", paths[key], "scores on training data say nothing")
        for key in ("validation_file", "test_file")
        if key in named and named[key] == named.get("train_file")
    ]
    return faults


def _check_model(model: ModelConfig) -> list[str]:
    faults = []
    if not FOLDER_NAME.fullmatch(model.name):
        faults.append(fault("model.name", IN_A_FOLDER_NAME, model.name, "it is a part of the run's folder"))
    if model.encoder is None:
        faults += _check_alone(model)
    elif model.name == "gpt":
        reason = "model=gpt has no encoder: its decoder reads the source as a prefix"
        faults.append(fault("model.encoder", "null", model.encoder, reason, "Set model.encoder=null"))
    encoder, decoder = model.sources
    if model.share is Share.all and encoder != decoder:
        left, right = ("@".join(part for part in source if part) for source in (encoder, decoder))
        reason = f"sharing all needs one checkpoint for both halves, got {left} and {right}"
        remedy = "Leave model.decoder out, or share less"
        faults.append(fault("model.share", "none or embeddings", model.share.value, reason, remedy))
    groups = shared_groups(model.share) if model.encoder is not None else set()
    if model.init is Init.decoder and not groups <= {Group.embeddings, Group.word_embeddings}:
        reason = "sharing layers would put the decoder's weights into the encoder that is to be random"
        faults.append(
            fault("model.share", "none, or embeddings only, with model.init=decoder", spelled(model.share), reason)
        )
    random = model.init in {Init.encoder, Init.none} or model.init_parts is Parts.embeddings
    if model.init_cross_attention is CrossInit.self_attention and random:
        reason = "the decoder's layers start from random weights, so there is nothing to copy"
        faults.append(fault("model.init_cross_attention", "fresh", "self_attention", reason))
    for key, value in (("encoder_layers", model.encoder_layers), ("decoder_layers", model.decoder_layers)):
        if (why := _layer_fault(value)) is not None:
            faults.append(fault(f"model.{key}", "layers in ascending order, such as [1,2,5-8]", str(value), why))
    return faults


def _check_alone(model: ModelConfig) -> list[str]:
    """Find what a model without an encoder has no use for."""
    reason, demo = "there is no encoder (model.encoder=null)", "the demo pretrains a BERT, which does not write"
    wanted = (
        ("share", not shared_groups(model.share), "none", spelled(model.share), reason),
        ("init", model.init in {Init.decoder, Init.none}, "decoder or none", model.init.value, reason),
        ("encoder_layers", model.encoder_layers is None, "null", str(model.encoder_layers), reason),
        ("encoder_revision", model.encoder_revision is None, "null", model.encoder_revision, reason),
        ("init_cross_attention", model.init_cross_attention is CrossInit.fresh, "fresh", "self_attention", reason),
        ("decoder", model.decoder != "demo", "a GPT-2, a folder or a Hub id", model.decoder, demo),
    )
    return [fault(f"model.{key}", expected, got, why) for key, good, expected, got, why in wanted if not good]


def _layer_fault(value: list[int | str] | None) -> str | None:
    try:
        numbers = layer_numbers(value)
    except ValueError:
        return "each item is a number or a range of them"
    if numbers is None:
        return None
    if not numbers:
        return "no layers are left"
    return None if numbers == sorted({*numbers}) and numbers[0] > 0 else "layers are counted from 1, each once"


def _check_data(data: DataConfig) -> list[str]:
    faults = []
    if (data.batch_examples is None) == (data.batch_target_tokens is None):
        got, remedy = "null for both", "Set one of them"
        if data.batch_examples is not None:
            got = f"{data.batch_examples} and {data.batch_target_tokens}"
            remedy = "Set the one that you do not want to null"
        faults.append(f"data.batch_examples: expected either it or data.batch_target_tokens, got {got}. {remedy}.")
    micro = data.max_micro_tokens
    if micro != "auto" and (not isinstance(micro, int) or isinstance(micro, bool) or micro < 1):
        faults.append(fault("data.max_micro_tokens", "auto, or 1 or more tokens", micro))
    return faults


def _check_optim(optim: OptimConfig) -> list[str]:
    faults = []
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):  # noqa: PLR2004 - Adam has two
        faults.append(fault("optim.betas", "two numbers from 0 to below 1, such as [0.9,0.999]", optim.betas))
    if optim.max_grad_norm == 0:
        reason = "it would clip every gradient to nothing"
        faults.append(fault("optim.max_grad_norm", "above 0", optim.max_grad_norm, reason, "Set null for no clipping"))
    return faults


def _check_trainer(trainer: TrainerConfig) -> list[str]:
    if trainer.max_steps is None and trainer.max_epochs is None:
        return ["trainer.max_steps: expected it or trainer.max_epochs, got null for both. Set one (steps win)."]
    return []


def check_decoding(decoding: DecodingConfig) -> list[str]:
    """Collect what decoding settings contradict; what is null is not known yet."""
    beams, drawn, faults = decoding.num_beams, decoding.temperature is not None, []

    def found(key: str, expected: str, reason: str) -> None:
        faults.append(fault(f"decoding.{key}", expected, getattr(decoding, key), reason))

    if decoding.temperature == 0:
        found("temperature", "above 0", "the most probable text is decoding.temperature=null")
    if drawn and beams is not None and beams > 1:
        found("num_beams", "1", "decoding.temperature draws tokens at random")
    for key in ("top_k", "top_p") if not drawn else ():
        if getattr(decoding, key) is not None:
            found(key, "null", "nothing is drawn without decoding.temperature")
    if not drawn and beams is not None and (decoding.num_return_sequences or 1) > beams:
        found("num_return_sequences", f"1..{beams}", "a search returns no more texts than decoding.num_beams")
    for low, high in (("min_new_tokens", "max_new_tokens"), ("min_length_ratio", "max_length_ratio")):
        least, most = getattr(decoding, low), getattr(decoding, high)
        if least is not None and most is not None and least > most:
            found(low, f"at most decoding.{high}={most}", "no output could end")
    return faults


_SECTION_CHECKS: dict[type, Any] = {
    RunConfig: _check_run,
    TaskConfig: _check_task,
    ModelConfig: _check_model,
    DataConfig: _check_data,
    OptimConfig: _check_optim,
    TrainerConfig: _check_trainer,
    DecodingConfig: check_decoding,
}


def _check_train(config: TrainConfig) -> list[str]:
    faults = [
        fault(key, "a number", "null", "only an export can fill it in")
        for key, value, _ in leaves(config)
        if value is None and key in NEEDED_TO_TRAIN
    ]
    steps, warmup = config.trainer.max_steps, config.optim.warmup_steps
    if steps is not None and warmup is not None and warmup >= steps and config.optim.schedule is not Schedule.constant:
        reason = "the learning rate would never reach optim.lr"
        faults.append(fault("optim.warmup_steps", f"below trainer.max_steps={steps}", warmup, reason))
    average, every = config.optim.average_last, config.optim.average_every_steps
    if (average > 1) != (every is not None):
        reason = "they say together which steps are averaged"
        faults.append(fault("optim.average_every_steps", "a number with optim.average_last above 1", every, reason))
    if average > 1 and config.trainer.patience_validations is not None:
        reason = "a run that loses its patience does not reach the steps to be averaged"
        faults.append(fault("trainer.patience_validations", "null with optim.average_last above 1", None, reason))
    frozen, model = config.optim.freeze_warm_steps, config.model
    if frozen and model.encoder is None and (model.init, model.init_parts) == (Init.decoder, Parts.all):
        reason = "without an encoder everything comes from the checkpoint: nothing would learn in those steps"
        faults.append(fault("optim.freeze_warm_steps", "0", frozen, reason))
    if model.encoder is None and config.decoding.no_repeat_ngram:
        faults.append(fault("decoding.no_repeat_ngram", "0", config.decoding.no_repeat_ngram, NGRAMS_OF_PREFIX))
    faults += _check_validation(config) + _check_sharding(config)
    limit, longest = config.decoding.max_new_tokens, config.task.max_target_tokens
    if limit is not None and longest is not None and limit > longest:
        reason = "the model is never trained past task.max_target_tokens"
        faults.append(fault("decoding.max_new_tokens", f"1..{longest}", limit, reason))
    return faults


def _check_sharding(config: TrainConfig) -> list[str]:
    trainer, faults = config.trainer, []
    if trainer.sharding and trainer.devices * trainer.num_nodes == 1 and not isinstance(config, SubmitConfig):
        reason = "it lays weights in parts over several ranks, and there is one"
        faults.append(fault("trainer.sharding", "false", "true", reason, "Set trainer.devices or trainer.num_nodes"))
    if trainer.sharding and config.data.max_micro_tokens == "auto":
        reason = "what it tries out on one rank is a pass of all ranks with trainer.sharding=true"
        faults.append(fault("data.max_micro_tokens", "a number", "auto", reason, "Try 4096"))
    return faults


def _check_validation(config: TrainConfig) -> list[str]:
    trainer, faults = config.trainer, []
    task = config.task
    validates = task.validation_file is not None or not (task.files or task.name == "files")
    if trainer.patience_validations is not None and not validates:
        reason = "there is no task.validation_file to lose patience over"
        faults.append(fault("trainer.patience_validations", "null", trainer.patience_validations, reason))
    if trainer.best_metric != "loss" and not validates:
        reason = "there is no task.validation_file to measure it on"
        faults.append(fault("trainer.best_metric", "loss", trainer.best_metric, reason))
    if trainer.best_metric != "loss" and validates and not trainer.decoded_examples:
        reason = "trainer.decoded_examples=0 leaves nothing to measure it on"
        faults.append(fault("trainer.best_metric", "loss", trainer.best_metric, reason))
    return faults
