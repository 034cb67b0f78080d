"""What a run loads before it trains: checkpoints found, limits checked, splits tokenised, the model warm-started."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from encdec_train import console
from encdec_train.cluster import bundle
from encdec_train.config import (
    Accelerator,
    EvaluateConfig,
    GenerateConfig,
    Init,
    ModelConfig,
    Parts,
    ScoreConfig,
    TaskConfig,
    TrainConfig,
)
from encdec_train.data.sources import SplitSource, splits_of
from encdec_train.errors import ConfigError, ModelError, fault
from encdec_train.fingerprint import folder_sha256, json_sha256

if TYPE_CHECKING:
    import torch
    from transformers import EncoderDecoderModel, GenerationConfig, PreTrainedTokenizerBase

    from encdec_train.data.load import Rows
    from encdec_train.data.preprocess import EncodedSplit, TextCodec
    from encdec_train.decoding.search import Engine, SearchSettings
    from encdec_train.modeling.checkpoints import Source
    from encdec_train.modeling.warm_start import WarmStart

DEMO = "demo"  # as model.encoder or model.decoder: the checkpoint that the demo pretrains
AUTO_MICRO_TOKENS = {"cpu": 4096, "cuda": 32768}  # of what keeps no gradients; `training.budget` chooses for the rest
DECODING_FACTOR = {"cpu": 8, "cuda": 4}  # a batch holds so many micro-batches: no gradients are kept (docs/adr/0020)


@dataclass(frozen=True)
class Session:
    """What is loaded besides the model."""

    halves: "tuple[Source, Source]"  # the encoder's and the decoder's checkpoint
    codec: "TextCodec"  # both tokenizers
    splits: "dict[str, EncodedSplit]"  # the tokenised splits by name


def find_splits(config: TrainConfig | EvaluateConfig | ScoreConfig) -> dict[str, SplitSource]:
    """Find a task's splits by name: in the bundle where the config names one, else where they come from.

    Raises:
        EncDecError: When they are not there.
    """
    if (bundled := bundle.opened(config)) is not None:
        return bundled.splits(config.task) if bundle.asked_rows(config) else {}
    return splits_of(config.task, Path(config.run.cache_dir))


def make_bundle(config: TrainConfig) -> Path:
    """Collect what a run reads, for machines without network; returns the folder.

    Raises:
        EncDecError: Something is missing, or something else is at the bundle's place.
    """
    cache = Path(config.run.cache_dir)
    splits, model = splits_of(config.task, cache), with_demo_checkpoint(config.model, cache)
    return bundle.build(config, checkpoint_fingerprints(config.model), _find_halves(model, model.sources), splits)


def _find_halves(
    model: ModelConfig, named: tuple[tuple[str, str | None], tuple[str, str | None]]
) -> "tuple[Source, Source]":
    """Find both checkpoints; a decoder alone stands for both sides."""
    from encdec_train.modeling.causal import find_alone
    from encdec_train.modeling.checkpoints import find_pair

    if model.encoder is None:
        return (find_alone(*named[1]),) * 2
    return find_pair(named, model.share, model.init)


def run_fingerprints(config: TrainConfig) -> dict[str, str]:
    """Return `checkpoint_fingerprints`: of what was bundled, where the config names a bundle."""
    bundled = bundle.opened(config)
    return checkpoint_fingerprints(config.model) if bundled is None else dict(bundled.manifest["checkpoints"])


def checkpoint_fingerprints(model: ModelConfig) -> dict[str, str]:
    """Say which weights a run starts from: by content for a folder, by id and revision for the Hub."""
    found = {}
    for half, (name, revision) in zip(("encoder", "decoder"), model.sources, strict=True):
        if half == "encoder" and model.encoder is None:
            continue
        if name == DEMO:
            found[half] = demo_key()
        else:
            found[half] = _folder_fingerprint(f"model.{half}", Path(name)) or f"{name}@{revision}"
    return found


def _folder_fingerprint(key: str, folder: Path) -> str | None:
    if not folder.is_dir():
        return None
    inside = folder / "export"  # a run's folder stands for it
    try:
        return folder_sha256(inside if (inside / "config.json").is_file() else folder)
    except ModelError as error:
        raise ModelError(f"{key}: {error}") from error


def demo_key() -> str:
    """Name the demo's checkpoint after everything that decides its weights."""
    from encdec_train.data import demo_corpus
    from encdec_train.data.demo import DemoSizes
    from encdec_train.modeling import pretrain

    parts = [demo_corpus.fingerprint(DemoSizes()), pretrain.fingerprint(pretrain.PretrainSettings())]
    return f"demo-bert-{json_sha256(parts)[:12]}"


def with_demo_checkpoint(model: ModelConfig, cache: Path) -> ModelConfig:
    """Pretrain the demo's own BERT where the config asks for it, once for all runs of a cache."""
    if DEMO not in {model.encoder, model.decoder}:
        return model
    from encdec_train.data import demo_corpus
    from encdec_train.data.demo import DemoSizes
    from encdec_train.modeling import pretrain

    folder = cache / demo_key()
    if not (folder / "config.json").is_file():
        text = demo_corpus.write_corpus(cache / DEMO, DemoSizes())["pretrain"]
        settings = pretrain.PretrainSettings()
        console.say(f"pretraining a tiny BERT on {text} (once; kept in {folder})")
        with console.progress(settings.steps, "pretrain") as bar:
            pretrain.pretrain_mlm(text, folder, settings, on_step=lambda step, total, loss: bar.advance(loss=loss))
    encoder = str(folder) if model.encoder == DEMO else model.encoder
    return replace(model, encoder=encoder, decoder=str(folder) if model.decoder == DEMO else model.decoder)


def local_model(config: TrainConfig) -> ModelConfig:
    """Return the model with the demo's own BERT in place of its name; a bundle has it under its name."""
    return config.model if config.bundle.path else with_demo_checkpoint(config.model, Path(config.run.cache_dir))


def open_session(config: TrainConfig, rows: "Mapping[str, Rows]", sources: Mapping[str, SplitSource]) -> Session:
    """Find the checkpoints, check the task's limits against them, and tokenise. No weights yet.

    Raises:
        ConfigError: When the task's limits pass the checkpoints' positions, or there are more beams than tokens.
        ModelError: When a checkpoint or its tokenizer cannot be used.
        DataError: When a pair is too long and `task.overlong=refuse`, or holds no token.
    """
    from encdec_train.data.preprocess import TextCodec
    from encdec_train.modeling.checkpoints import special_ids

    named, bundled = config.model.sources, bundle.opened(config)
    if bundled is not None:
        named = (bundled.source(*named[0]), bundled.source(*named[1]))
    encoder, decoder = _find_halves(config.model, named)
    if bundled is not None:  # where they came from, for the manifest
        encoder, decoder = (replace(one, revision=bundled.commit(at)) for at, one in enumerate((encoder, decoder)))
    _check_positions(config.task, encoder, decoder)
    if (config.decoding.num_beams or 1) > decoder.config.vocab_size:
        reason = f"the vocabulary has {decoder.config.vocab_size} tokens"
        raise ConfigError(fault("decoding.num_beams", "no more than tokens", config.decoding.num_beams, reason))
    ids = special_ids(decoder)
    source_pad = encoder.tokenizer.pad_token_id or 0  # masked, so any id of the vocabulary will do
    codec = TextCodec(encoder.tokenizer, decoder.tokenizer, ids.start, ids.eos, ids.pad, source_pad)
    splits = _tokenise(config, codec, rows, sources)
    return Session((encoder, decoder), codec, splits)


def warm_start(config: TrainConfig, session: Session, init: Init) -> "WarmStart":
    """Build the model, print what was loaded and what is fresh, and freeze what the config names.

    Raises:
        EncDecError: When a checkpoint cannot be used, or `optim.freeze` names nothing.
    """
    from encdec_train.modeling import causal
    from encdec_train.modeling.families import is_cross_attention
    from encdec_train.modeling.warm_start import Changes, build, describe
    from encdec_train.training.optim import freeze

    model = config.model
    dropouts = (model.dropout, model.attention_dropout)
    changes = Changes(dropouts, model.init_parts, model.layers, model.init_cross_attention)
    if session.halves[1].alone:
        started = causal.build(session.halves[1], init, seed=config.seed, changes=changes)
    else:
        started = build(*session.halves, model.share, init, seed=config.seed, changes=changes)
    header, rows = describe(started)
    console.say(console.table(rows, header))
    decoder, in_layers = started.halves[-1], model.init_parts is not Parts.embeddings
    if decoder.loaded and in_layers and any(is_cross_attention(name) for name in decoder.fresh_tensors):
        console.say("cross-attention starts from random weights, as in the paper; where source and target are of one")
        console.say("language a copy of self-attention learnt sooner: model.init_cross_attention=self_attention")
    freeze(started.model, config.optim.freeze)
    return started


def device_type(accelerator: Accelerator) -> str:
    """Return `cuda` or `cpu`.

    Raises:
        ConfigError: When a GPU is asked for and there is none.
    """
    import torch

    available = torch.cuda.is_available()
    if accelerator is Accelerator.gpu and not available:
        raise ConfigError(fault("trainer.accelerator", "auto or cpu", "gpu", "torch sees no GPU on this machine"))
    return "cuda" if available and accelerator is not Accelerator.cpu else "cpu"


def micro_tokens(max_micro_tokens: int | str, device: str) -> int:
    """Resolve `data.max_micro_tokens` for a device where no gradients are kept: validation and decoding."""
    return max_micro_tokens if isinstance(max_micro_tokens, int) else AUTO_MICRO_TOKENS[device]


def search_of(
    config: TrainConfig | EvaluateConfig | GenerateConfig, exported: "GenerationConfig | None" = None
) -> "SearchSettings":
    """Say how a config decodes on this machine, with an export's settings where the config leaves them open."""
    from encdec_train.decoding.settings import SearchSettings

    device = device_type(config.trainer.accelerator)
    budget = micro_tokens(config.data.max_micro_tokens, device) * DECODING_FACTOR[device]
    return SearchSettings.of(config.decoding, config.task.max_target_tokens, budget, exported, config.seed)


@dataclass(frozen=True)
class Exported:
    """A finished model, ready to decode."""

    model: "EncoderDecoderModel"  # on its device
    engine: "Engine"  # that decodes with it
    codec: "TextCodec"  # its tokenizers, with the special ids that the model decodes with
    search: "SearchSettings"  # the config's settings, else the export's
    max_source_tokens: int  # longer sources are cut
    precision: Callable[[], AbstractContextManager[object]]  # entered around each search


def open_export(config: EvaluateConfig | GenerateConfig) -> Exported:
    """Load the checkpoint that a config names.

    Raises:
        ConfigError: When neither the config nor the export says how long an output may be.
        ModelError: When it is no export.
    """
    from encdec_train.data.preprocess import TextCodec
    from encdec_train.decoding.search import Engine
    from encdec_train.modeling.export import load
    from encdec_train.modeling.families import is_causal
    from encdec_train.modeling.precision import autocast
    from encdec_train.training.memory import keep_freed_memory

    bundled = bundle.opened(config)
    model, (source, target) = load(bundled.source(config.checkpoint)[0] if bundled else config.checkpoint)
    ids, device = model.generation_config, device_type(config.trainer.accelerator)
    start = ids.eos_token_id if is_causal(model) else ids.decoder_start_token_id
    codec = TextCodec(source, target, start, ids.eos_token_id, ids.pad_token_id, source.pad_token_id or 0)
    limit, search = source_limit(config.task, model, source), search_of(config, ids)
    cast("torch.nn.Module", model).to(device)
    if device == "cpu":
        keep_freed_memory()
    precision = partial(autocast, config.trainer.precision, device)
    with precision():
        engine = Engine(model)
    return Exported(model, engine, codec, search, limit, precision)


def source_limit(task: TaskConfig, model: "EncoderDecoderModel", tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the longest source in tokens: the config's, else what the export says, as far as its positions reach."""
    if task.max_source_tokens is not None:
        return task.max_source_tokens
    from encdec_train.modeling.families import max_positions

    said = int(tokenizer.model_max_length)
    return min(said, max_positions(getattr(model, "encoder", model).config) or said)


def _check_positions(task: TaskConfig, encoder: "Source", decoder: "Source") -> None:
    wanted = {"max_source_tokens": (task.limits[0], encoder), "max_target_tokens": (task.limits[1], decoder)}
    faults, remedy = [], "Lower it or choose another checkpoint"
    for key, (limit, half) in wanted.items():
        if half.max_positions is not None and limit > half.max_positions:
            reason = f"{half.name} has {half.max_positions} positions"
            faults.append(fault(f"task.{key}", f"2..{half.max_positions}", limit, reason, remedy))
    if decoder.alone and not faults and decoder.max_positions is not None and sum(task.limits) > decoder.max_positions:
        reason = f"source and target are one sequence, and {decoder.name} has {decoder.max_positions} positions"
        expected = f"at most {decoder.max_positions} together with task.max_target_tokens"
        got = f"{task.limits[0]} + {task.limits[1]}"
        faults.append(fault("task.max_source_tokens", expected, got, reason, "Lower one of them"))
    if faults:
        raise ConfigError(faults)


def _tokenise(
    config: TrainConfig, codec: "TextCodec", rows: "Mapping[str, Rows]", sources: Mapping[str, SplitSource]
) -> "dict[str, EncodedSplit]":
    from encdec_train.data.preprocess import Limits, codec_fingerprint, encode_split, split_key

    task, cache = config.task, Path(config.run.cache_dir)
    limits, codec_key = Limits(*task.limits, task.overlong), codec_fingerprint(codec)
    reading = [task.source_column, task.target_column, task.reverse]
    splits = {}
    for name, split_rows in rows.items():
        rows_key = json_sha256([sources[name].fingerprint, len(split_rows), *reading])
        key = split_key(rows_key, codec_key, limits)
        split = splits[name] = encode_split(split_rows, codec, limits, name=name, cache_dir=cache, cache_key=key)
        said = f"{name}: {len(split):,} pairs"
        if split.num_truncated_sources:
            said += f", {split.num_truncated_sources:,} sources cut at task.max_source_tokens={task.max_source_tokens}"
        if split.num_truncated_targets:
            said += f", {split.num_truncated_targets:,} targets cut at task.max_target_tokens={task.max_target_tokens}"
        console.say(said)
    return splits
