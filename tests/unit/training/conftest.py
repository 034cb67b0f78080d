"""A run small enough to be done again by hand: the tiny BERT on 40 pairs, 8 a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encdec_train import distributed
from encdec_train.batch import StepBatch
from encdec_train.config import (
    Accelerator,
    OptimConfig,
    OptimizerName,
    Overlong,
    Precision,
    Schedule,
    TrainerConfig,
)
from encdec_train.data.datamodule import Seq2SeqDataModule
from encdec_train.data.load import load_file
from encdec_train.data.plan import BatchSize, Plan
from encdec_train.data.preprocess import EncodedSplit, Limits, TextCodec, encode_split
from encdec_train.decoding.search import SearchSettings
from encdec_train.jsonl import read_rows
from encdec_train.training import checkpoint as checkpoints
from encdec_train.training.callbacks import EveryStep
from encdec_train.training.memory import MemoryLimits
from encdec_train.training.metrics_log import MetricsLog
from encdec_train.training.module import Seq2SeqModule
from encdec_train.training.trainer import fit
from encdec_train.training.validation import Validator


@pytest.fixture
def optim() -> OptimConfig:
    """AdamW with everything switched on."""
    return OptimConfig(
        name=OptimizerName.adamw, lr=2e-3, schedule=Schedule.linear, warmup_steps=3, weight_decay=0.1,
        betas=[0.9, 0.99], eps=1e-8, label_smoothing=0.0, max_grad_norm=1.0,
        freeze=[], freeze_warm_steps=0, fresh_lr_factor=1.0, layer_decay=1.0, average_last=1, average_every_steps=None,
    )  # fmt: skip


@pytest.fixture
def section() -> TrainerConfig:
    """The section `trainer`, with nothing but the last step's validation and checkpoint."""
    return TrainerConfig(
        max_steps=None, max_epochs=None, devices=1, num_nodes=1, accelerator=Accelerator.cpu, precision=Precision.fp32,
        gradient_checkpointing=False, sharding=False,
        validate_every_steps=None, checkpoint_every_steps=None, log_every_steps=1, keep_last=100, best_metric="loss",
        patience_validations=None, decoded_examples=4, profile=False, stall_seconds=None,
    )  # fmt: skip


@pytest.fixture
def codec(tiny_source: Any) -> TextCodec:
    """The tiny BERT's tokenizer on both sides."""
    return TextCodec(tiny_source.tokenizer, tiny_source.tokenizer, 2, 3, 0, 0)


@pytest.fixture
def split_of(codec: TextCodec, new_pairs: Callable[[str, range], Path]) -> Callable[[range], EncodedSplit]:
    """Tokenise the pairs of these numbers."""

    def make(numbers: range) -> EncodedSplit:
        path = new_pairs(f"{numbers.start}_{numbers.stop}.jsonl", numbers)
        rows = load_file(path, ("source", "target"), key="task.train_file")
        return encode_split(rows, codec, Limits(16, 16, Overlong.refuse), name="train", cache_dir=None, cache_key=None)

    return make


@pytest.fixture
def train_split(split_of: Callable[[range], EncodedSplit]) -> EncodedSplit:
    """Forty pairs: five steps an epoch."""
    return split_of(range(40))


@pytest.fixture
def plan(train_split: EncodedSplit) -> Plan:
    """Eight pairs a step."""
    lengths = np.stack([train_split.source_lengths, train_split.target_lengths], axis=1)
    return Plan(lengths, 11, BatchSize(8, None))


@pytest.fixture
def validator(split_of: Callable[[range], EncodedSplit], codec: TextCodec) -> Validator:
    """Validates on six other pairs, four of them decoded."""
    search = SearchSettings(1, 1.0, max_new_tokens=10, no_repeat_ngram=0, max_batch_tokens=200)
    return Validator(split_of(range(50, 56)), codec, search, ["exact_match"], 4, 60)


class Heard:
    """A tracker that remembers what it is told, and can break at a step."""

    def __init__(self, breaks_at: int | None = None, error: type[BaseException] = RuntimeError) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.examples: list[tuple[int, str, int]] = []
        self._breaks_at, self._error = breaks_at, error

    def log(self, step: int, values: Any) -> None:
        if step == self._breaks_at:
            raise self._error("killed")
        self.rows.append((step, dict(values)))

    def log_examples(self, step: int, name: str, rows: Sequence[Any]) -> None:
        self.examples.append((step, name, len(rows)))


@dataclass
class Made:
    """A run that was made."""

    model: Any
    callback: EveryStep
    root: Path
    heard: Heard

    @property
    def rows(self) -> list[dict[str, float]]:
        """The rows of metrics.jsonl, without clocks."""
        rows = read_rows(self.root / "metrics.jsonl")
        return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]

    @property
    def losses(self) -> list[float]:
        return [row["train/loss"] for row in self.rows if "train/loss" in row]

    @property
    def checkpoints(self) -> list[int]:
        return checkpoints.steps(self.root / "checkpoints")


@pytest.fixture
def make_run(
    train_split: EncodedSplit, codec: TextCodec, plan: Plan, optim: OptimConfig, section: TrainerConfig, tmp_path: Path
) -> Callable[..., Made]:
    """Train a model, or go on from what lies in the folder: `make_run(model, steps, **options)`.

    Options: `name` of the folder, `validator`, `heard`, `budget` of a micro-batch, `optim`, `watch` (called with each
    step batch and the model), `plan`, `num_workers`, and keys of the section `trainer`.
    """

    def run(model: Any, steps: int, name: str = "run", **options: Any) -> Made:
        root, heard = tmp_path / name, options.pop("heard", None) or Heard()
        used, budget = options.pop("optim", optim), options.pop("budget", 60)
        validator, watch = options.pop("validator", None), options.pop("watch", None)
        used_plan, num_workers = options.pop("plan", plan), options.pop("num_workers", 0)
        fresh, averaged = options.pop("fresh", frozenset()), options.pop("averaged", [])
        trainer = replace(section, **options)
        resumed = checkpoints.newest(root / "checkpoints")
        done = resumed.step if resumed else 0
        if resumed is not None:
            checkpoints.restore_weights(model, resumed)
        log = MetricsLog(root / "metrics.jsonl" if distributed.rank() == 0 else None, heard, done)
        callback = EveryStep(trainer, root / "checkpoints", log, validator, (steps, averaged), resumed)
        module = Seq2SeqModule(model, used, steps, 11, trainer.precision, fresh)
        module.limits = MemoryLimits(root / "memory" / f"rank{distributed.rank()}.jsonl", budget)
        if watch is not None:
            step = module.training_step

            def watched(batch: StepBatch, batch_idx: int) -> Any:
                watch(batch, model)
                return step(batch, batch_idx)

            module.training_step = watched
        data = Seq2SeqDataModule(train_split, codec, used_plan, budget, (done, steps), num_workers)
        fit(module, data, callback, trainer)
        return Made(model, callback, root, heard)

    return run


@pytest.fixture
def heard_of() -> Callable[..., Heard]:
    """Make a tracker that breaks: `heard_of(breaks_at=7, error=RuntimeError)`."""
    return Heard
