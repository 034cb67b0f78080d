"""Attention is SDPA, by the kernel that ran; loss and gradients are those of eager (known_defects D9, D17)."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from encdec_train.batch import MicroBatch
from encdec_train.config import Init, Share
from encdec_train.data.collate import collate
from encdec_train.data.preprocess import TextCodec
from encdec_train.doctor.patient import Operators
from encdec_train.modeling import families
from encdec_train.modeling.checkpoints import find_pair, special_ids
from encdec_train.modeling.loss import encode, loss_sum
from encdec_train.modeling.warm_start import Changes, build

SOURCES = ["the old cat sat on a mat", "a dog", "the bird", "dog and cat and bird flew under the tree"]
TARGETS = ["a mat", "dog ran and ran", "the", "the house and the old tree"]
PAIRS = [("bert", "bert"), ("roberta", "roberta"), ("gpt2", "gpt2"), ("bert", "gpt2"), ("roberta", "gpt2")]
FUSED, MATH = "_scaled_dot_product_flash_attention_for_cpu", "_safe_softmax"
TOLERANCE = {torch.float64: (1e-9, 1e-12), torch.float32: (2e-4, 2e-5)}  # relative, absolute
Pair = tuple[Any, MicroBatch, Callable[[int], MicroBatch]]


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest, zoo: Callable[..., Path], one_thread: None) -> Pair:
    """Give a pair without dropout, a padded batch, and each of its examples alone and without padding."""
    left, right = find_pair(tuple((str(zoo(family)), None) for family in request.param), Share.none, Init.both)
    ids = special_ids(right)
    codec = TextCodec(left.tokenizer, right.tokenizer, ids.start, ids.eos, ids.pad, left.tokenizer.pad_token_id)
    model: Any = build(left, right, Share.none, Init.both, seed=3, changes=Changes((0.0, 0.0))).model
    with torch.no_grad():
        for name, p in model.named_parameters():
            if families.is_cross_attention(name) and p.ndim > 1:
                p.mul_(20.0)  # a fresh one hardly looks at the source
    sources, targets = codec.encode_sources(SOURCES), codec.encode_targets(TARGETS)

    def batch(rows: slice) -> MicroBatch:
        return collate(sources[rows], targets[rows], codec.decoder_start_id, (codec.source_pad_id, codec.pad_id))

    return model, batch(slice(None)), lambda index: batch(slice(index, index + 1))


def learn(model: Any, micro: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss and the gradient of every parameter, on padded rows: packed ones have an attention of ours."""
    loss = loss_sum(model, micro)
    named = dict(model.named_parameters())
    return loss.detach(), dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def eager(model: Any) -> Any:
    other = copy.deepcopy(model)
    for module in other.modules():  # `set_attn_implementation` does not reach the layers of an encoder inside a pair
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"
    return other


def calls(model: Any, micro: MicroBatch) -> dict[str, int]:
    with torch.no_grad(), Operators() as operators:
        loss_sum(model, micro)
    return {name: operators.calls[name] for name in (FUSED, MATH, "_softmax")}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_d17_loss_and_gradients_are_those_of_eager(dtype: torch.dtype, pair: Pair) -> None:
    model, micro, _ = pair
    model.to(dtype)
    (loss, found), (expected, wanted) = learn(model, micro), learn(eager(model), micro)
    relative, absolute = TOLERANCE[dtype]
    torch.testing.assert_close(loss, expected, rtol=relative, atol=absolute)
    assert {gradient.dtype for gradient in found.values()} == {dtype}
    for name, gradient in wanted.items():
        scale = gradient.norm() if gradient.norm() > absolute else torch.ones((), dtype=dtype)  # key biases: zero
        torch.testing.assert_close(found[name] / scale, gradient / scale, rtol=relative, atol=absolute, msg=name)
    for kind in (True, False):  # of cross-attention, and of self-attention
        sizes = [g.norm() for name, g in wanted.items() if "att" in name and families.is_cross_attention(name) is kind]
        assert max(sizes) > 1e-3


def test_d17_padding_is_seen_neither_by_self_nor_by_cross_attention(pair: Pair) -> None:
    """Each example alone, without a column of padding, computes what it does in the batch."""
    model, micro, alone = pair
    model.double()
    ones = [alone(index) for index in range(len(SOURCES))]
    assert all(one.source_mask_BS.all() and one.target_mask_BT.all() for one in ones)
    assert not micro.source_mask_BS.all()
    assert not micro.target_mask_BT.all()
    encoded_BSH = encode(model, micro.source_ids_BS, micro.source_mask_BS)
    for row, one in enumerate(ones):
        length = one.source_ids_BS.shape[1]
        expected = encode(model, one.source_ids_BS, one.source_mask_BS)[0]
        torch.testing.assert_close(encoded_BSH[row, :length], expected, rtol=1e-9, atol=1e-11)
    results = [learn(model, one) for one in ones]
    loss, gradients = learn(model, micro)
    torch.testing.assert_close(loss, sum(one for one, _ in results), rtol=1e-10, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, sum(one[name] for _, one in results), rtol=1e-8, atol=1e-10, msg=name)


def test_d09_the_kernel_that_ran(pair: Pair) -> None:
    """Two layers a half: two attentions of the encoder, four of the decoder."""
    model, micro, _ = pair
    model.float()
    assert calls(model, micro) == {FUSED: 6, MATH: 0, "_softmax": 0}
    assert calls(eager(model), micro) == {FUSED: 0, MATH: 0, "_softmax": 6}


def test_dropout_of_attention_is_a_choice_that_decides_the_kernel(zoo: Callable[..., Path], one_thread: None) -> None:
    """The checkpoint's rate by default, off by request; on a CPU no fused kernel has dropout."""
    found = find_pair(((str(zoo("bert")), None), (str(zoo("bert")), None)), Share.none, Init.both)
    micro = collate([[2, 5, 6, 3], [2, 7, 3]], [[5, 3], [8, 9, 3]], 2, (0, 0))
    for rate, kernel in ((None, MATH), (0.0, FUSED)):
        model = build(*found, Share.none, Init.both, seed=3, changes=Changes((None, rate))).model
        kept = {half.config.attention_probs_dropout_prob for half in (model.encoder, model.decoder)}
        assert kept == {0.1 if rate is None else rate}
        assert calls(model, micro) == {FUSED: 0, MATH: 0, "_softmax": 0, kernel: 6}
        assert calls(model.eval(), micro)[FUSED] == 6  # validation and decoding have none
