"""Packed tokens give the loss and the gradients of padded rows."""

from itertools import product
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    EncoderDecoderModel,
    PretrainedConfig,
)
from transformers import AutoModel as AnyEncoder
from transformers import AutoModelForCausalLM as AnyDecoder

from encdec_train.batch import MicroBatch
from encdec_train.data.collate import collate
from encdec_train.modeling import loss, packed

LENGTHS = [(7, 9), (13, 2), (3, 11), (20, 5), (1, 6)]


def config_of(kind: str, width: int = 32, dropout: float = 0.0, **more: Any) -> PretrainedConfig:
    """Describe two layers."""
    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * width,
             "max_position_embeddings": 40, "hidden_dropout_prob": dropout,
             "attention_probs_dropout_prob": dropout}  # fmt: skip
    if kind == "gpt2":
        sizes = {"n_embd": width, "n_layer": 2, "n_head": 2, "n_positions": 40, "resid_pdrop": dropout,
                 "embd_pdrop": dropout, "attn_pdrop": dropout}  # fmt: skip
    return AutoConfig.for_model(kind, vocab_size=60, pad_token_id=1, bos_token_id=2, eos_token_id=3, **sizes, **more)


def pair(encoder: str, decoder: str, dropout: float = 0.0, width: int = 32) -> EncoderDecoderModel:
    """Build a pair in float64, in train mode."""
    torch.manual_seed(0)
    halves = (
        AnyEncoder.from_config(config_of(encoder, dropout=dropout)),
        AnyDecoder.from_config(config_of(decoder, width, dropout, is_decoder=True, add_cross_attention=True)),
    )
    return EncoderDecoderModel(encoder=halves[0], decoder=halves[1]).double().train()


@pytest.fixture
def micro() -> MicroBatch:
    """Five examples of very different lengths."""
    draw = torch.Generator().manual_seed(3)
    rows = [[torch.randint(5, 60, (n,), generator=draw).tolist() for n in pair] for pair in LENGTHS]
    return collate([s for s, _ in rows], [t for _, t in rows], 2, (1, 1))


def both(model: EncoderDecoderModel, micro: MicroBatch) -> list[dict[str, torch.Tensor]]:
    """Return loss and gradients, packed and padded."""
    found = []
    assert packed.suits(model, micro)
    for is_packed in (True, False):
        model.zero_grad()
        value = loss.loss_sum(model, micro, 0.1, pack=is_packed)
        value.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append({"loss": value.detach(), **grads})
    return found


@pytest.mark.parametrize(("encoder", "decoder"), list(product(["bert", "roberta", "gpt2"], repeat=2)))
def test_loss_and_gradients_are_those_of_padded_rows(encoder: str, decoder: str, micro: MicroBatch) -> None:
    ours, theirs = both(pair(encoder, decoder), micro)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 50
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", ["camembert", "xlm-roberta"])
def test_relatives_and_halves_of_different_width(kind: str, micro: MicroBatch) -> None:
    ours, theirs = both(pair(kind, kind, width=16), micro)
    assert "enc_to_dec_proj.weight" in ours
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_no_padding_goes_through_the_model(micro: MicroBatch) -> None:
    model, seen = pair("bert", "bert"), list[int]()
    for half in (model.encoder, model.decoder):
        half.base_model.embeddings.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[1]) or None)
    loss.loss_sum(model, micro, pack=True)
    assert seen == [sum(s for s, _ in LENGTHS), sum(t for _, t in LENGTHS)]


def test_attention_is_put_back(micro: MicroBatch) -> None:
    model = pair("bert", "gpt2")
    before = [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]
    loss.loss_sum(model, micro, pack=True)
    assert [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")] == before
    assert packed.NAME not in before


def test_dropout_is_on_in_attention_too(micro: MicroBatch) -> None:
    model = pair("bert", "bert", dropout=0.5)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and not name.endswith((".self.dropout", "crossattention.self.dropout")):
            module.p = 0.0
    values = set()
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        values.add(loss.loss_sum(model, micro, pack=True).item())
    assert len(values) == 2


def test_activations_computed_again_are_the_same(micro: MicroBatch) -> None:
    found = []
    for again in (False, True):
        model = pair("bert", "bert", dropout=0.2)
        for half in (model.encoder, model.decoder) if again else ():
            half.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(5)
        with packed.attention(model):
            loss.loss_sum(model, micro, pack=True).backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 50
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


def test_what_cannot_be_packed_is_padded(micro: MicroBatch) -> None:
    model = pair("bert", "bert")
    assert not packed.suits(model, collate([[1], [4, 5]], [[], [5, 3]], 2, (1, 1)))  # an example without a target
    assert not packed.suits(pair("electra", "electra"), micro)
