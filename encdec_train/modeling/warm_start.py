"""Warm start: one encoder-decoder model from two pretrained checkpoints (Rothe et al. 2020, section 2)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PretrainedConfig,
    PreTrainedModel,
)

from encdec_train.config import Init, Share
from encdec_train.errors import ModelError, fault
from encdec_train.modeling.checkpoints import Source, find, quiet_library, special_ids
from encdec_train.modeling.sharing import share as share_parameters

SHOWN_PARTS = 3  # of a folder's path


@dataclass(frozen=True)
class Half:
    """What became of one half's parameters. Counts are elements, not tensors."""

    name: str  # `encoder` or `decoder`
    checkpoint: str  # where the loaded ones come from
    loaded: int  # taken from the checkpoint
    fresh: int  # initialised at random
    fresh_tensors: Sequence[str]  # their names


@dataclass(frozen=True)
class WarmStart:
    """A model and the account of where its parameters come from."""

    model: EncoderDecoderModel  # in train mode, float32, SDPA attention on both halves
    halves: tuple[Half, Half]  # encoder and decoder
    shared: int  # parameters (elements) that both halves use
    total: int  # distinct parameters (elements)


def warm_start(
    encoder: str,
    decoder: str | None = None,
    *,
    share: str = "none",
    init: str = "both",
    seed: int = 0,
) -> EncoderDecoderModel:
    """Build a plain `EncoderDecoderModel` from two checkpoints, ready for anybody's trainer.

    Args:
        encoder: A local folder or a Hub id.
        decoder: The same; None takes the encoder's.
        share: `none`, `embeddings`, or `all` (but the cross-attention).
        init: Which halves start from their checkpoint: `both`, `encoder`, `decoder` or `none`.
        seed: Of the fresh parameters.

    Raises:
        ModelError: When a checkpoint cannot be used.
    """
    left = find("encoder", encoder, None)
    right = find("decoder", decoder or encoder, None)
    return build(left, right, Share(share), Init(init), seed=seed).model


def build(
    encoder: Source,
    decoder: Source,
    share: Share,
    init: Init,
    *,
    seed: int,
    dropouts: tuple[float | None, float | None] = (None, None),
) -> WarmStart:
    """Build the pair and account for every parameter.

    The seed is that of the fresh parameters; the caller's random state is left as it was. The dropouts are hidden and
    attention dropout; None keeps the checkpoint's.

    Raises:
        ModelError: When weights cannot be loaded, or the halves cannot share.
    """
    if share is not Share.none and encoder.tokenizer.get_vocab() != decoder.tokenizer.get_vocab():
        raise ModelError(fault("model.share", "none", share.value, "the halves have different vocabularies"))
    with torch.random.fork_rng(devices=[]), quiet_library():
        torch.manual_seed(seed)
        from_encoder = init in {Init.both, Init.encoder}
        from_decoder = init in {Init.both, Init.decoder}
        left_config = _configured(encoder.config, dropouts, is_decoder=False)
        left, left_half = _load(encoder, left_config, AutoModel, from_encoder)
        right_config = _configured(decoder.config, dropouts, is_decoder=True)
        right, right_half = _load(decoder, right_config, AutoModelForCausalLM, from_decoder)
        config = EncoderDecoderConfig.from_encoder_decoder_configs(left.config, right.config)
        config.tie_word_embeddings = right.config.tie_word_embeddings
        model = EncoderDecoderModel(config=config, encoder=left, decoder=right)
        projection = [name for name, _ in model.named_parameters() if name.startswith("enc_to_dec_proj.")]
        if projection:  # the library's bridge between halves of different width
            fresh = right_half.fresh + _count(model, projection)
            right_half = replace(right_half, fresh=fresh, fresh_tensors=[*right_half.fresh_tensors, *projection])
    shared = share_parameters(model, share)
    _set_generation(model, decoder)
    _check_attention(model)
    model.train()  # from_pretrained leaves eval mode, and Lightning no longer calls train() (known_defects D7)
    return WarmStart(model, (left_half, right_half), shared, sum(p.numel() for p in model.parameters()))


def _configured(
    config: PretrainedConfig, dropouts: tuple[float | None, float | None], *, is_decoder: bool
) -> PretrainedConfig:
    config = type(config).from_dict(config.to_dict())
    config.is_decoder = is_decoder
    config.add_cross_attention = is_decoder
    if dropouts[0] is not None:
        config.hidden_dropout_prob = dropouts[0]
    if dropouts[1] is not None:
        config.attention_probs_dropout_prob = dropouts[1]
    return config


def _load(source: Source, config: PretrainedConfig, auto: type, from_checkpoint: bool) -> tuple[PreTrainedModel, Half]:  # noqa: FBT001
    """Load one half, in float32 and with SDPA said to the half itself (known_defects D9).

    The encoder comes without its pooler, which would get no gradient (D8).
    """
    options = {} if config.is_decoder else {"add_pooling_layer": False}
    name = "decoder" if config.is_decoder else "encoder"
    if not from_checkpoint:
        model = auto.from_config(  # type: ignore[attr-defined]
            config, dtype=torch.float32, attn_implementation="sdpa", **options
        )
        fresh = [parameter for parameter, _ in model.named_parameters()]
        return model, Half(name, "random", 0, _count(model, fresh), fresh)
    try:
        model, info = auto.from_pretrained(  # type: ignore[attr-defined]
            source.name,
            config=config,
            revision=source.revision,
            dtype=torch.float32,
            attn_implementation="sdpa",
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
    fresh = sorted(set(info["missing_keys"]) & {parameter for parameter, _ in model.named_parameters()})
    num_fresh = _count(model, fresh)
    loaded = sum(p.numel() for p in model.parameters()) - num_fresh
    if not loaded:
        expected = "a checkpoint of this architecture"
        raise ModelError(fault(source.key, expected, source.name, "none of its tensors fits"))
    return model, Half(name, source.name, loaded, num_fresh, fresh)


def _count(model: PreTrainedModel, names: Sequence[str]) -> int:
    wanted = set(names)
    return sum(p.numel() for name, p in model.named_parameters() if name in wanted)


def _set_generation(model: EncoderDecoderModel, decoder: Source) -> None:
    """Write start, end and pad to both configs: `generate` reads only its own (known_defects D3, D4)."""
    ids = special_ids(decoder)
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = ids.start
        config.eos_token_id = ids.eos
        config.pad_token_id = ids.pad
        config.bos_token_id = ids.start
    model.config.vocab_size = model.decoder.config.vocab_size


def _check_attention(model: EncoderDecoderModel) -> None:
    for name, half in (("encoder", model.encoder), ("decoder", model.decoder)):
        got = half.config._attn_implementation
        if got != "sdpa":
            raise ModelError(fault(f"model.{name}", "SDPA attention", got, "the library did not apply it"))


def describe(started: WarmStart) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the printed list: what was loaded, what is fresh (in tensors, by part)."""
    header = ["half", "checkpoint", "loaded", "fresh", "fresh tensors"]
    rows = []
    for half in started.halves:
        parts = Counter(_part(name) for name in half.fresh_tensors)
        tensors = ", ".join(f"{count} {part}" for part, count in parts.most_common()) or "none"
        rows.append([half.name, _shown(half.checkpoint), f"{half.loaded:,}", f"{half.fresh:,}", tensors])
    rows.append(["shared", "", f"{started.shared:,}", "", ""])
    rows.append(["distinct", "", f"{started.total:,}", "", ""])
    return header, rows


def _part(name: str) -> str:
    """Name the part of a model that a tensor belongs to."""
    if "crossattention" in name:
        return "cross-attention"
    if name.startswith(("cls.", "lm_head.")):
        return "LM head"
    if name.startswith("enc_to_dec_proj"):
        return "projection"
    return "embeddings" if "embeddings." in name else "layers"


def _shown(checkpoint: str) -> str:
    """Shorten a folder to its last two parts; the manifest has it whole."""
    parts = Path(checkpoint).parts
    return str(Path("…", *parts[-2:])) if len(parts) > SHOWN_PARTS else checkpoint
