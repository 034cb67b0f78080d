"""Optimizer and learning rate, both functions of our own step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from encdec_train.config import OptimConfig, OptimizerName, Schedule


def build_optimizer(named_parameters: Iterable[tuple[str, nn.Parameter]], optim: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer over distinct parameters that need a gradient, with weight decay on matrices only."""
    parameters = [(name, p) for name, p in named_parameters if p.requires_grad]
    decayed = [p for name, p in parameters if p.ndim > 1]
    plain = [p for name, p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    options = {"lr": optim.lr, "betas": (optim.beta1, optim.beta2), "eps": optim.eps}
    if optim.name is OptimizerName.adam:
        return torch.optim.Adam([group for group in groups if group["params"]], **options)  # type: ignore[arg-type]
    return torch.optim.AdamW([group for group in groups if group["params"]], **options)  # type: ignore[arg-type]


def learning_rate(step: int, total_steps: int, optim: OptimConfig) -> float:
    """Return the learning rate of a step counted from 1.

    Linear warm-up reaches `optim.lr` on step `warmup_steps`. Then `linear` and `cosine` fall to zero just after the
    last step, `inverse_sqrt` falls as `sqrt(warmup_steps / step)` (Vaswani et al. 2017), `constant` stays.
    """
    warmup = warmup_steps(total_steps, optim)
    if step <= warmup:
        return optim.lr * step / warmup
    if optim.schedule is Schedule.constant:
        return optim.lr
    if optim.schedule is Schedule.inverse_sqrt:
        return optim.lr * math.sqrt(max(warmup, 1) / step)
    left = max(total_steps - step + 1, 0) / max(total_steps - warmup, 1)
    return optim.lr * left if optim.schedule is Schedule.linear else optim.lr * 0.5 * (1 - math.cos(math.pi * left))


def warmup_steps(total_steps: int, optim: OptimConfig) -> int:
    """Return the steps of warm-up: the config's, or a tenth of the run."""
    return optim.warmup_steps if optim.warmup_steps is not None else total_steps // 10
