"""What the library's architectures have in common under different names, and which of them can decode."""

import inspect
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
)

from encdec_train.config import Group

DROPOUT = ("hidden_dropout_prob", "resid_pdrop", "embd_pdrop", "dropout")  # of BERT, GPT-2 (two), BART and relatives
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout")
COUNTED_FROM_PAD = {  # their first position is the one after the pad id, so so many rows are never used
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
CROSS_ATTENTION = ("crossattention", "cross_attn", "encoder_attn")
EMBEDDINGS = ("embeddings", "wte", "wpe", "embed_")
NORMS = ("layernorm", "layer_norm", "ln_")
ATTENTION = ("attention", "attn")


def max_positions(config: PretrainedConfig) -> int | None:
    """Return the longest sequence in tokens that the position embeddings reach; None where there is no such limit."""
    rows = getattr(config, "max_position_embeddings", None)
    if not isinstance(rows, int) or rows < 1:
        return None
    return rows - (int(config.pad_token_id or 0) + 1 if getattr(config, "model_type", None) in COUNTED_FROM_PAD else 0)


def set_dropout(config: PretrainedConfig, names: tuple[str, ...], value: float | None) -> bool:
    """Set a dropout rate under the names that an architecture knows; tell whether it knows any."""
    known = [name for name in names if hasattr(config, name)]
    for name in known if value is not None else []:
        setattr(config, name, value)
    return bool(known)


def base_model(decoder: PreTrainedModel) -> PreTrainedModel:
    """Return the decoder without its language-model head."""
    return cast(PreTrainedModel, decoder.base_model)


def head(decoder: PreTrainedModel, hidden_NH: torch.Tensor) -> torch.Tensor:
    """Turn hidden states into logits `[N, V]` with the decoder's own head: its modules besides the base, in order."""
    found: Any = hidden_NH
    for module in decoder.children():
        if module is not decoder.base_model:
            found = module(found)
    return cast(torch.Tensor, found)


def is_cross_attention(name: str) -> bool:
    """Tell by its name whether a parameter belongs to the attention of the decoder to the encoder."""
    return any(part in name for part in CROSS_ATTENTION)


def group_of(name: str) -> Group | None:
    """Name the group that a base model's parameter can be shared with; None for cross-attention."""
    if is_cross_attention(name):
        return None
    if name.startswith(EMBEDDINGS):
        return Group.embeddings
    lower = name.lower()
    if any(part in lower for part in NORMS):
        return Group.layer_norm
    return Group.self_attention if any(part in lower for part in ATTENTION) else Group.feed_forward


def is_causal(model: Any) -> bool:  # noqa: ANN401 - a pair or a causal LM
    """Tell whether a model has no encoder: it reads the source as a prefix (causal.py)."""
    return not model.config.is_encoder_decoder


def sides(model: Any) -> tuple[tuple[str, Any], tuple[str, Any]]:  # noqa: ANN401
    """Name what reads sources and what writes targets: the halves of a pair, or a causal LM twice."""
    both = (model, model) if is_causal(model) else (model.encoder, model.decoder)
    return ("encoder", both[0]), ("decoder", both[1])


def layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Find the list of a model's Transformer layers, and its name; an empty list where there is none."""
    for name, module in base_model(model).named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return name, module
    return "", nn.ModuleList()


def attention_of(half: PreTrainedModel) -> set[str]:
    """Return the attention that a half's modules are set to; inside a pair they do not read the half's own `config`."""
    configs = [getattr(module, "config", None) for module in half.modules() if module is not half]
    found = {config._attn_implementation for config in configs if isinstance(config, PretrainedConfig)}
    return found or {half.config._attn_implementation}  # XGLM's modules hold none


def encoder_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """Return the architecture's class without a head, None where it is no encoder of text or several classes."""
    found: Any = None if config.is_encoder_decoder else MODEL_MAPPING.get(type(config), None)
    return found if isinstance(found, type) else None


def decoder_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """Return the architecture's class with a language-model head and cross-attention, None where there is none."""
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return found if found is not None and _takes_encoder(found) else None


def causal_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """Return the architecture's class that writes from left to right, None where it was made to fill in blanks."""
    masked = isinstance(MODEL_FOR_MASKED_LM_MAPPING.get(type(config), None), type)
    found: Any = None if masked or config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return found if isinstance(found, type) else None


def decoder_types() -> list[str]:
    """List the model types whose decoder has cross-attention. Imports every architecture: a few seconds."""
    names = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return sorted(kind for kind, name in names.items() if _takes_encoder(getattr(transformers, name)))


def _takes_encoder(cls: type[PreTrainedModel]) -> bool:
    return "encoder_hidden_states" in inspect.signature(cls.forward).parameters
