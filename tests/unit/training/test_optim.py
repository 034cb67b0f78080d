"""Learning rates by hand, and weight decay on matrices only."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from encdec_train.config import OptimConfig, OptimizerName, Schedule
from encdec_train.errors import ConfigError
from encdec_train.training.optim import averaged_steps, build_optimizer, freeze, learning_rate, lr_scales, warmup_steps


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


def test_layers_further_from_the_output_learn_more_slowly(optim: OptimConfig) -> None:
    names = [
        "encoder.embeddings.word_embeddings.weight", "encoder.encoder.layer.0.output.dense.weight",
        "encoder.encoder.layer.2.output.dense.weight", "encoder.encoder.layer.10.output.dense.weight",
        "decoder.transformer.wte.weight", "decoder.transformer.h.0.attn.c_attn.weight",
        "decoder.transformer.h.1.crossattention.c_attn.weight", "decoder.transformer.ln_f.weight",
        "decoder.lm_head.bias",
    ]  # fmt: skip
    used = replace(optim, layer_decay=0.5, fresh_lr_factor=10.0)
    found = lr_scales(names, used, frozenset({names[6], names[8]}))
    assert list(found.values()) == [2**-12, 2**-11, 2**-9, 2**-1, 2**-3, 2**-2, 10 * 2**-1, 1, 10]
    assert set(lr_scales(names, optim).values()) == {1}


@pytest.mark.parametrize(
    ("changes", "highest"), [({"layer_decay": 0.25}, [0.25, 1]), ({"fresh_lr_factor": 4.0}, [1, 4])], ids=str
)
def test_the_scale_reaches_the_update(
    changes: dict[str, float], highest: list[float], new_model: Any, make_run: Any, optim: OptimConfig
) -> None:
    before, scaled = new_model(dropout=0.0), replace(optim, **changes)
    fresh = frozenset(name for name, _ in before.named_parameters() if "crossattention" in name)
    plain, other = (
        make_run(new_model(dropout=0.0), 1, name=name, optim=used, fresh=fresh).model
        for name, used in (("plain", optim), ("scaled", scaled))
    )
    start, moved, found = ({name: p.detach() for name, p in m.named_parameters()} for m in (before, plain, other))
    scales = lr_scales(list(start), scaled, fresh)
    assert sorted(set(scales.values()))[-2:] == highest
    for name, scale in scales.items():
        torch.testing.assert_close(found[name] - start[name], scale * (moved[name] - start[name]), rtol=1e-3, atol=1e-6)


def test_what_is_frozen_stays(new_model: Any, make_run: Any) -> None:
    model = new_model()
    freeze(model, ["encoder.*", "*crossattention.self.key*"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    after = dict(make_run(model, 2).model.named_parameters())
    still = {name for name in before if before[name].equal(after[name])}
    frozen = {name for name in before if name.startswith("encoder.") or "crossattention.self.key" in name}
    assert still == frozen


@pytest.mark.parametrize(
    ("patterns", "message"),
    [(["encoder"], "optim.freeze: expected names of parameters, got 'encoder'"), (["*"], "something left to learn")],
)
def test_a_pattern_that_freezes_nothing_or_everything_is_refused(
    patterns: list[str], message: str, new_model: Any
) -> None:
    with pytest.raises(ConfigError, match=message):
        freeze(new_model(), patterns)


def test_warm_weights_wait_until_fresh_ones_have_learnt(new_model: Any, make_run: Any, optim: OptimConfig) -> None:
    start = {name: p.detach().clone() for name, p in new_model().named_parameters()}
    fresh = frozenset(name for name in start if "crossattention" in name)
    used = replace(optim, freeze_warm_steps=2)
    for steps, learning in ((2, set(fresh)), (3, set(start))):
        after = dict(make_run(new_model(), steps, name=f"{steps}", optim=used, fresh=fresh).model.named_parameters())
        assert {name for name in start if not start[name].equal(after[name])} == learning


def test_the_steps_that_are_averaged(optim: OptimConfig) -> None:
    assert averaged_steps(10, optim) == []
    assert averaged_steps(10, replace(optim, average_last=3, average_every_steps=2)) == [6, 8, 10]
    assert averaged_steps(3, replace(optim, average_last=3, average_every_steps=2)) == [1, 3]
