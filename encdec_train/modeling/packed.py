"""Packing: a micro-batch's tokens one after the other, so that no padding is computed.

Everything but attention works on single tokens, so a packed batch is a batch of one long row with positions of its own.
Attention is ours, through the library's registry: it takes the lengths from a tensor in the place of the mask, which
every mask builder hands on as it is, and attends example by example. Measured on CPUs only, and used there only.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import nn
from transformers import AttentionInterface, EncoderDecoderModel

from encdec_train.batch import MicroBatch
from encdec_train.modeling import packed_attention
from encdec_train.modeling.families import COUNTED_FROM_PAD, base_model, is_causal

NAME = "encdec_packed"
CAUSAL_ENCODERS = {"gpt2"}  # each token of a source sees those before it only
TYPES = {"bert", "camembert", "gpt2", "roberta", "xlm-roberta"}  # what a test compares with padded rows


def suits(model: EncoderDecoderModel, micro: MicroBatch) -> bool:
    """Tell whether a micro-batch can be packed: on a CPU, and a pair of known halves."""
    return (
        micro.labels_N.device.type == "cpu"
        and not is_causal(model)
        and {model.encoder.config.model_type, model.decoder.config.model_type} <= TYPES
        and bool(micro.target_mask_BT[:, :1].all())  # a rank without examples has an empty target
    )


def hidden_states(model: EncoderDecoderModel, micro: MicroBatch) -> torch.Tensor:
    """Run both halves on packed tokens.

    Returns:
        The decoder's last hidden states where there are labels, `[N, H]`.
    """
    sources, targets = micro.source_mask_BS.sum(1).tolist(), micro.target_mask_BT.sum(1).tolist()
    decoder: Any = base_model(model.decoder)
    projection: nn.Module | None = getattr(model, "enc_to_dec_proj", None)
    with attention(model):
        encoded_1SH = model.encoder(
            input_ids=micro.source_ids_BS[micro.source_mask_BS][None],
            attention_mask=_layout(sources, sources, causal=model.encoder.config.model_type in CAUSAL_ENCODERS),
            position_ids=_positions(sources, model.encoder.config),
        ).last_hidden_state
        hidden_1TH: torch.Tensor = decoder(
            input_ids=micro.decoder_ids_BT[micro.target_mask_BT][None],
            attention_mask=_layout(targets, targets, causal=True),
            position_ids=_positions(targets, model.decoder.config),
            encoder_hidden_states=encoded_1SH if projection is None else projection(encoded_1SH),
            encoder_attention_mask=_layout(targets, sources),
            use_cache=False,
        ).last_hidden_state
    return hidden_1TH[0]


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    **options: Any,  # noqa: ANN401 - what else an architecture hands on
) -> tuple[torch.Tensor, None]:
    """Attend within each example, under the library's signature for attention functions.

    Args:
        module: Whose attention it is.
        query: `[1, heads, tokens, head size]`, the examples' queries one after the other; `key`, `value` alike.
        key: See `query`.
        value: See `query`.
        attention_mask: The lengths, from `_layout`.
        options: `scaling` of the products, by default 1 / sqrt(head size), and `dropout`, the rate on the weights.

    Returns:
        `[1, tokens, heads, head size]`, and None where the library expects the weights.
    """
    queries, keys, (causal, *_rest) = attention_mask[0, 0].tolist()
    scaling, dropout = options.get("scaling"), float(options.get("dropout") or 0.0)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if dropout > 0:
        layout = tuple(queries), tuple(keys), bool(causal)
        return packed_attention.attend((query, key, value), layout, scale, dropout), None
    parts = zip(query.split(queries, 2), key.split(keys, 2), value.split(keys, 2), strict=True)
    found = [F.scaled_dot_product_attention(q, k, v, is_causal=bool(causal), scale=scale) for q, k, v in parts]
    return torch.cat(found, 2).transpose(1, 2), None


def _layout(queries: Sequence[int], keys: Sequence[int], *, causal: bool = False) -> torch.Tensor:
    """Write lengths in tokens of each example's queries and keys, and whether order is causal: `[1, 1, 3, B]`."""
    return torch.tensor([[[queries, keys, [int(causal)] * len(queries)]]])


def _positions(lengths: Sequence[int], config: Any) -> torch.Tensor:  # noqa: ANN401 - any architecture's
    offset = int(config.pad_token_id) + 1 if config.model_type in COUNTED_FROM_PAD else 0
    return torch.cat([torch.arange(offset, offset + length) for length in lengths])[None]


@contextmanager
def attention(model: EncoderDecoderModel) -> Iterator[None]:
    """Let every module attend with `attend`; layers may hold another config object than their half.

    To be held over the backward pass too, where activations may be computed again.
    """
    found: list[Any] = [module.config for module in model.modules() if hasattr(module, "config")]
    configs = {id(config): config for config in found}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = NAME
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


AttentionInterface.register(NAME, attend)
