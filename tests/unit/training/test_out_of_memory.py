"""Memory that runs out within a step costs time and changes nothing, and what was decided is decided again."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks.two_ranks import on_two_ranks
from encdec_train import distributed
from encdec_train.batch import StepBatch
from encdec_train.config import OptimConfig, Precision
from encdec_train.errors import EncDecError, StoppedError
from encdec_train.jsonl import read_rows
from encdec_train.modeling.loss import loss_sum
from encdec_train.training import module as module_file

Run = Callable[..., Any]
MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB."
BUDGET = 10_000  # all examples of a step in one micro-batch


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Let micro-batches of so many padded tokens run out of memory, in the forward or halfway through the backward."""

    @contextmanager
    def plant(
        tokens: int, *, rank: int | None = None, backward: bool = False, first_step: int = 1
    ) -> Iterator[list[int]]:
        failed: list[int] = []
        step = [0]
        gradients = module_file.Seq2SeqModule._add_gradients

        def noting(self: Any, batch: StepBatch) -> Any:
            step[0] = batch.step
            return gradients(self, batch)

        def fail(*_: Any) -> None:
            raise torch.OutOfMemoryError(MESSAGE)

        def planted(model: Any, micro: Any, *given: Any, **more: Any) -> torch.Tensor:
            here = rank is None or distributed.rank() == rank
            if not here or step[0] < first_step or micro.num_tokens < tokens:
                return loss_sum(model, micro, *given, **more)
            failed.append(micro.num_tokens)
            if not backward:
                fail()
            encoder = model.encoder.register_forward_hook(lambda *out: out[-1][0].register_hook(fail) and None)
            summed = loss_sum(model, micro, *given, **more)
            encoder.remove()
            return summed

        with monkeypatch.context() as patched:
            patched.setattr(module_file, "loss_sum", planted)
            patched.setattr(module_file.Seq2SeqModule, "_add_gradients", noting)
            yield failed

    return plant


def equal(made: Any, expected: Any) -> bool:
    pairs = zip(made.model.parameters(), expected.model.parameters(), strict=True)
    return made.losses == expected.losses and all(p.equal(q) for p, q in pairs)


@pytest.mark.parametrize("backward", [False, True])
def test_a_step_that_runs_out_of_memory_is_the_same_step(
    backward: bool, new_model: Run, make_run: Run, small_memory: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = make_run(new_model(dropout=0.0).double(), 5, name="enough", budget=BUDGET)
    with small_memory(60, backward=backward, first_step=2) as failed:
        found = make_run(new_model(dropout=0.0).double(), 5, budget=BUDGET)
    assert len(failed) > 1  # again at a smaller size
    assert failed == sorted(failed, reverse=True)
    assert min(failed) >= 60
    for p, q in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)
    for row, other in zip(found.rows, expected.rows, strict=True):
        assert row == pytest.approx(other, rel=1e-6)
    rows = list(read_rows(found.root / "memory" / "rank0.jsonl"))
    assert [row["tokens"] for row in rows] == failed
    assert rows[0]["step"] == 2
    message = f"step 2: out of memory; micro-batches of {failed[0]} tokens and more are split in two\n"
    assert message in capfd.readouterr().err


def test_what_was_split_is_split_again_though_there_is_memory_now(
    new_model: Run, make_run: Run, small_memory: Run, heard_of: Run
) -> None:
    plenty = make_run(new_model(dropout=0.1), 7, name="plenty", budget=BUDGET)
    with small_memory(60, first_step=4):
        whole = make_run(new_model(dropout=0.1), 7, name="whole", budget=BUDGET)
        with pytest.raises(RuntimeError, match="killed"):
            make_run(new_model(dropout=0.1), 7, budget=BUDGET, checkpoint_every_steps=2, heard=heard_of(6))
    assert whole.losses[:3] == plenty.losses[:3]
    assert whole.losses[3:] != plenty.losses[3:]  # other pieces have other dropout masks
    again = make_run(new_model(seed=9), 7, budget=BUDGET, checkpoint_every_steps=2)
    assert equal(again, whole)


def test_one_example_that_does_not_fit_ends_the_run_with_a_remedy(
    new_model: Run, make_run: Run, small_memory: Run
) -> None:
    expected = (
        r"^memory: expected room for one example, got \d+; step 1: .* Set trainer.gradient_checkpointing=true, or"
    )
    with small_memory(1), pytest.raises(EncDecError, match=expected):
        make_run(new_model(), 2, budget=BUDGET)
    model = new_model()
    for half in (model.encoder, model.decoder):
        half.activation_checkpointing_enable({"use_reentrant": False})
    with small_memory(1), pytest.raises(EncDecError, match=r"does not fit into memory\. Lower task.max_source_tokens"):
        make_run(model, 2, name="recomputed", budget=BUDGET)


def test_other_errors_are_not_taken_for_it(new_model: Run, make_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(module_file, "loss_sum", fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        make_run(new_model(), 1)


def test_memory_that_runs_out_elsewhere_ends_the_run_with_one_message(
    new_model: Run, make_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError(MESSAGE)

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    expected = r"^memory: expected room for what a run holds besides; after step 0, outside a micro-batch: CUDA out of"
    with pytest.raises(EncDecError, match=expected):
        make_run(new_model(), 1)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_splits_does_not_hold_up_the_other(
    rank: int, new_model: Run, make_run: Run, small_memory: Run
) -> None:
    """Before the ranks have met in that step, and with what was larger than anything that had fitted."""

    def run(**options: Any) -> Any:
        made = make_run(new_model(dropout=0.0), 4, devices=2, budget=BUDGET, **options)
        return made.losses, [p.detach().numpy() for p in made.model.parameters()]

    alone = make_run(new_model(dropout=0.0), 4, name="alone", budget=BUDGET)
    with small_memory(50, rank=rank):
        found = on_two_ranks(run)
    rows = list(read_rows(alone.root.parent / "run" / "memory" / f"rank{rank}.jsonl"))
    assert rows
    assert not (alone.root.parent / "run" / "memory" / f"rank{1 - rank}.jsonl").exists()
    for p, q, expected in zip(found[0][1], found[1][1], alone.model.parameters(), strict=True):
        assert (p == q).all()
        torch.testing.assert_close(torch.from_numpy(p), expected, rtol=1e-3, atol=1e-5)
    assert found[0][0] == pytest.approx(alone.losses, rel=1e-4)


def test_memory_that_runs_out_while_ranks_meet_is_written_down_and_said(
    new_model: Run, make_run: Run, small_memory: Run
) -> None:
    """Step 4 needs more than what has fitted needed: nothing else has it fail in the backward pass of all ranks."""

    def run() -> str:
        try:
            make_run(new_model(dropout=0.0), 5, devices=2, budget=BUDGET)
        except EncDecError as error:
            return str(error)
        except RuntimeError:
            return "the other one is gone"
        return "done"

    with small_memory(1, rank=1, first_step=4):
        found = on_two_ranks(run)
    assert found[0] == "the other one is gone"
    assert "step 4: memory ran out while the ranks added their gradients. The same command goes on" in found[1]


def test_every_lever_at_once_gives_the_gradient_of_plain_torch(
    new_model: Run, make_run: Run, small_memory: Run, optim: OptimConfig
) -> None:
    """Packed, recomputed, in several micro-batches of which some are split, in float64; bfloat16 and dropout apart."""
    found: list[dict[int, torch.Tensor]] = []
    expected: list[torch.Tensor] = []

    def by_hand(batch: StepBatch, model: Any) -> None:
        if batch.step > 1:
            return
        total = sum(loss_sum(model, micro) for micro in batch.micro_batches) / batch.num_target_tokens
        expected.extend(torch.autograd.grad(total, list(model.parameters())))

    def keep(optimizer: Any, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        found.append({id(p): p.grad.clone() for p in parameters})

    model = levered(new_model(dropout=0.0).double())
    with small_memory(40, backward=True), register_optimizer_step_pre_hook(keep):
        made = make_run(model, 2, watch=by_hand, optim=replace(optim, max_grad_norm=None))
    assert list(read_rows(made.root / "memory" / "rank0.jsonl"))
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(found[0][id(p)], gradient, rtol=1e-6, atol=1e-9)  # the sum of losses is float32


def levered(model: Any) -> Any:
    for half in (model.encoder, model.decoder):
        half.activation_checkpointing_enable({"use_reentrant": False})
    return model


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_lever_at_once_resumes_to_the_bit(ranks: int, new_model: Run, make_run: Run, small_memory: Run) -> None:
    """Packed, bfloat16, dropout, recomputed, several micro-batches of which rank 0 splits some, one or two ranks."""
    options = {"devices": ranks, "precision": Precision.bf16, "budget": 60}

    def stop(batch: StepBatch, _: Any) -> None:
        if batch.step == 5 and distributed.rank() == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    def run(name: str, seed: int = 0, **more: Any) -> Any:
        made = make_run(levered(new_model(seed=seed, dropout=0.1)), 8, name=name, **options, **more)
        return made.losses, [p.detach().numpy() for p in made.model.parameters()]

    def both() -> Any:
        with small_memory(45, rank=0, backward=True, first_step=3):
            whole = run("whole")
            with suppress(StoppedError):
                run("stopped", watch=stop)
        return whole, run("stopped", seed=9)

    results = on_two_ranks(both) if ranks > 1 else [both()]
    for (losses, weights), (again, others) in results:
        assert losses == again
        assert all((p == q).all() for p, q in zip(weights, others, strict=True))
    assert len(results[0][0][0]) == 8
