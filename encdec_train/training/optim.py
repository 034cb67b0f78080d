"""Optimizer and learning rate, both functions of our own step."""

import math
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from encdec_train.config import OptimConfig, OptimizerName, Schedule
from encdec_train.errors import ConfigError, fault
from encdec_train.modeling.warm_start import WarmStart

LAYER = re.compile(r"\.(?:layers?|h)\.(\d+)\.")
EMBEDDING = re.compile(r"embed|\.wte\.|\.wpe\.")


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], optim: OptimConfig, fresh: frozenset[str] = frozenset()
) -> torch.optim.Optimizer:
    """Build the optimizer over distinct parameters that need a gradient, with weight decay on matrices only.

    Args:
        named_parameters: As the model names them.
        optim: The section of the config.
        fresh: Names of those that the checkpoints lack, as `fresh_names` has them.

    Returns:
        An optimizer whose groups have a `scale`, which multiplies the learning rate.
    """
    parameters = [(name, p) for name, p in named_parameters if p.requires_grad]
    scales = lr_scales([name for name, _ in parameters], optim, fresh)
    members: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, p in parameters:
        members.setdefault((p.ndim > 1, scales[name]), []).append(p)
    groups = [
        {"params": members[key], "weight_decay": optim.weight_decay if key[0] else 0.0, "scale": key[1]}
        for key in sorted(members, reverse=True)
    ]
    options = {"lr": optim.lr, "betas": tuple(optim.betas), "eps": optim.eps, "fused": True}
    if optim.name is OptimizerName.adam:
        return torch.optim.Adam(groups, **options)  # type: ignore[arg-type]
    return torch.optim.AdamW(groups, **options)  # type: ignore[arg-type]


def lr_scales(names: Sequence[str], optim: OptimConfig, fresh: frozenset[str] = frozenset()) -> dict[str, float]:
    """Return what the learning rate of each parameter is multiplied by.

    A half's output side (head, last norm) has 1, its last layer `layer_decay`, the one before `layer_decay ** 2`, and
    its embeddings the smallest, as in BEiT (Bao et al. 2021). What is fresh has `fresh_lr_factor` besides.
    """
    layers = {name: int(found[1]) for name in names if (found := LAYER.search(name))}
    depths: dict[str, int] = {}
    for name, layer in layers.items():
        depths[_half(name)] = max(depths.get(_half(name), 0), layer + 1)

    def distance(name: str) -> int:
        depth = depths.get(_half(name), 0)
        if name in layers:
            return depth - layers[name]
        return depth + 1 if EMBEDDING.search(name) else 0

    return {
        name: optim.layer_decay ** distance(name) * (optim.fresh_lr_factor if name in fresh else 1) for name in names
    }


def _half(name: str) -> str:
    return name.partition(".")[0]


def fresh_names(started: WarmStart) -> frozenset[str]:
    """Name the model's parameters that the checkpoints lack: those from random weights, and those that were copied.

    A copy is in a new role. Were it warm, `freeze_warm_steps` would leave nothing to learn where only it is not loaded.
    """
    known = {name for name, _ in started.model.named_parameters()}
    tensors = [(half.name, name) for half in started.halves for name in (*half.fresh_tensors, *half.copied_tensors)]
    return frozenset(known & {spelled for half, name in tensors for spelled in (f"{half}.{name}", name)})


def averaged_steps(total_steps: int, optim: OptimConfig) -> list[int]:
    """List the steps whose weights are averaged in the end; none where the best validation's are taken."""
    last, every = optim.average_last, optim.average_every_steps
    return list(range(total_steps, 0, -every))[:last][::-1] if every else []


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Keep the parameters that match a pattern from learning.

    Raises:
        ConfigError: When a pattern matches none, or nothing is left to learn.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        matching = [p for name, p in parameters.items() if fnmatchcase(name, pattern)]
        if not matching:
            reason, remedy = f"no parameter is called so; there is {next(iter(parameters))}", "`*` stands for anything"
            raise ConfigError(fault("optim.freeze", "names of parameters", pattern, reason, remedy))
        for p in matching:
            p.requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise ConfigError(fault("optim.freeze", "something left to learn", list(patterns)))


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
