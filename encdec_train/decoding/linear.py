"""Matrix products for many small steps: weights are brought into the order of the processor's kernels once.

On a CPU torch multiplies float32 with MKL, and re-orders the weights in every call; oneDNN, which torch has too, keeps
them in order. The same products in float32 (sums come in another order): measured on an AMD EPYC, 2.5 to 3 times
faster, docs/results/decoding.md. On other devices, and for other types, this is plain `functional.linear`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from encdec_train.modeling.linear import Linear as TrainedLinear
from encdec_train.modeling.linear import compute_type

Linear = Callable[[torch.Tensor], torch.Tensor]
PACKED_TYPES = {torch.float32, torch.bfloat16}
_ROWS_HINT = 128  # the number of rows that the order is chosen for; others work too


def packed(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """Return `x -> x @ weight.T + bias` for a weight `[out, in]` that does not change any more."""
    kind = compute_type(weight)
    weight = weight.detach().to(kind)
    bias = bias.detach().to(kind) if bias is not None else None
    library: Any = torch.ops.mkldnn
    if weight.device.type != "cpu" or kind not in PACKED_TYPES or not hasattr(library, "_linear_pointwise"):
        return lambda x: functional.linear(x.to(kind), weight, bias)
    ordered = library._reorder_linear_weight(weight.contiguous(), _ROWS_HINT)
    multiply = library._linear_pointwise
    return lambda x: multiply(x.to(kind), ordered, bias, "none", [], "")


class PackedLinears:
    """Packs the linear layers of a module; inside `with packed.used():` they compute with the packed weights."""

    def __init__(self, *modules: nn.Module) -> None:
        layers = {
            id(m): m
            for module in modules
            for m in module.modules()
            if isinstance(m, nn.Linear) and type(m) in {nn.Linear, TrainedLinear}
        }
        self._layers = [(layer, packed(layer.weight, layer.bias)) for layer in layers.values()]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Compute with the packed weights inside."""
        for layer, multiply in self._layers:
            vars(layer)["forward"] = multiply
        try:
            yield
        finally:
            for layer, _ in self._layers:
                vars(layer).pop("forward", None)
