"""`trainer.sharding`: weights, gradients and optimizer state in parts over the ranks, by FSDP2.

A layer's weights are gathered for its passes and let go of behind them, and its gradients are added and divided in each
backward pass. So every pass is a collective: all ranks make equally many. What decodes gets whole weights instead.
Source: Rajbhandari et al. 2020 (ZeRO, stage 3); `torch.distributed.fsdp.fully_shard`.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn
from transformers import EncoderDecoderModel

from encdec_train import distributed
from encdec_train.batch import MicroBatch
from encdec_train.modeling import families
from encdec_train.modeling.loss import loss_sum


class ShardedLoss(nn.Module):
    """The summed loss of a model whose parameters lie in parts on all ranks; every rank must call it alike.

    Args:
        model: Left without weights, until `fill`. The copy that is trained has them, under the same names.
        device: Where this rank computes; one layer after the other goes there, and its part stays.
    """

    def __init__(self, model: EncoderDecoderModel, device: torch.device) -> None:
        super().__init__()
        self._empty = [model]  # in a list: no part of this module
        self.model = _taken_over(model)
        self._let_go()  # before parts are made, so that a layer's weights go when its part is there
        distributed.shard([*_units(self.model), self], device)

    def forward(self, micro: MicroBatch, label_smoothing: float, pack: bool) -> torch.Tensor:
        """Return what `loss_sum` does."""
        return loss_sum(self.model, micro, label_smoothing, pack=pack)

    def fill(self, device: torch.device) -> EncoderDecoderModel:
        """Gather all weights into the model that was given; it is returned."""
        found = dict(self.model.named_parameters())
        for name, p in self._empty[0].named_parameters():
            p.data = distributed.whole(found[name]).to(device)
        cast(nn.Module, self._empty[0]).to(device)  # the buffers
        return self._empty[0]

    @contextmanager
    def whole(self) -> Iterator[EncoderDecoderModel]:
        """Lend the model that was given, with weights; it may be used alone. Every rank must come here."""
        yield self.fill(self.model.device)
        self._let_go()

    def _let_go(self) -> None:
        for p in self._empty[0].parameters():
            p.data = p.data.new_empty(0)


def _taken_over(model: EncoderDecoderModel) -> EncoderDecoderModel:
    """Copy a model, but for the memory of its weights; what is one parameter under several names stays one."""
    return copy.deepcopy(model, {id(p): nn.Parameter(p.data, p.requires_grad) for p in model.parameters()})


def _units(model: EncoderDecoderModel) -> list[nn.Module]:
    """List the layers that share no parameter with anything else; the rest is one unit, held whole during a pass."""
    names = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    layers = {id(layer): layer for _, half in families.sides(model) for layer in families.layers(half)[1]}
    return [layer for layer in layers.values() if all(names[id(p)] == 1 for p in layer.parameters())]
