"""Our linear layers give torch's products and gradients, in float32 and under autocast."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from encdec_train.modeling import linear


def both(dtype: torch.dtype, bias: bool, *, frozen: bool = False) -> list[list[torch.Tensor]]:
    """Return output and gradients of ours and of torch's layer on the same numbers."""
    torch.manual_seed(0)
    plain, x = nn.Linear(48, 80, bias=bias).to(dtype), torch.randn(3, 11, 48).to(dtype)
    plain.weight.requires_grad_(not frozen)
    upstream, found = torch.randn(3, 11, 80), []
    for kind in (linear.Linear, nn.Linear):
        layer = kind(48, 80, bias=bias).to(dtype)
        layer.load_state_dict(plain.state_dict())
        layer.weight.requires_grad_(not frozen)
        inputs = x.clone().requires_grad_()
        out = layer(inputs)
        (out * upstream.to(out.dtype)).sum().backward()
        grads = [p.grad for p in layer.parameters() if p.grad is not None]
        found.append([out.detach(), inputs.grad, *grads])  # type: ignore[list-item]
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_products_and_gradients_are_torchs(dtype: torch.dtype, bias: bool) -> None:
    ours, theirs = both(dtype, bias)
    assert len(ours) == len(theirs) == 3 + bias
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype is b.dtype
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_under_autocast_products_are_rounded_as_torchs_and_gradients_have_the_weights_type() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = both(torch.float32, bias=True)
    assert [each.dtype for each in ours] == [torch.bfloat16] + 3 * [torch.float32]
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype is b.dtype
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_a_frozen_weight_gets_no_gradient() -> None:
    ours, theirs = both(torch.float32, bias=True, frozen=True)
    assert len(ours) == len(theirs) == 3
    torch.testing.assert_close(ours[2], theirs[2])


def test_no_rows_are_no_rows() -> None:
    layer = linear.Linear(4, 6)
    out = layer(torch.ones(0, 4))
    out.sum().backward()
    assert out.shape == (0, 6)
    assert layer.weight.grad is not None
    assert float(layer.weight.grad.abs().sum()) == 0.0


def test_a_row_alone_is_a_row() -> None:
    layer, x = linear.Linear(4, 6), torch.ones(4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, layer.weight.detach().sum(0))


def test_a_second_derivative_is_refused() -> None:
    x = torch.ones(5, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(linear.Linear(4, 6)(x).tanh().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_float32_on_a_cpu_is_multiplied_by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, and both gradients: torch's own `linear` is not called."""
    monkeypatch.setattr(functional, "linear", None)
    layer, x = linear.Linear(4, 6), torch.ones(5, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], layer.weight.detach().sum(0))


def test_installing_changes_the_class_alone() -> None:
    class Other(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(2, 2), Other(2, 2), nn.ReLU())
    before = list(model.state_dict())
    linear.install(model)
    assert [type(module) for module in model] == [linear.Linear, Other, nn.ReLU]
    assert list(model.state_dict()) == before
