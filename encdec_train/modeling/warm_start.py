"""Warm start: one encoder-decoder model from two pretrained checkpoints (Rothe et al. 2020, section 2)."""

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import EncoderDecoderConfig, EncoderDecoderModel, PretrainedConfig, PreTrainedModel

from encdec_train.config import CrossInit, Group, Init, Parts, Share, shared_groups, spelled
from encdec_train.errors import ConfigError, ModelError, fault
from encdec_train.modeling import families
from encdec_train.modeling.checkpoints import Source, find_pair, quiet_library, special_ids
from encdec_train.modeling.cross_attention import copy_self_attention
from encdec_train.modeling.sharing import share as share_parameters

SHOWN_PARTS = 3  # of a folder's path


@dataclass(frozen=True)
class Half:
    """What became of one half's parameters. Counts are elements, not tensors."""

    name: str  # `encoder` or `decoder`
    checkpoint: str  # where the loaded ones come from
    loaded: int  # taken from the checkpoint, each to its own place
    copied: int  # cross-attention that starts as a copy of self-attention
    fresh: int  # initialised at random
    copied_tensors: Sequence[str]  # the names of what was copied into
    fresh_tensors: Sequence[str]


@dataclass(frozen=True)
class WarmStart:
    """A model and the account of where its parameters come from."""

    model: EncoderDecoderModel  # in train mode, float32, SDPA attention where the library has it; or a plain causal LM
    halves: Sequence[Half]  # encoder and decoder, before sharing; or the decoder alone
    shared: int  # parameters (elements) that both halves use
    total: int  # distinct parameters (elements)
    warm: Sequence[str]  # names of the distinct parameters that were loaded


@dataclass(frozen=True)
class Changes:
    """What is done to the checkpoints' own shape and weights; by default nothing."""

    dropouts: tuple[float | None, float | None] = (None, None)  # hidden and attention; None: the checkpoint's
    parts: Parts = Parts.all  # what is taken from a checkpoint
    layers: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None)  # kept of each half, counted from 1
    cross_attention: CrossInit = CrossInit.fresh


def warm_start(
    encoder: str,
    decoder: str | None = None,
    *,
    share: str | list[str] = "none",
    init: str = "both",
    init_cross_attention: str = "fresh",
    seed: int = 0,
) -> EncoderDecoderModel:
    """Build a plain `EncoderDecoderModel` from two checkpoints, ready for anybody's trainer.

    Args:
        encoder: A local folder (of a checkpoint, an export or a run) or a Hub id.
        decoder: The same; None takes the encoder's.
        share: `none`, `embeddings`, `all` (but the cross-attention), or groups of parameters as in `model.share`.
        init: Which halves start from their checkpoint: `both`, `encoder`, `decoder` or `none`.
        init_cross_attention: `fresh`, or `self_attention`: a copy of each layer's own, where that was loaded.
        seed: Of the fresh parameters.

    Raises:
        ModelError: When a checkpoint cannot be used.
    """
    what = Share(share) if isinstance(share, str) else [Group(name) for name in share]
    halves = find_pair(((encoder, None), (decoder or encoder, None)), what, Init(init), "")
    changes = Changes(cross_attention=CrossInit(init_cross_attention))
    return build(*halves, what, Init(init), seed=seed, changes=changes).model


def build(
    encoder: Source, decoder: Source, share: list[Group] | Share, init: Init, *, seed: int, changes: Changes = Changes()
) -> WarmStart:
    """Build the pair and account for every parameter.

    The seed is that of the fresh parameters; the caller's random state is left as it was.

    Raises:
        ConfigError: When a layer is asked for that a checkpoint does not have.
        ModelError: When weights cannot be loaded, or the halves cannot share.
    """
    _check_vocabularies(encoder, decoder, share)
    with torch.random.fork_rng(devices=[]), quiet_library():
        torch.manual_seed(seed)
        left, left_warm = load_half("encoder", encoder, init in {Init.both, Init.encoder}, changes)
        right, right_warm = load_half("decoder", decoder, init in {Init.both, Init.decoder}, changes)
        copied = (
            copy_self_attention(right, right_warm) if changes.cross_attention is CrossInit.self_attention else set()
        )
        config = EncoderDecoderConfig.from_encoder_decoder_configs(left.config, right.config)
        config.tie_word_embeddings = right.config.tie_word_embeddings
        model = EncoderDecoderModel(config=config, encoder=left, decoder=right)
    names = [name for name, _ in model.named_parameters() if name.startswith("enc_to_dec_proj.")]
    bridge = {name: model.get_parameter(name) for name in names}  # the library's, between halves of different width
    if init is Init.both and changes.parts is not Parts.embeddings:
        right_warm |= _take_bridge(bridge, encoder, decoder)
    encoder_half = account("encoder", encoder, left, (left_warm, set()), {})
    halves = (encoder_half, account("decoder", decoder, right, (right_warm, copied), bridge))
    shared = share_parameters(model, share, decoders=init is Init.decoder)
    _set_generation(model, encoder, decoder)
    _check_attention(model)
    model.train()  # from_pretrained leaves eval mode, and Lightning no longer calls train() (known_defects D7)
    warm = [name for name, p in model.named_parameters() if id(p) in left_warm | right_warm]
    return WarmStart(model, halves, shared, sum(p.numel() for p in model.parameters()), warm)


def _check_vocabularies(encoder: Source, decoder: Source, share: list[Group] | Share) -> None:
    words = shared_groups(share) & {Group.embeddings, Group.word_embeddings}
    if words and encoder.tokenizer.get_vocab() != decoder.tokenizer.get_vocab():
        raise ModelError(fault("model.share", "none", spelled(share), "the halves have different vocabularies"))


def load_half(name: str, source: Source, from_checkpoint: bool, changes: Changes) -> tuple[PreTrainedModel, set[int]]:  # noqa: FBT001
    """Load one half, in float32; return it and the ids of the parameters that come from the checkpoint.

    The encoder comes without its pooler, which would get no gradient (known_defects D8).
    """
    config, is_decoder = _configured(source, changes.dropouts, is_decoder=name == "decoder"), name == "decoder"
    with_encoder = families.decoder_class if is_decoder else families.encoder_class
    cls: Any = (families.causal_class if source.alone else with_encoder)(config)
    attention = "sdpa" if cls._supports_sdpa else "eager"  # said to the half itself (known_defects D9)
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": attention}
    if not is_decoder and "add_pooling_layer" in inspect.signature(cls.__init__).parameters:
        options["add_pooling_layer"] = False
    warm: set[int] = set()
    if not from_checkpoint or changes.parts is not Parts.all:
        model = fresh = cls._from_config(config, **options)
    if from_checkpoint:
        model, missing = _whole(source, cls, config, options) if source.part else _plain(source, cls, config, options)
        named = list(model.named_parameters(remove_duplicate=False))
        warm = {id(p) for tensor, p in named if tensor not in missing}
        if not warm:
            expected = "a checkpoint of this architecture"
            raise ModelError(fault(source.key, expected, source.name, "none of its tensors fits"))
        if broken := [tensor for tensor, p in named if id(p) in warm and not p.isfinite().all()]:
            reason = f"{len(broken)} tensors hold NaN or infinity, such as {broken[0]}"
            raise ModelError(fault(source.key, "finite weights", source.name, reason, "Fetch the checkpoint again"))
        if changes.parts is not Parts.all:
            warm &= _take_back(model, fresh, changes.parts)
    _keep_layers(model, changes.layers[is_decoder], f"model.{name}_layers")
    return model, warm


def _configured(source: Source, dropouts: tuple[float | None, float | None], *, is_decoder: bool) -> PretrainedConfig:
    config = type(source.config).from_dict(source.config.to_dict())
    if not source.alone:
        config.is_decoder = config.add_cross_attention = is_decoder
    elif hasattr(config, "add_cross_attention"):
        config.add_cross_attention = False
    if not is_decoder:
        config.use_cache = False  # GPT-2 as an encoder would build one that nobody reads
    named = {"dropout": families.DROPOUT, "attention_dropout": families.ATTENTION_DROPOUT}
    for (key, names), value in zip(named.items(), dropouts, strict=True):
        if value is not None and not families.set_dropout(config, names, value):
            reason = f"{config.model_type} has no such rate under {', '.join(names)}"
            raise ConfigError(fault(f"model.{key}", "null", value, reason))
    return config


def _plain(
    source: Source, cls: type[PreTrainedModel], config: PretrainedConfig, options: dict[str, Any]
) -> tuple[PreTrainedModel, set[str]]:
    """Load a pretrained checkpoint; return what it lacks."""
    try:
        model, info = cast(Any, cls).from_pretrained(
            source.name,
            config=config,
            revision=source.revision,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelError(fault(source.key, "a checkpoint whose weights load", source.name, reason)) from error
    if info["mismatched_keys"]:
        reason = f"{len(info['mismatched_keys'])} differ, such as {min(key for key, *_ in info['mismatched_keys'])}"
        raise ModelError(fault(source.key, "weights in the shapes of config.json", source.name, reason))
    return model, set(info["missing_keys"])


def _whole(
    source: Source, cls: type[PreTrainedModel], config: PretrainedConfig, options: dict[str, Any]
) -> tuple[PreTrainedModel, set[str]]:
    """Load one half of an encoder-decoder checkpoint."""
    pair = cast(Any, EncoderDecoderConfig).from_pretrained(source.name, revision=source.revision)
    whole, missing = _plain(source, EncoderDecoderModel, pair, {"dtype": torch.float32})
    model = cls._from_config(config, **options)
    found = model.load_state_dict(getattr(whole, str(source.part)).state_dict(), strict=False)
    mine = {tensor.removeprefix(f"{source.part}.") for tensor in missing if tensor.startswith(f"{source.part}.")}
    return model, mine | set(found.missing_keys)


def _take_bridge(bridge: dict[str, nn.Parameter], encoder: Source, decoder: Source) -> set[int]:
    """Read the projection between the halves where both are of one encoder-decoder checkpoint; return its ids."""
    found: set[int] = set()
    for file in Path(encoder.name).glob("*.safetensors") if encoder.part and encoder.name == decoder.name else ():
        with safe_open(file, "pt") as tensors, torch.no_grad():
            for name in bridge.keys() & set(tensors.keys()):
                bridge[name].copy_(tensors.get_tensor(name))
                found.add(id(bridge[name]))
    return found


def _take_back(model: PreTrainedModel, fresh: PreTrainedModel, parts: Parts) -> set[int]:
    """Overwrite with fresh weights what is not to be warm; return the ids of what stays."""
    base = families.base_model(model).named_parameters()
    embeddings = {id(p) for name, p in base if families.group_of(name) is Group.embeddings}
    values, stay = dict(fresh.named_parameters()), set()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if (id(p) in embeddings) is (parts is Parts.embeddings):
                stay.add(id(p))
            else:
                p.copy_(values[name])
    return stay


def _keep_layers(model: PreTrainedModel, numbers: Sequence[int] | None, key: str) -> None:
    """Keep some layers only, counted from 1, and number them anew for the library's cache."""
    if numbers is None:
        return
    name, layers = families.layers(model)
    if not layers:
        raise ConfigError(fault(key, "null", str(list(numbers)), f"{model.config.model_type} has no list of layers"))
    if max(numbers) > len(layers):
        raise ConfigError(fault(key, f"layers 1..{len(layers)}", max(numbers), "the checkpoint has no more"))
    kept = nn.ModuleList(layers[number - 1] for number in numbers)
    owner, _, leaf = name.rpartition(".")
    setattr(families.base_model(model).get_submodule(owner), leaf, kept)
    model.config.num_hidden_layers = len(kept)
    for index, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                vars(module)["layer_idx"] = index


def account(
    name: str,
    source: Source,
    model: PreTrainedModel,
    known: tuple[set[int], set[int]],
    bridge: dict[str, nn.Parameter],
) -> Half:
    """Account for one half's parameters (`known`: the ids of those loaded and copied) and those of the bridge to it."""
    parameters = {**dict(sorted(model.named_parameters())), **bridge}
    copied = [tensor for tensor, p in parameters.items() if id(p) in known[1]]
    fresh = [tensor for tensor, p in parameters.items() if id(p) not in known[0] | known[1]]
    num_copied, num_fresh = (sum(parameters[tensor].numel() for tensor in tensors) for tensors in (copied, fresh))
    loaded = sum(p.numel() for p in parameters.values()) - num_copied - num_fresh
    return Half(name, source.name if known[0] else "random", loaded, num_copied, num_fresh, copied, fresh)


def _set_generation(model: EncoderDecoderModel, encoder: Source, decoder: Source) -> None:
    """Write start, end and pad to both configs: `generate` reads only its own (known_defects D3, D4)."""
    model.encoder.config.pad_token_id = encoder.tokenizer.pad_token_id
    ids = special_ids(decoder)
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = ids.start
        config.eos_token_id = ids.eos
        config.pad_token_id = ids.pad
        config.bos_token_id = ids.start
    model.config.vocab_size = model.decoder.config.vocab_size


def _check_attention(model: EncoderDecoderModel) -> None:
    for name, half in (("encoder", model.encoder), ("decoder", model.decoder)):
        got, wanted = families.attention_of(half), "sdpa" if half._supports_sdpa else "eager"
        if got != {wanted}:
            received = " and ".join(sorted(got))
            raise ModelError(fault(f"model.{name}", f"{wanted} attention", received, "the library did not apply it"))


def describe(started: WarmStart) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the printed list: what was loaded, copied, what is fresh (in tensors, by part)."""
    header = ["half", "checkpoint", "loaded", "copied", "fresh", "fresh tensors"]
    rows = []
    for half in started.halves:
        parts = Counter(_part(name) for name in half.fresh_tensors)
        tensors = ", ".join(f"{count} {part}" for part, count in parts.most_common()) or "none"
        counts = [f"{count:,}" for count in (half.loaded, half.copied, half.fresh)]
        rows.append([half.name, _shown(half.checkpoint), *counts, tensors])
    rows.append(["shared", "", f"{started.shared:,}", "", "", ""])
    rows.append(["distinct", "", f"{started.total:,}", "", "", ""])
    return header, rows


def _part(name: str) -> str:
    """Name the part of a model that a tensor belongs to."""
    if families.is_cross_attention(name):
        return "cross-attention"
    if name.startswith(("cls.", "lm_head.", "generator_")):
        return "LM head"
    if name.startswith("enc_to_dec_proj"):
        return "projection"
    return "embeddings" if any(part in name for part in families.EMBEDDINGS) else "layers"


def _shown(checkpoint: str) -> str:
    """Shorten a folder to its last two parts; the manifest has it whole."""
    parts = Path(checkpoint).parts
    return str(Path("…", *parts[-2:])) if len(parts) > SHOWN_PARTS else checkpoint
