"""Learning rates by hand, and weight decay on matrices only."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from encdec_train.config import OptimConfig, OptimizerName, Schedule
from encdec_train.training.optim import build_optimizer, learning_rate, warmup_steps


def rates(optim: OptimConfig, total: int) -> list[float]:
    return [learning_rate(step, total, optim) for step in range(1, total + 1)]


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        (Schedule.constant, 0, [8, 8, 8, 8, 8, 8]),
        (Schedule.constant, 4, [2, 4, 6, 8, 8, 8]),
        (Schedule.linear, 2, [4, 8, 8, 6, 4, 2]),
        (Schedule.linear, 0, [8, 8 * 5 / 6, 8 * 4 / 6, 4, 8 * 2 / 6, 8 / 6]),
        (Schedule.cosine, 2, [4, 8, 8, 4 * (1 + 0.5**0.5), 4, 4 * (1 - 0.5**0.5)]),
        (Schedule.inverse_sqrt, 1, [8, 8 * 2**-0.5, 8 * 3**-0.5, 4, 8 * 5**-0.5, 8 * 6**-0.5]),
        (Schedule.inverse_sqrt, 4, [2, 4, 6, 8, 16 * 5**-0.5, 16 * 6**-0.5]),
        (Schedule.inverse_sqrt, 0, [8, 8 * 2**-0.5, 8 * 3**-0.5, 4, 8 * 5**-0.5, 8 * 6**-0.5]),
        (Schedule.linear, 6, [8 / 6, 16 / 6, 4, 32 / 6, 40 / 6, 8]),
    ],
)
def test_the_rate_of_six_steps(schedule: Schedule, warmup: int, expected: list[float], optim: OptimConfig) -> None:
    found = rates(replace(optim, lr=8.0, schedule=schedule, warmup_steps=warmup), 6)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", [Schedule.linear, Schedule.cosine])
def test_just_after_the_last_step_the_rate_is_zero(schedule: Schedule, optim: OptimConfig) -> None:
    used = replace(optim, schedule=schedule)
    assert learning_rate(101, 100, used) == pytest.approx(0, abs=1e-12)
    assert learning_rate(100, 100, used) > 0


@pytest.mark.parametrize(("total", "expected"), [(1, 0), (9, 0), (10, 1), (1000, 100)])
def test_warm_up_is_a_tenth_unless_it_is_given(total: int, expected: int, optim: OptimConfig) -> None:
    assert warmup_steps(total, replace(optim, warmup_steps=None)) == expected
    assert warmup_steps(total, replace(optim, warmup_steps=7)) == 7


def test_biases_and_layer_norms_are_not_decayed(new_model: Any, optim: OptimConfig) -> None:
    model = new_model()
    decay = {}
    for group in build_optimizer(model.named_parameters(), optim).param_groups:
        decay |= {id(p): group["weight_decay"] for p in group["params"]}
    for name, p in model.named_parameters():
        spared = name.endswith(".bias") or "LayerNorm" in name
        assert decay.pop(id(p)) == (0.0 if spared else 0.1), name
    assert not decay


def test_frozen_parameters_are_left_out(optim: OptimConfig) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = build_optimizer(model.named_parameters(), optim).param_groups
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model[1].parameters()}
    only_bias = build_optimizer([("bias", model[1].bias)], optim).param_groups
    assert [len(group["params"]) for group in only_bias] == [1]


@pytest.mark.parametrize(
    ("name", "kind"), [(OptimizerName.adamw, torch.optim.AdamW), (OptimizerName.adam, torch.optim.Adam)]
)
def test_its_settings_are_the_configs(name: OptimizerName, kind: type, optim: OptimConfig) -> None:
    layer = torch.nn.Linear(2, 2)
    built = build_optimizer(layer.named_parameters(), replace(optim, name=name))
    assert isinstance(built, kind)
    assert isinstance(built, torch.optim.AdamW) == (name is OptimizerName.adamw)
    assert {(group["lr"], group["betas"], group["eps"]) for group in built.param_groups} == {(2e-3, (0.9, 0.99), 1e-8)}
