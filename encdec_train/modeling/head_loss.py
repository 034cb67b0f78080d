"""The head's last product and the cross-entropy in one, whose gradient is written over the logits.

Plain cross-entropy holds the logits, a float32 copy of them, their log-softmax and its gradient. Here there is one
table, in the type that is computed in: a few rows at a time become softmax minus label while they are in the cache.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from encdec_train.modeling.linear import compute_type, product

_ROWS = {"cpu": 32}  # at a time; 32 x 30,522 float32 are 4 MB
_ROWS_ELSEWHERE = 4096


def loss_sum(hidden_NH: torch.Tensor, output: nn.Linear, labels_N: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Sum the cross-entropy of `output(hidden_NH)` over the labels.

    Args:
        hidden_NH: What the last linear layer of the head takes.
        output: That layer.
        labels_N: Vocabulary ids.
        smoothing: The share of probability spread evenly over the vocabulary.

    Returns:
        A scalar in nats, float32 (float64 where weights are), with gradients; they have none themselves.
    """
    found: torch.Tensor = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden_NH, output.weight, output.bias, labels_N, smoothing
    )
    return found


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:  # noqa: ANN401
        hidden_NH, weight, bias, labels_N, smoothing = inputs
        kind = compute_type(weight)
        wide = torch.float64 if kind is torch.float64 else torch.float32
        rows, table = hidden_NH.to(kind), weight.to(kind)
        logits_NV = product(rows, table, None if bias is None else bias.to(kind))
        needed = any(ctx.needs_input_grad)
        total = torch.zeros((), dtype=wide, device=rows.device)
        step = _ROWS.get(rows.device.type, _ROWS_ELSEWHERE)
        for part, labels in zip(logits_NV.split(step), labels_N.split(step), strict=True):
            surprise = torch.log_softmax(part, -1, dtype=wide)
            total -= (1 - smoothing) * surprise.gather(1, labels[:, None]).sum()
            if smoothing:
                total -= smoothing * surprise.mean(-1).sum()
            if needed:
                surprise.exp_()
                if smoothing:
                    surprise.sub_(smoothing / part.shape[1])
                surprise.scatter_add_(1, labels[:, None], surprise.new_full((len(labels), 1), smoothing - 1))
                part.copy_(surprise)
        if needed:
            ctx.save_for_backward(hidden_NH, table, logits_NV)
            ctx.kinds = weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        hidden_NH, table, d_logits_NV = ctx.saved_tensors
        need_x, need_w, need_b, *_ = ctx.needs_input_grad
        kind_w, kind_b = ctx.kinds
        scaled = (hidden_NH * grad).to(table.dtype)  # on the narrow side: the table is large
        d_x = product(d_logits_NV, table.t()).to(hidden_NH.dtype) * grad if need_x else None
        d_w = product(d_logits_NV.t(), scaled.t()).to(kind_w) if need_w else None
        d_b = d_logits_NV.sum(0).to(kind_b) * grad if need_b else None
        return d_x, d_w, d_b, None, None
