"""How much a gradient depends on how its examples are split: ours beside `transformers.Seq2SeqTrainer`.

`python -m benchmarks.splits` prints the tables of docs/results/splits.md: five steps of one tiny BERT pair, split over
micro-batches and ranks in every way, against the same steps by hand on one batch. The rows of `Seq2SeqTrainer` need
`pip install accelerate`.
"""

import contextlib
import importlib.util
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch.utils.data import DataLoader
from transformers import EncoderDecoderModel

from benchmarks.tiny_pair import CODEC, PAD, START, STEP_EXAMPLES, Examples, Setting, optim, pair
from benchmarks.two_ranks import on_two_ranks
from encdec_train import distributed
from encdec_train.batch import StepBatch
from encdec_train.config import Accelerator, Precision, TrainerConfig
from encdec_train.data.collate import collate
from encdec_train.data.datamodule import Seq2SeqDataModule
from encdec_train.data.plan import Ints
from encdec_train.training.module import Seq2SeqModule
from encdec_train.training.optim import build_optimizer
from encdec_train.training.trainer import fit

NUM_STEPS = 5
ONE_MICRO_BATCH, ONE_EXAMPLE = 10**6, 1  # budgets, in tokens
HF_MICRO_BATCHES = {1: (1, 2, 8), 2: (1, 4)}  # of Seq2SeqTrainer, by ranks; as many on each rank


@dataclass(frozen=True)
class Split:
    """How global batches are split.

    Attributes:
        name: For people.
        ranks: How many.
        deal: A budget of tokens for the plan's own split, or a function from a global batch's examples to
            `[rank][micro-batch]`, for what the plan would not do.
    """

    name: str
    ranks: int
    deal: int | Callable[[Ints], list[list[Ints]]]


SPLITS = [
    Split("1 rank: 1", 1, ONE_MICRO_BATCH),
    Split("1 rank: 2", 1, 90),
    Split("1 rank: 8", 1, ONE_EXAMPLE),
    Split("2 ranks: 1 + 1", 2, lambda batch: [[half] for half in np.array_split(batch, 2)]),
    Split("2 ranks: 4 + 4", 2, ONE_EXAMPLE),
    Split("2 ranks: 2 + 2", 2, 50),
    Split("2 ranks: 1 + 3", 2, lambda batch: [[batch[:2]], np.array_split(batch[2:], 3)]),
    Split("2 ranks: 1 + none", 2, lambda batch: [[batch], []]),
    Split("2 ranks: none + 2", 2, lambda batch: [[], np.array_split(batch, 2)]),
]
TABLES = {
    "float64, neither smoothing nor clipping nor frozen parameters": Setting(
        label_smoothing=0.0, max_grad_norm=None, frozen=False
    ),
    "float64, label smoothing 0.1, clipping to 0.05, encoder embeddings frozen": Setting(),
    "The same in float32": Setting(dtype=torch.float32),
}


@dataclass
class Measured:
    """What was seen of each step.

    Attributes:
        losses: Before the update, in nats.
        norms: Of the gradient, before clipping.
        gradients: By parameter, as the optimizer gets them.
        counts: Micro-batches on this rank, those of zero weight too.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: list[dict[str, np.ndarray]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def watch(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Copy the gradients whenever the optimizer is about to step."""

        def copy(*_: object) -> None:
            found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            self.gradients.append({name: distributed.whole(grad).clone().numpy() for name, grad in found.items()})

        optimizer.register_step_pre_hook(copy)


class HandDealt(Seq2SeqDataModule):
    """Steps that are split as a function says, not as the plan would."""

    def __init__(self, examples: Examples, deal: Callable[[Ints], list[list[Ints]]]) -> None:
        super().__init__(examples, CODEC, examples.plan, ONE_MICRO_BATCH, (0, NUM_STEPS), 0)
        self._examples, self._deal = examples, deal

    def train_dataloader(self) -> DataLoader[StepBatch]:
        """Return this rank's steps."""
        return DataLoader([self._step(step) for step in range(1, NUM_STEPS + 1)], batch_size=None)

    def _step(self, step: int) -> StepBatch:
        epoch, batch = self._examples.plan.batch(step)
        shares = self._deal(batch)
        mine, most = shares[self.trainer.global_rank], max(map(len, shares))
        micro_batches = [self._examples.take(micro) for micro in mine if len(micro)]
        collated = [collate(*pairs, START, (PAD, PAD)) for pairs in micro_batches or [([[PAD]], [[]])]]
        sources, targets = self._examples.plan.lengths[batch].sum(axis=0)
        return StepBatch(step, epoch, int(targets), int(sources), len(batch), collated, num_passes=most)


TRAINER = TrainerConfig(
    max_steps=None, max_epochs=None, devices=1, num_nodes=1, accelerator=Accelerator.cpu, precision=Precision.fp32,
    gradient_checkpointing=False, sharding=False,
    validate_every_steps=None, checkpoint_every_steps=None, log_every_steps=1, keep_last=1, best_metric="loss",
    patience_validations=None, decoded_examples=0, profile=False, stall_seconds=None,
)  # fmt: skip


class Recorder(pl.Callback):
    """Takes the place of `EveryStep` and only looks on."""

    def __init__(self) -> None:
        self.measured = Measured()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Watch the optimizer."""
        self.measured.watch(pl_module.model, trainer.optimizers[0])

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Mapping[str, Any],
        batch: StepBatch,
        batch_idx: int,
    ) -> None:
        """Write down what the step returned."""
        self.measured.losses.append(float(outputs["loss"]))
        self.measured.norms.append(float(outputs["grad_norm"]))
        self.measured.counts.append(len(batch.micro_batches))


@contextlib.contextmanager
def everything_in(dtype: torch.dtype) -> Iterator[None]:
    """Make a dtype the default, so that sums that start from a bare zero are kept in it too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def ours(setting: Setting, split: Split, model: EncoderDecoderModel | None = None, **options: object) -> Measured:
    """Train by Lightning, as a run does; on one of several ranks, call this on each.

    Args:
        setting: What is trained on.
        split: How.
        model: What is trained, where it is another one than the setting's.
        options: Keys of the section `trainer`.
    """
    model, examples, recorder = pair(setting) if model is None else model, Examples(setting), Recorder()
    if isinstance(split.deal, int):
        data = Seq2SeqDataModule(examples, CODEC, examples.plan, split.deal, (0, NUM_STEPS), 0)
    else:
        data = HandDealt(examples, split.deal)
    trainer = TrainerConfig(**{**vars(TRAINER), "devices": split.ranks, **options})
    with everything_in(setting.dtype):
        fit(Seq2SeqModule(model, optim(setting), NUM_STEPS, 0, Precision.fp32), data, recorder, trainer)
    return recorder.measured


def by_hand(setting: Setting) -> Measured:
    """Make the same steps in plain torch: one batch, the library's own forward, the mean over its labels."""
    model, examples, measured = pair(setting), Examples(setting), Measured()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = build_optimizer(trained.items(), optim(setting))
    measured.watch(model, optimizer)
    for step in range(1, NUM_STEPS + 1):
        columns = examples.columns(examples.plan.batch(step)[1])
        labels = columns.pop("labels")
        logits = model(**columns, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=setting.label_smoothing)
        gradients = torch.autograd.grad(loss, list(trained.values()))
        norm = sum(gradient.square().sum() for gradient in gradients) ** 0.5
        share = 1.0 if setting.max_grad_norm is None else min(1.0, setting.max_grad_norm / (float(norm) + 1e-6))
        for p, gradient in zip(trained.values(), gradients, strict=True):
            p.grad = gradient * share
        optimizer.step()
        measured.losses.append(loss.item())
        measured.norms.append(norm.item())
    return measured


def seq2seq_trainer(setting: Setting, num_micro_batches: int, ranks: int = 1) -> Measured:
    """Train by `transformers.Seq2SeqTrainer` on the same batches; on one of several ranks, call this on each."""
    from transformers import PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

    model, examples, measured = pair(setting), Examples(setting), Measured()
    optimizer = build_optimizer(model.named_parameters(), optim(setting))
    measured.watch(model, optimizer)

    class Logged(TrainerCallback):
        def on_log(self, args: object, state: object, control: object, logs: dict[str, float], **_: object) -> None:
            if "grad_norm" in logs:
                measured.losses.append(logs["loss"])
                measured.norms.append(logs["grad_norm"])

    order = np.concatenate([examples.plan.batch(step)[1] for step in range(1, NUM_STEPS + 1)])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecations, once a forward (known_defects D12)
        arguments = Seq2SeqTrainingArguments(
            output_dir=folder, use_cpu=True, max_steps=NUM_STEPS, gradient_accumulation_steps=num_micro_batches,
            per_device_train_batch_size=STEP_EXAMPLES // num_micro_batches // ranks, logging_steps=1,
            train_sampling_strategy="sequential", label_smoothing_factor=setting.label_smoothing,
            max_grad_norm=setting.max_grad_norm or 0.0, save_strategy="no", report_to="none", disable_tqdm=True,
            remove_unused_columns=False, log_level="error", ddp_backend="gloo" if ranks > 1 else None,
        )  # fmt: skip
        trainer = Seq2SeqTrainer(
            model, arguments, data_collator=examples.columns, train_dataset=order.tolist(), callbacks=[Logged()],
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        with everything_in(setting.dtype):
            trainer.train()
    return measured


def difference(found: Measured, expected: Measured) -> float:
    """Return the largest difference of a gradient over all steps, relative to its norm in `expected`.

    A key's bias shifts all scores of a softmax alike, so its gradient is zero and what is found is rounding: that is
    held against the norm of all gradients.
    """
    largest = 0.0
    for mine, theirs in zip(found.gradients, expected.gradients, strict=True):
        if mine.keys() != theirs.keys():
            return float("inf")
        whole = sum(float(np.square(gradient).sum()) for gradient in theirs.values()) ** 0.5
        for name, gradient in theirs.items():
            size = whole if name.endswith("key.bias") else float(np.linalg.norm(gradient))
            largest = max(largest, float(np.linalg.norm(mine[name] - gradient)) / size)
    return largest


def row(name: str, measured: Measured, expected: Measured) -> str:
    """Return a row of the table."""
    losses = f"{measured.losses[0]:.10f} | {measured.losses[-1]:.10f}"
    return f"| {name} | {losses} | {measured.norms[0]:.10f} | {difference(measured, expected):.1e} |"


def rows(setting: Setting, with_library: bool) -> Iterator[str]:  # noqa: FBT001
    """Measure every split of a setting."""
    expected = by_hand(setting)
    yield "| micro-batches | loss, step 1 | loss, step 5 | gradient norm, step 1 | largest difference of a gradient |"
    yield "|---|---|---|---|---|"
    yield row("one batch by hand", expected, expected)
    two = [split for split in SPLITS if split.ranks == 2]
    found = {split.name: ours(setting, split) for split in SPLITS if split.ranks == 1}
    found |= on_two_ranks(lambda: {split.name: ours(setting, split) for split in two})[0]
    yield from (row(name, measured, expected) for name, measured in found.items())
    if not with_library:
        return
    for count in HF_MICRO_BATCHES[1]:
        yield row(f"Seq2SeqTrainer, 1 rank: {count}", seq2seq_trainer(setting, count), expected)
    counts = HF_MICRO_BATCHES[2]
    both = on_two_ranks(lambda: {count: seq2seq_trainer(setting, count, 2) for count in counts})[0]
    for count, measured in both.items():
        yield row(f"Seq2SeqTrainer, 2 ranks: {count} + {count}", measured, expected)


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    with_library = importlib.util.find_spec("accelerate") is not None
    if not with_library:
        print("accelerate is not installed: no rows of Seq2SeqTrainer", file=sys.stderr)
    libraries = ["torch", "transformers", "pytorch-lightning", *["accelerate"] * with_library]
    print(f"{platform.machine()}, one thread; {', '.join(f'{name} {version(name)}' for name in libraries)}")
    for title, setting in TABLES.items():
        print(f"\n## {title}\n\n{chr(10).join(rows(setting, with_library))}")


if __name__ == "__main__":
    main()
