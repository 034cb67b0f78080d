"""The loss is the library's, summed; padding, splits and empty targets do not change it."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from encdec_train.batch import MicroBatch
from encdec_train.config import Init, Share
from encdec_train.data.collate import collate
from encdec_train.modeling.checkpoints import find
from encdec_train.modeling.loss import encode, head, loss_sum
from encdec_train.modeling.warm_start import build


@pytest.fixture(params=["packed", "padded"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute as training on a CPU does, and as a GPU does."""
    if request.param == "packed":
        monkeypatch.setattr(sys.modules[__name__], "loss_sum", partial(loss_sum, pack=True))


@pytest.fixture
def model(new_model: Callable[..., Any]) -> Any:
    """The tiny pair in float64, without dropout."""
    return new_model(seed=1, dropout=0.0).double()


def test_it_is_the_sum_that_the_librarys_logits_give(
    model: Any, eight: MicroBatch, plain_sum: Callable[..., torch.Tensor]
) -> None:
    assert len(eight.labels_N) == 27
    assert loss_sum(model, eight).item() == pytest.approx(plain_sum(model, eight).item(), rel=1e-12)


def test_its_gradient_is_the_librarys(model: Any, eight: MicroBatch, plain_sum: Callable[..., torch.Tensor]) -> None:
    loss_sum(model, eight).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    plain_sum(model, eight).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-9, atol=1e-12)


def test_label_smoothing_spreads_its_share_over_the_vocabulary(model: Any, eight: MicroBatch) -> None:
    logits = model(
        input_ids=eight.source_ids_BS,
        attention_mask=eight.source_mask_BS.long(),
        decoder_input_ids=eight.decoder_ids_BT,
    ).logits[eight.target_mask_BT]
    surprise = -logits.log_softmax(dim=-1)
    at_label = surprise[torch.arange(27), eight.labels_N].sum()
    expected = 0.9 * at_label + 0.1 * surprise.mean(dim=-1).sum()
    assert loss_sum(model, eight, 0.1).item() == pytest.approx(expected.item(), rel=1e-12)


def test_one_at_a_time_adds_up_to_all_at_once(
    model: Any, eight: MicroBatch, pieces: Callable[[int], list[MicroBatch]]
) -> None:
    alone = sum(loss_sum(model, micro).item() for micro in pieces(8))
    assert alone == pytest.approx(loss_sum(model, eight).item(), rel=1e-12)


def test_the_ids_under_the_padding_do_not_matter(model: Any, eight: MicroBatch) -> None:
    rubbish = MicroBatch(
        source_ids_BS=torch.where(eight.source_mask_BS, eight.source_ids_BS, 17),
        source_mask_BS=eight.source_mask_BS,
        decoder_ids_BT=torch.where(eight.target_mask_BT, eight.decoder_ids_BT, 19),
        target_mask_BT=eight.target_mask_BT,
        labels_N=eight.labels_N,
    )
    assert loss_sum(model, rubbish).item() == pytest.approx(loss_sum(model, eight).item(), rel=1e-13)


def test_examples_without_labels_have_no_weight(model: Any) -> None:
    alone = collate([[2, 5, 3]], [[5, 3]], 2, (0, 0))
    beside = collate([[2, 5, 3], [2, 6, 7, 3]], [[5, 3], []], 2, (0, 0))
    assert loss_sum(model, beside).item() == pytest.approx(loss_sum(model, alone).item(), rel=1e-13)


def test_a_batch_without_any_label_gives_zero_and_zero_gradients(model: Any) -> None:
    nothing = collate([[0]], [[]], 2, (0, 0))
    loss = loss_sum(model, nothing, 0.1)
    loss.backward()
    assert loss.item() == 0
    gradients = [p.grad for p in model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)  # DDP waits for each


def test_logits_are_float32_under_autocast(new_model: Callable[..., Any], eight: MicroBatch) -> None:
    model = new_model(dropout=0.0)
    exact = loss_sum(model, eight)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_sum(model, eight)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    assert loss.item() != exact.item()


@pytest.mark.parametrize("norm", [torch.bfloat16, torch.float32])
def test_every_linear_layer_puts_out_the_type_of_autocast(
    norm: torch.dtype, new_model: Callable[..., Any], eight: MicroBatch
) -> None:
    """The last one too, whose product is the loss's: norms before it are in float32 under CUDA's autocast."""
    model, found = new_model(), dict[str, torch.dtype]()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda _, __, out: out.to(norm))
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, __, out, name=name: found.update({name: out.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        loss_sum(model, eight).backward()
    assert "decoder.cls.predictions.decoder" in found
    assert set(found.values()) == {torch.bfloat16}


def test_a_wide_encoder_is_projected(new_bert: Callable[..., Path], tiny_source: Any, eight: MicroBatch) -> None:
    wide = find("model.encoder", str(new_bert("wide", 2, hidden_size=64)), None)
    model = build(wide, tiny_source, Share.none, Init.both, seed=0).model.double().eval()
    encoded = encode(model, eight.source_ids_BS, eight.source_mask_BS)
    assert encoded.shape == (8, 8, 32)
    library = model(
        input_ids=eight.source_ids_BS,
        attention_mask=eight.source_mask_BS.long(),
        decoder_input_ids=eight.decoder_ids_BT,
    )
    hidden = base_model_states(model, encoded, eight)
    torch.testing.assert_close(head(model.decoder, hidden), library.logits, rtol=1e-10, atol=1e-12)


def base_model_states(model: Any, encoded: torch.Tensor, micro: MicroBatch) -> torch.Tensor:
    return model.decoder.bert(
        input_ids=micro.decoder_ids_BT,
        encoder_hidden_states=encoded,
        encoder_attention_mask=micro.source_mask_BS.long(),
    ).last_hidden_state
