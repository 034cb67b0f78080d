"""Linear layers of training on a CPU: oneDNN's products in float32 too, forward and backward.

torch multiplies bfloat16 with oneDNN and float32 with MKL; on an AMD EPYC MKL reached less than half of oneDNN's rate
(docs/results/training-speed.md). The same products, with sums in another order. Elsewhere this is `nn.Linear`.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_TYPES = {torch.float32, torch.bfloat16}


class Linear(nn.Linear):
    """Computes as `nn.Linear` does, by `product` on a CPU."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name of nn.Linear
        """Multiply `[..., in]` with the weight `[out, in]`."""
        if input.device.type != "cpu" or compute_type(self.weight) not in _TYPES:
            return super().forward(input)
        found: torch.Tensor = _Linear.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return found


def install(model: nn.Module) -> None:
    """Make every `nn.Linear` of a model one of ours; nothing else of it changes."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def compute_type(weight: torch.Tensor) -> torch.dtype:
    """Return what a product with this weight is computed in: autocast's type where it is on."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return `x @ weight.T + bias`, without a gradient: by oneDNN in float32 on a CPU, else as torch does."""
    library: Any = torch.ops.mkldnn
    known = x.device.type == "cpu" and x.dtype is torch.float32 and hasattr(library, "_linear_pointwise")
    if known and x.numel() and weight.numel():
        if not (weight.is_contiguous() or weight.t().is_contiguous()):
            weight = weight.contiguous()  # other strides: oneDNN takes minutes, measured
        found: torch.Tensor = library._linear_pointwise(x, weight, bias, "none", [], "")
        return found
    return functional.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    """The product and its gradients, in the type that autocast asks for."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:  # noqa: ANN401
        kind = compute_type(weight)
        ctx.kinds = x.dtype, weight.dtype
        rows, weight = x.to(kind), weight.to(kind)
        ctx.save_for_backward(rows, weight)
        return product(rows, weight, None if bias is None else bias.to(kind))

    @staticmethod
    @once_differentiable  # oneDNN's products have no derivative: a second one would be zero without a word
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        kind_x, kind_w = ctx.kinds
        need_x, need_w, need_b = ctx.needs_input_grad
        rows, grads = (each[None].flatten(0, -2) for each in (x, grad))  # a row alone has one dimension
        d_x = product(grads, weight.t()).view(x.shape).to(kind_x) if need_x else None
        d_w = product(grads.t(), rows.t()).to(kind_w) if need_w else None
        d_b = grads.sum(0).to(kind_w) if need_b else None  # to the wide type first takes ten times as long
        return d_x, d_w, d_b
