"""The head's product and the cross-entropy in one are torch's two, loss and gradients."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import nn

from encdec_train.modeling import head_loss

NUM, WIDTH, VOCABULARY = 77, 24, 50  # more rows than are done at a time


def both(dtype: torch.dtype, smoothing: float, bias: bool) -> list[list[torch.Tensor]]:
    """Return loss and gradients, ours and torch's."""
    found = []
    for ours in (True, False):
        torch.manual_seed(0)
        hidden = (2 * torch.randn(NUM, WIDTH)).to(dtype).requires_grad_()
        layer = nn.Linear(WIDTH, VOCABULARY, bias=bias).to(dtype)
        labels = torch.randint(0, VOCABULARY, (NUM,))
        if ours:
            loss = head_loss.loss_sum(hidden, layer, labels, smoothing)
        else:
            logits = layer(hidden)
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(wide, labels, reduction="sum", label_smoothing=smoothing)
        (loss * 0.37).backward()
        found.append([loss.detach(), hidden.grad, *(p.grad for p in layer.parameters())])
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_loss_and_gradients_are_torchs(dtype: torch.dtype, near: float, smoothing: float) -> None:
    ours, theirs = both(dtype, smoothing, bias=True)
    assert ours[0].item() > 100
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=near, atol=near)


def test_a_head_without_bias() -> None:
    ours, theirs = both(torch.float64, 0.0, bias=False)
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_under_autocast_it_is_as_far_from_exact_as_torchs_own() -> None:
    exact, _ = both(torch.float64, 0.1, bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = both(torch.float32, 0.1, bias=True)
    for true, a, b in zip(exact, ours, theirs, strict=True):
        assert a.dtype is b.dtype is torch.float32
        assert (a - true).norm() <= 1.5 * (b - true).norm() + 1e-3 * true.norm()
        assert (a - true).norm() < 0.02 * true.norm()


def test_certain_mistakes_have_a_finite_loss() -> None:
    layer = nn.Linear(1, 3, bias=False)
    nn.init.constant_(layer.weight, 0.0)
    with torch.no_grad():
        layer.weight[0] = 1000.0
    loss = head_loss.loss_sum(torch.ones(1, 1), layer, torch.tensor([2]), 0.0)
    assert loss.item() == pytest.approx(1000.0)


def test_no_labels_are_zero_with_zero_gradients() -> None:
    layer = nn.Linear(4, 6)
    hidden = torch.ones(0, 4, requires_grad=True)
    loss = head_loss.loss_sum(hidden, layer, torch.zeros(0, dtype=torch.int64), 0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert layer.weight.grad is not None
    assert float(layer.weight.grad.abs().sum()) == 0.0


def test_without_gradients_the_loss_is_the_same() -> None:
    layer, hidden = nn.Linear(4, 6), torch.randn(9, 4)
    labels = torch.arange(9) % 6
    with torch.no_grad():
        found = head_loss.loss_sum(hidden, layer, labels, 0.0)
    assert not found.requires_grad
    assert found.item() == pytest.approx(head_loss.loss_sum(hidden, layer, labels, 0.0).item())
