"""One decoder step of BERT, RoBERTa and GPT-2, over the library's modules and with our own cache.

A step of the library spends a good part of its time between the matrix products: some forty modules a layer, caches
that are copied, keys and values of the source once a beam. Here the same products are written out. Tests compare tokens
with the library's own `generate`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import BertLMHeadModel, EncoderDecoderModel, GPT2LMHeadModel, RobertaForCausalLM
from transformers.pytorch_utils import Conv1D

from encdec_train.decoding.cache import BLOCK_PLACES, Cache
from encdec_train.decoding.linear import Linear, PackedLinears, packed
from encdec_train.modeling import dropout, families, linear

ENCODED_TOKENS = 4096  # at a time, so that the encoder's feed-forward layers do not need most of the memory
FAMILIES = (BertLMHeadModel, RobertaForCausalLM, GPT2LMHeadModel)


def supported(model: Any) -> bool:  # noqa: ANN401 - any model of the library
    """Tell whether `Decoder` computes what a model's own forward would: known classes, no adapters, no hooks."""
    if type(model) is not EncoderDecoderModel or type(model.decoder) not in FAMILIES:
        return False
    config = model.decoder.config
    if config._attn_implementation not in {"sdpa", "eager"} or getattr(config, "reorder_and_upcast_attn", False):
        return False
    modules = list(model.decoder.modules())
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return False
    known = ("torch.nn.", "transformers.", dropout.__name__, linear.__name__)  # ours: what training puts in
    return all(type(module).__module__.startswith(known) for module in modules)


@dataclass(frozen=True)
class _Layer:
    """The functions of one layer, in the order in which they are applied."""

    own: tuple[Linear, Linear, float]  # into query, key and value; out; scale of the scores
    source: tuple[Linear, Linear, Linear, float]  # into the query; into key and value; out; scale
    forward: tuple[Linear, Linear, Linear]  # up, activation, down
    norms: tuple[Linear, Linear, Linear]


class Decoder:
    """A pair's encoder and decoder as two functions; weights are those of the moment it is built.

    Args:
        model: What `supported` accepts, in eval mode.
    """

    def __init__(self, model: EncoderDecoderModel) -> None:
        self._model = model
        decoder: Any = model.decoder
        self._decoder, self._base = decoder, families.base_model(decoder)
        self._is_gpt2 = isinstance(decoder, GPT2LMHeadModel)
        _, layers = families.layers(decoder)
        self._layers = [(_gpt2_layer if self._is_gpt2 else _bert_layer)(layer) for layer in layers]
        self._num_heads = int(decoder.config.num_attention_heads)
        heads = [module for module in decoder.children() if module is not self._base]
        self._encoder_linears, self._head_linears = PackedLinears(model.encoder), PackedLinears(*heads)
        self._skip_pad = isinstance(decoder, RobertaForCausalLM)  # it counts positions from the one after the pad id

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._model.device

    @property
    def vocab_size(self) -> int:
        """Rows of the head."""
        return int(self._decoder.config.vocab_size)

    @property
    def source_pad_id(self) -> int:
        """What fills source rows; masked, so any id of the vocabulary will do."""
        return int(self._model.encoder.config.pad_token_id or 0)

    def encode(self, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """Return what the decoder attends to, `[B, S, H]`, in the decoder's width."""
        model: Any = self._model
        rows = max(ENCODED_TOKENS // ids_BS.shape[1], 1)
        parts = zip(ids_BS.split(rows), mask_BS.long().split(rows), strict=True)
        with self._encoder_linears.used():
            encoded = [model.encoder(input_ids=ids, attention_mask=mask, return_dict=True)[0] for ids, mask in parts]
        states = torch.cat(encoded)
        bridged = getattr(model.decoder.config, "cross_attention_hidden_size", None) is None
        if bridged and model.encoder.config.hidden_size != model.decoder.config.hidden_size:
            states = model.enc_to_dec_proj(states)
        found: torch.Tensor = states
        return found

    def cache(self, states: torch.Tensor, mask_BS: torch.Tensor, width: int) -> Cache:
        """Project the sources' keys and values, once an example."""
        cross = [self._heads(layer.source[1](states).unflatten(-1, (2, -1))) for layer in self._layers]
        mask = torch.zeros(mask_BS.shape, device=states.device).masked_fill_(~mask_BS, -torch.inf)
        visible = torch.zeros(len(states), width, BLOCK_PLACES, dtype=torch.bool, device=states.device)
        return Cache(cross, mask[:, None, None], visible)

    def step(self, tokens_NW: torch.Tensor, places_N: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Read one token a beam and return logits `[N, W, V]` in float32.

        Args:
            tokens_NW: The tokens.
            places_N: How many tokens each example has read before, on the CPU.
            cache: Of these examples; the token is added.
        """
        cache.start_step(tokens_NW.shape[1])
        x = self._embed(tokens_NW, places_N.to(tokens_NW.device, non_blocking=True)[:, None])
        for number, layer in enumerate(self._layers):
            parts: list[Linear] = [
                partial(self._own, number=number, functions=layer.own, cache=cache),
                partial(self._source, number=number, functions=layer.source, cache=cache),
                partial(_forward, functions=layer.forward),
            ]
            for norm, part in zip(layer.norms, parts, strict=True):
                x = x + part(norm(x)) if self._is_gpt2 else norm(part(x) + x)
        if self._is_gpt2:
            x = _norm(self._base.ln_f)(x)
        with self._head_linears.used():
            return families.head(self._decoder, x).float()

    def _own(self, x: torch.Tensor, number: int, functions: tuple[Linear, Linear, float], cache: Cache) -> torch.Tensor:
        into, out, scale = functions
        return out(cache.attend_own(number, self._heads(into(x).unflatten(-1, (3, -1))), scale))

    def _source(
        self, x: torch.Tensor, number: int, functions: tuple[Linear, Linear, Linear, float], cache: Cache
    ) -> torch.Tensor:
        into, _, out, scale = functions
        return out(cache.attend_source(number, self._heads(into(x)), scale))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        apart: torch.Tensor = x.unflatten(-1, (self._num_heads, -1))
        return apart

    def _embed(self, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        base: Any = self._base
        if self._is_gpt2:
            found: torch.Tensor = base.wte(tokens) + base.wpe(places)
            return found
        positions, part = places, base.embeddings
        if self._skip_pad:
            pad = part.padding_idx
            positions = torch.where(tokens == pad, pad, places + pad + 1)
        x = part.word_embeddings(tokens) + part.token_type_embeddings.weight[0]
        return _norm(part.LayerNorm)(x + part.position_embeddings(positions))


def _forward(x: torch.Tensor, functions: tuple[Linear, Linear, Linear]) -> torch.Tensor:
    up, activation, down = functions
    return down(activation(up(x)))


def _bert_layer(layer: Any) -> _Layer:  # noqa: ANN401 - of BERT or RoBERTa
    own, source = layer.attention, layer.crossattention
    return _Layer(
        (_joined(own.self.query, own.self.key, own.self.value), _joined(own.output.dense), own.self.scaling),
        (
            _joined(source.self.query),
            _joined(source.self.key, source.self.value),
            _joined(source.output.dense),
            source.self.scaling,
        ),
        (_joined(layer.intermediate.dense), layer.intermediate.intermediate_act_fn, _joined(layer.output.dense)),
        (_norm(own.output.LayerNorm), _norm(source.output.LayerNorm), _norm(layer.output.LayerNorm)),
    )


def _gpt2_layer(layer: Any) -> _Layer:  # noqa: ANN401 - of GPT-2
    own, source, mlp = layer.attn, layer.crossattention, layer.mlp
    return _Layer(
        (_joined(own.c_attn), _joined(own.c_proj), own.scaling),
        (_joined(source.q_attn), _joined(source.c_attn), _joined(source.c_proj), source.scaling),
        (_joined(mlp.c_fc), mlp.act, _joined(mlp.c_proj)),
        (_norm(layer.ln_1), _norm(layer.ln_cross_attn), _norm(layer.ln_2)),
    )


def _joined(*modules: nn.Module) -> Linear:
    """Compute several linear layers of one input as one, their outputs beside each other."""
    parts: list[Any] = list(modules)
    weights = [part.weight.t() if isinstance(part, Conv1D) else part.weight for part in parts]
    return packed(torch.cat([weight.detach() for weight in weights]), torch.cat([part.bias.detach() for part in parts]))


def _norm(module: Any) -> Linear:  # noqa: ANN401 - an nn.LayerNorm
    shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
    return lambda x: functional.layer_norm(x, shape, weight, bias, eps)
