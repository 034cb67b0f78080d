"""A step is the same however its examples are split, and its randomness is a function of where it is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from encdec_train.batch import StepBatch
from encdec_train.config import OptimConfig, Precision
from encdec_train.modeling import loss as loss_module
from encdec_train.modeling import packed
from encdec_train.training import module as module_file
from encdec_train.training.module import Seq2SeqModule, mix


@pytest.mark.parametrize(
    ("seed", "output"),
    [(0, 0xE220A8397B1DCDAF), (1234567, 6457827717110365317)],  # the first outputs of splitmix64 as published
)
def test_mix_is_splitmix64_without_its_last_bit(seed: int, output: int) -> None:
    assert mix(seed) == output >> 1


def test_mix_tells_everything_apart() -> None:
    found = {mix(seed, step, rank, micro) for seed in (0, 1, 2**32 - 1) for step in range(40) for rank in range(4)
             for micro in range(5)}  # fmt: skip
    assert len(found) == 3 * 40 * 4 * 5
    assert all(0 <= value < 2**63 for value in found)
    assert mix(1, 2) != mix(2, 1)


def num_micro_batches(seen: dict[int, int]) -> Callable[[StepBatch, Any], None]:
    """Write down how many micro-batches each step had."""

    def watch(batch: StepBatch, model: Any) -> None:
        seen[batch.step] = len(batch.micro_batches)

    return watch


def test_d05_the_update_does_not_depend_on_the_micro_batches(
    new_model: Callable[..., Any], make_run: Callable[..., Any]
) -> None:
    runs, counts = [], []
    for budget in (10_000, 60, 1):
        seen: dict[int, int] = {}
        model = new_model(dropout=0.0).double()
        runs.append(make_run(model, 5, name=f"budget{budget}", budget=budget, watch=num_micro_batches(seen)))
        counts.append(seen)
    assert set(counts[0].values()) == {1}
    assert all(1 < count < 8 for count in counts[1].values())
    assert set(counts[2].values()) == {8}
    for run in runs[1:]:
        for row, expected in zip(run.rows, runs[0].rows, strict=True):
            assert row == pytest.approx(expected, rel=1e-6)  # the logged sum is float32
        for p, q in zip(run.model.parameters(), runs[0].model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)


def test_the_gradient_norm_is_of_the_global_mean_before_clipping(
    new_model: Callable[..., Any], make_run: Callable[..., Any], optim: OptimConfig
) -> None:
    expected: list[float] = []

    def by_hand(batch: StepBatch, model: Any) -> None:
        total = sum(loss_module.loss_sum(model, micro) for micro in batch.micro_batches) / batch.num_target_tokens
        gradients = torch.autograd.grad(total, list(model.parameters()))
        expected.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())

    clipped = make_run(new_model(dropout=0.0), 3, watch=by_hand, optim=replace(optim, max_grad_norm=0.01))
    assert [row["train/grad_norm"] for row in clipped.rows] == pytest.approx(expected, rel=1e-5)
    assert min(expected) > 0.01


def test_without_a_limit_nothing_is_clipped(
    new_model: Callable[..., Any], make_run: Callable[..., Any], optim: OptimConfig
) -> None:
    high = make_run(new_model(dropout=0.0), 3, name="high", optim=replace(optim, max_grad_norm=1e9))
    none = make_run(new_model(dropout=0.0), 3, name="none", optim=replace(optim, max_grad_norm=None))
    low = make_run(new_model(dropout=0.0), 3, name="low", optim=replace(optim, max_grad_norm=1e-3))
    assert none.losses == high.losses
    assert none.losses != low.losses


def test_dropout_masks_are_a_function_of_seed_step_rank_and_micro_batch(
    new_model: Callable[..., Any], make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    seed = torch.manual_seed
    monkeypatch.setattr(module_file.torch, "manual_seed", lambda value: [seeds.append(value), seed(value)])
    seen: dict[int, int] = {}
    model = new_model()
    seeds.clear()
    first = make_run(model, 2, name="first", watch=num_micro_batches(seen))
    assert seeds == [mix(11, step, 0, micro) for step in (1, 2) for micro in range(seen[step])]
    seed(99)
    again = make_run(new_model(), 2, name="again")
    assert again.losses == first.losses  # whatever was drawn before
    still = make_run(new_model(dropout=0.0), 2, name="still")
    assert still.losses != first.losses


def test_label_smoothing_is_in_the_loss(
    new_model: Callable[..., Any], make_run: Callable[..., Any], optim: OptimConfig
) -> None:
    found = {}
    for smoothing in (0.0, 0.2):
        used = replace(optim, label_smoothing=smoothing)
        found[smoothing] = make_run(new_model(dropout=0.0), 1, name=str(smoothing), optim=used).losses[0]
    expected: list[float] = []

    def by_hand(batch: StepBatch, model: Any) -> None:
        total = sum(loss_module.loss_sum(model, micro, 0.2).item() for micro in batch.micro_batches)
        expected.append(total / batch.num_target_tokens)

    make_run(new_model(dropout=0.0), 1, name="watched", watch=by_hand)
    assert found[0.2] == pytest.approx(expected[0], rel=1e-6)
    assert found[0.2] != found[0.0]


def test_bfloat16_computes_in_it_and_keeps_float32(new_model: Callable[..., Any], make_run: Callable[..., Any]) -> None:
    exact = make_run(new_model(dropout=0.0), 3, name="fp32")
    rough = make_run(new_model(dropout=0.0), 3, name="bf16", precision=Precision.bf16)
    assert rough.losses == pytest.approx(exact.losses, rel=5e-3)
    assert rough.losses != exact.losses
    assert {p.dtype for p in rough.model.parameters()} == {torch.float32}


def test_shared_parameters_are_optimised_once(new_model: Callable[..., Any], optim: OptimConfig) -> None:
    model = new_model("all")
    built = Seq2SeqModule(model, optim, 5, 0, Precision.fp32).configure_optimizers()
    held = [p for group in built.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))


def test_gradient_checkpointing_changes_no_number_and_computes_layers_twice(
    new_model: Callable[..., Any], make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "suits", lambda *_: False)  # else a CPU packs without it, under other dropout masks
    runs, calls = [], []
    for recompute in (False, True):
        model, count = new_model(dropout=0.1), [0]
        for half in (model.encoder, model.decoder):
            if recompute:
                half.activation_checkpointing_enable({"use_reentrant": False})
        model.encoder.encoder.layer[0].attention.register_forward_hook(
            lambda *_, count=count: count.__setitem__(0, count[0] + 1)
        )
        runs.append(make_run(model, 3, name=f"again{recompute}", budget=10_000))
        calls.append(count[0])
    assert runs[0].losses == runs[1].losses
    assert all(p.equal(q) for p, q in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True))
    assert calls == [3, 6]


def test_a_causal_lm_takes_the_same_steps_however_they_are_cut(make_run: Callable[..., Any]) -> None:
    """One process, one or several micro-batches a step, in float64."""
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "eos_token_id": 3, "bos_token_id": 3}
    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    runs, counts = [], []
    for budget in (10_000, 60, 1):
        seen: dict[int, int] = {}
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=32, **shape, **rates)).double().train()
        runs.append(make_run(model, 3, name=f"budget{budget}", budget=budget, watch=num_micro_batches(seen)))
        counts.append(set(seen.values()))
    assert (counts[0], counts[2]) == ({1}, {8})
    assert all(1 < count < 8 for count in counts[1])
    for run in runs[1:]:
        for p, q in zip(run.model.parameters(), runs[0].model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)
