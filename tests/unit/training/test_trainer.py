"""A run through Lightning equals a plain loop written here, and a run that was stopped equals one that was not."""

import json
import logging
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from benchmarks.two_ranks import on_two_ranks
from encdec_train.batch import StepBatch
from encdec_train.config import Accelerator, OptimConfig, TrainerConfig
from encdec_train.data.plan import Plan
from encdec_train.data.preprocess import EncodedSplit
from encdec_train.training import trainer as trainer_file
from encdec_train.training.module import Seq2SeqModule

GOLDEN = Path(__file__).parents[2] / "golden" / "loss_curve.json"
Pair = tuple[list[int], list[int]]


def add_gradient(model: Any, pairs: list[Pair]) -> float:
    """Add the gradient of the mean over all target tokens, by the library's logits, one pair at a time."""
    num_tokens = sum(len(target) - 1 for _, target in pairs)
    total = 0.0
    for source, target in pairs:
        logits = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target[:-1]])).logits[0]
        surprise = -logits.log_softmax(-1)[range(len(target) - 1), target[1:]].sum() / num_tokens
        surprise.backward()
        total += surprise.item()
    return total


class Adam:
    """AdamW as in its paper (Loshchilov and Hutter 2019), clipped, with a linear schedule."""

    def __init__(self, model: Any, optim: OptimConfig, steps: int) -> None:
        self.model, self.optim, self.steps, self.step = model, optim, steps, 0
        self.first = [torch.zeros_like(p) for p in model.parameters()]
        self.second = [torch.zeros_like(p) for p in model.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        self.step += 1
        step, o = self.step, self.optim
        beta1, beta2 = o.betas
        left = (self.steps - step + 1) / (self.steps - o.warmup_steps)
        lr = o.lr * (step / o.warmup_steps if step <= o.warmup_steps else left)
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in self.model.parameters()))
        for p, first, second in zip(self.model.parameters(), self.first, self.second, strict=True):
            gradient = p.grad * min(1.0, o.max_grad_norm / norm)
            first.copy_(beta1 * first + (1 - beta1) * gradient)
            second.copy_(beta2 * second + (1 - beta2) * gradient**2)
            mean, variance = first / (1 - beta1**step), second / (1 - beta2**step)
            p -= lr * (mean / (variance.sqrt() + o.eps) + (o.weight_decay * p if p.ndim == 2 else 0.0))


@pytest.fixture
def pairs(train_split: EncodedSplit, tiny_source: Any) -> list[Pair]:
    """The training pairs as the tokenizer gives them, `[CLS] … [SEP]` on both sides."""
    rows, tokenizer = train_split.rows, tiny_source.tokenizer
    texts = zip(rows.sources, rows.targets, strict=True)
    return [(tokenizer(source).input_ids, tokenizer(target).input_ids) for source, target in texts]


def test_the_losses_are_those_of_a_plain_loop(
    new_model: Callable[..., Any], make_run: Callable[..., Any], plan: Plan, pairs: list[Pair], optim: OptimConfig
) -> None:
    model = new_model(dropout=0.0)
    plain, losses = Adam(model, optim, 12), []
    for step in range(1, 13):
        model.zero_grad()
        losses.append(add_gradient(model, [pairs[i] for i in plan.batch(step)[1]]))
        plain.update()
    ours = make_run(new_model(dropout=0.0), 12)
    assert ours.losses == pytest.approx(losses, abs=1e-5)
    assert losses[-1] < losses[0] - 0.1
    for p, q in zip(ours.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=2e-5)


def test_the_golden_loss_curve(new_model: Callable[..., Any], make_run: Callable[..., Any]) -> None:
    """A change that is said to be neutral shows these losses."""
    golden = json.loads(GOLDEN.read_text())
    assert make_run(new_model(dropout=0.0), 5).losses == pytest.approx(golden["train/loss"], abs=1e-4)


def assert_equal_runs(found: Any, expected: Any) -> None:
    """The same weights to the bit, the same rows to the last digit."""
    assert found.rows == expected.rows
    for (name, p), q in zip(found.model.named_parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert found.callback.progress == expected.callback.progress


@pytest.mark.parametrize("share", ["none", "all"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    share: str,
    new_model: Callable[..., Any],
    make_run: Callable[..., Any],
    heard_of: Callable[..., Any],
    validator: Any,
) -> None:
    """Five steps an epoch, checkpoints after 4, 6, 8, 12 and 13; the run dies while it logs the steps in `deaths`."""
    options = {"checkpoint_every_steps": 4, "validate_every_steps": 6, "validator": validator, "keep_last": 1}
    expected = make_run(new_model(share, dropout=0.1), 13, name="whole", **options)
    # before the first checkpoint; within an epoch; in the next epoch, twice; at the last step
    for deaths in [(3,), (5,), (7, 11), (13,)] if share == "none" else [(6, 10)]:
        name = f"stopped{deaths}"
        for step in deaths:
            with pytest.raises(RuntimeError, match="killed"):
                make_run(new_model(share, dropout=0.1), 13, name=name, heard=heard_of(step), **options)
        seed = 0 if deaths == (3,) else 9  # other weights, which the checkpoint must replace
        found = make_run(new_model(share, seed=seed, dropout=0.1), 13, name=name, **options)
        assert_equal_runs(found, expected)
        assert [row["step"] for row in found.rows if "train/loss" in row] == list(range(1, 14))
        assert found.checkpoints == expected.checkpoints


def test_a_damaged_checkpoint_costs_only_time(
    new_model: Callable[..., Any], make_run: Callable[..., Any], heard_of: Callable[..., Any]
) -> None:
    options = {"checkpoint_every_steps": 2}
    expected = make_run(new_model(), 9, name="whole", **options)
    with pytest.raises(RuntimeError, match="killed"):
        make_run(new_model(), 9, name="stopped", heard=heard_of(8), **options)
    folder = next(expected.root.with_name("stopped").glob("checkpoints/step_00000006"))
    (folder / "optimizer.safetensors").write_bytes(b"")
    found = make_run(new_model(seed=9), 9, name="stopped", **options)
    assert_equal_runs(found, expected)


def test_workers_change_nothing(new_model: Callable[..., Any], make_run: Callable[..., Any]) -> None:
    alone = make_run(new_model(), 6, name="alone")
    helped = make_run(new_model(), 6, name="helped", num_workers=2)
    assert_equal_runs(helped, alone)


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_d07_dropout_is_on_inside_a_step(new_model: Callable[..., Any], make_run: Callable[..., Any]) -> None:
    flags: list[bool] = []
    make_run(new_model().eval(), 2, watch=lambda batch, model: flags.append(all(m.training for m in model.modules())))
    assert flags == [True, True]


def test_ctrl_c_comes_out_as_ctrl_c(
    new_model: Callable[..., Any], make_run: Callable[..., Any], heard_of: Callable[..., Any]
) -> None:
    """Lightning would exit with status 1 and leave further Ctrl-Cs ignored for the rest of the process."""
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            make_run(new_model(), 5, checkpoint_every_steps=2, heard=heard_of(4, KeyboardInterrupt))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert (
        make_run(new_model(), 5, checkpoint_every_steps=2).losses[:3] == make_run(new_model(), 5, name="new").losses[:3]
    )


def test_another_exit_stays_what_it_is(
    new_model: Callable[..., Any], make_run: Callable[..., Any], heard_of: Callable[..., Any]
) -> None:
    with pytest.raises(SystemExit, match="killed"):
        make_run(new_model(), 5, heard=heard_of(2, SystemExit))


def test_lightning_is_silent(
    new_model: Callable[..., Any],
    make_run: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    make_run(new_model(), 3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(line.startswith("train ") for line in captured.err.splitlines() if line)
    assert logging.getLogger("pytorch_lightning").level == logging.ERROR
    assert [str(warning.message) for warning in recwarn if "lightning" in str(warning.filename)] == []


@pytest.mark.parametrize(
    ("devices", "num_nodes", "accelerator", "backend"),
    [(2, 1, Accelerator.cpu, "gloo"), (1, 2, Accelerator.cpu, "gloo"), (4, 2, Accelerator.gpu, None)],
)
def test_several_devices_use_ddp(
    devices: int, num_nodes: int, accelerator: Accelerator, backend: str | None, section: TrainerConfig
) -> None:
    used = replace(section, devices=devices, num_nodes=num_nodes, accelerator=accelerator)
    strategy: Any = trainer_file._strategy(used)
    assert isinstance(strategy, DDPStrategy)
    assert strategy.process_group_backend == backend
    assert trainer_file._strategy(section) == "auto"


def test_ddp_sends_gradients_and_nothing_else(new_model: Callable[..., Any], make_run: Callable[..., Any]) -> None:
    def run() -> set[tuple[bool, ...]]:
        seen = set()
        step = Seq2SeqModule.training_step

        def looking(self: Seq2SeqModule, batch: StepBatch, batch_idx: int) -> Any:
            ddp: Any = self.trainer.strategy.model
            assert isinstance(ddp, DistributedDataParallel)
            seen.add((ddp.gradient_as_bucket_view, ddp.broadcast_buffers, ddp.find_unused_parameters, ddp.static_graph))
            return step(self, batch, batch_idx)

        Seq2SeqModule.training_step = looking  # in a process of its own
        make_run(new_model(), 2, devices=2)
        return seen

    assert on_two_ranks(run) == [{(True, False, False, False)}] * 2
