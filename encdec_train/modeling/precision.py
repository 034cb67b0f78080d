"""What is computed in. Weights stay float32; `bf16` computes matrix products in bfloat16."""

import contextlib
from contextlib import AbstractContextManager

import torch

from encdec_train.config import Precision


def autocast(precision: Precision, device_type: str, *, cached: bool = True) -> AbstractContextManager[object]:
    """Compute what is inside in a run's precision; `cached` keeps what weights became until the end of it."""
    if precision is Precision.bf16:
        return torch.autocast(device_type, torch.bfloat16, cache_enabled=cached)
    return contextlib.nullcontext()
