"""What happens after a step: log, validate, checkpoint, stop. One callback, so that the order is the text's."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch

from encdec_train import console, distributed, startup
from encdec_train.batch import StepBatch
from encdec_train.config import TrainerConfig
from encdec_train.data.datamodule import Seq2SeqDataModule
from encdec_train.errors import CheckpointError, ClusterError, EncDecError, fault
from encdec_train.folder import difference
from encdec_train.metrics import LOWER_IS_BETTER
from encdec_train.training import checkpoint as checkpoints
from encdec_train.training.checkpoint import Checkpoint
from encdec_train.training.memory import peak_gib
from encdec_train.training.metrics_log import MetricsLog
from encdec_train.training.module import Seq2SeqModule
from encdec_train.training.telemetry import Telemetry
from encdec_train.training.validation import Validator

MAX_SKIPPED_STEPS = 3  # updates left out because the gradient was not finite, before a run stops
SHOWN_IDS = 16  # of the examples of a step that was left out


@dataclass
class Progress:
    """What a run remembers from validation to validation; part of every checkpoint.

    Attributes:
        metric: What is compared, `trainer.best_metric`.
        best_step: The step of the best validation, None before the first.
        best_value: Its value.
        validations_since_best: How many have come since.
        skipped_steps: Updates that were left out because the gradient was not finite.
    """

    metric: str
    best_step: int | None = None
    best_value: float | None = None
    validations_since_best: int = 0
    skipped_steps: int = 0

    def take(self, step: int, value: float, lower_is_better: bool) -> None:
        """Count one validation."""
        better = self.best_value is None or (value < self.best_value if lower_is_better else value > self.best_value)
        if better and math.isfinite(value):
            self.best_step, self.best_value, self.validations_since_best = step, value, 0
        else:
            self.validations_since_best += 1


class EveryStep(pl.Callback):
    """Logs, validates, checkpoints and stops, by our own step.

    Args:
        trainer: The section of the config.
        folder: The run's `checkpoints` folder.
        log: Takes rows; on rank 0 it writes them.
        validator: None when there is nothing to validate on.
        steps: Of the whole run, and those of them whose weights are averaged in the end.
        resumed: The checkpoint that the run goes on from; let go of when training starts.
    """

    def __init__(
        self,
        trainer: TrainerConfig,
        folder: Path,
        log: MetricsLog,
        validator: Validator | None,
        steps: tuple[int, Collection[int]],
        resumed: Checkpoint | None,
    ) -> None:
        self._config, self._folder, self._log, self._validator = trainer, folder, log, validator
        self.root = folder.parent
        self._total_steps, self._averaged = steps[0], set(steps[1])
        self._resumed = resumed
        self.identity: Mapping[str, Any] = {}  # what the run is; the same on all ranks
        self.progress = _progress(trainer.best_metric, resumed)
        self.step = resumed.step if resumed else 0
        self._bar, self._shown = console.progress(self._total_steps, "train", done=self.step), self.step
        self._telemetry: Telemetry

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the optimizer back where it was, and the model in train mode (known_defects D7)."""
        module, resumed, self._resumed = cast(Seq2SeqModule, pl_module), self._resumed, None
        distributed.moved("the first step")
        _check_ranks_agree(str(self._folder), self.identity, resumed)
        module.model.train()
        self._telemetry = Telemetry(module.model, self._config.precision, distributed.world_size())
        self._bar.__enter__()
        if resumed is not None:
            checkpoints.restore_optimizer(module.model, trainer.optimizers[0], resumed)
            if resumed.state["validation_due"]:
                startup.mark("trainer")
                self._validate(module)
                self._save(trainer, module)
                trainer.should_stop = _over(self, self._config, self._total_steps)
                startup.mark("validation")
        self._telemetry.restart()
        startup.mark("trainer")

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: StepBatch,
        batch_idx: int,
    ) -> None:
        """Look at the clock: what has passed since the last step is the loader's."""
        self._telemetry.batch_arrived()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: StepBatch,
        batch_idx: int,
    ) -> None:
        """Run what is due after this step."""
        step = self.step = batch.step
        self._telemetry.step_ended(batch)
        if startup.mark("first step"):
            console.say(startup.line())
        last, asked = step == self._total_steps, outputs["stop"] is not None
        logged = last or self._is_due(self._config.log_every_steps)
        due = last or self._is_due(self._config.validate_every_steps)
        saved = due or asked or step in self._averaged or self._is_due(self._config.checkpoint_every_steps)
        if outputs["skipped"]:
            self._count_skipped(outputs, trainer)
        elif logged or saved:
            _check_finite(outputs, self.step)
        if logged:
            self._log_step(outputs, batch)
        postponed = due and asked and not last  # a validation may take longer than a scheduler waits
        if due and not postponed:
            self._validate(cast(Seq2SeqModule, pl_module))
            asked = cast(Seq2SeqModule, pl_module).anyone_asked_to_stop()  # meanwhile
        if outputs["skipped"]:  # weights that may be about to break do not push out a good checkpoint
            saved = last or asked or step in self._averaged or self.progress.best_step == step
        if saved:
            self._save(trainer, cast(Seq2SeqModule, pl_module), validation_due=postponed)
        over = due and _over(self, self._config, self._total_steps)
        trainer.should_stop |= asked or over
        if logged or saved:
            self._telemetry.restart()

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        patience = self._config.patience_validations
        return patience is not None and self.progress.validations_since_best >= patience

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the progress bar."""
        self._bar.__exit__(None, None, None)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the progress bar before the message."""
        self._bar.__exit__(type(exception), exception, None)

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    def _count_skipped(self, outputs: Mapping[str, Any], trainer: pl.Trainer) -> None:
        """Say which examples made a gradient that is no number; stop when there have been too many."""
        self.progress.skipped_steps += 1
        found, limit = float(outputs["loss"]), MAX_SKIPPED_STEPS
        ids = cast(Seq2SeqDataModule, trainer.datamodule).ids(self.step)  # type: ignore[attr-defined]
        shown = ", ".join(ids[:SHOWN_IDS]) + (f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else "")
        count = f"{self.progress.skipped_steps} so far, at most {limit}"
        console.warn(f"step {self.step}: the loss is {found}, its gradient not finite; not applied ({count}): {shown}")
        if self.progress.skipped_steps > limit:
            raise _broken(found, float(outputs["grad_norm"]), f"step {self.step} is one too many ({count})")

    def _log_step(self, outputs: Mapping[str, Any], batch: StepBatch) -> None:
        loss = float(outputs["loss"])
        times = self._telemetry.columns() | {"time/peak_memory_gib": peak_gib(outputs["loss"].device.type)}
        skipped = {"train/skipped_steps": self.progress.skipped_steps} if outputs["skipped"] else {}
        self._log.log(
            batch.step,
            {
                "train/loss": loss,
                "train/grad_norm": float(outputs["grad_norm"]),
                "train/epoch": batch.epoch,
                "optim/lr": float(outputs["lr"]),
                **times,
                **skipped,
            },
        )
        self._bar.advance(self.step - self._shown, loss=loss, tokens_per_second=times["time/tokens_per_second"])
        self._shown = self.step

    def _validate(self, module: Seq2SeqModule) -> None:
        if self._validator is None:
            return
        found = self._validator(module)
        best = self._config.best_metric
        self.progress.take(self.step, found.values[best], best == "loss" or best in LOWER_IS_BETTER)
        self._log.log(self.step, {f"validation/{name}": value for name, value in found.values.items()})
        values = "  ".join(f"{name} {value:.4g}" for name, value in found.values.items())
        star = "  (best so far)" if self.progress.best_step == self.step else ""
        console.say(f"step {self.step} validation: {values}{star}")
        self._log.log_examples(self.step, "validation", found.examples)

    def _save(self, trainer: pl.Trainer, module: Seq2SeqModule, *, validation_due: bool = False) -> None:
        if distributed.rank() == 0:
            self._log.flush()  # a row that a checkpoint is past must not be lost with the machine
        state = {"progress": asdict(self.progress), "validation_due": validation_due}
        checkpoints.write(self._folder, self.step, module.model, trainer.optimizers[0], state)
        if distributed.rank() == 0:
            whole = [step for step in checkpoints.steps(self._folder) if step <= self.step]  # later ones are damaged
            kept = set(whole[-self._config.keep_last :]) | self._averaged
            checkpoints.prune(self._folder, kept | {self.progress.best_step or self.step})
        distributed.moved(f"the checkpoint of step {self.step}", waits=True)
        distributed.barrier()
        distributed.moved(f"the data of step {self.step + 1}")


def _over(run: EveryStep, config: TrainerConfig, total_steps: int) -> bool:
    """Tell whether patience has run out, and say so where that ends a run early."""
    if run.is_over and run.step < total_steps:
        patience = config.patience_validations
        console.say(f"stop at step {run.step}: no better {config.best_metric} in {patience} validations")
    return run.is_over


def _check_finite(outputs: Mapping[str, Any], step: int) -> None:
    loss, grad_norm = float(outputs["loss"]), float(outputs["grad_norm"])
    if not math.isfinite(loss) or not math.isfinite(grad_norm):
        raise _broken(loss, grad_norm, f"the weights are broken at step {step}")


def _broken(loss: float, grad_norm: float, reason: str) -> EncDecError:
    expected, remedy = "a finite loss and gradient", "Lower optim.lr or raise optim.warmup_steps"
    reason += "; the last checkpoint is from before"
    return EncDecError(fault("train/loss", expected, f"{loss} and {grad_norm}", reason, remedy))


def _check_ranks_agree(folder: str, identity: Mapping[str, Any], resumed: Checkpoint | None) -> None:
    """Refuse to train when ranks are of different runs, or read different checkpoints, as from a disk not shared."""
    mine = (resumed.step, resumed.state) if resumed else None
    pairs = distributed.gather_ordered([(distributed.rank(), (folder, identity, mine))])
    for rank, (place, other, _) in enumerate(pairs):
        if (place, other) != pairs[0][:2]:
            keys = ", ".join(key for key, *_ in difference(pairs[0][1], other))
            reason = f"rank {rank} writes to {place}" + (f" and has another {keys}" if keys else "")
            remedy = "Start all ranks alike, on the same data; set MASTER_PORT to a port that no other run uses"
            raise ClusterError(fault("launcher", f"ranks of one run, in {pairs[0][0]}", None, reason, remedy))
    found = [one for *_, one in pairs]
    differing = [f"rank {rank} after step {one[0] if one else 0}" for rank, one in enumerate(found) if one != found[0]]
    if differing:
        reason = f"{', '.join(differing)}, rank 0 after step {found[0][0] if found[0] else 0}"
        remedy = "run.output_dir must be one folder for all"
        raise ClusterError(fault("checkpoints", "the same ones on every rank", None, reason, remedy))


def _progress(metric: str, resumed: Checkpoint | None) -> Progress:
    """Go on counting where the checkpoint stopped, or anew when another metric is compared now."""
    if resumed is None:
        return Progress(metric)
    before = Progress(**resumed.state["progress"])
    if before.metric == metric:
        return before
    console.warn(f"trainer.best_metric was {before.metric} and is {metric}: the best validation is looked for anew")
    return Progress(metric, skipped_steps=before.skipped_steps)


def final_weights(model: torch.nn.Module, folder: Path, progress: Progress, averaged: Collection[int]) -> int | None:
    """Load the mean of some steps' weights, or the best validation's; without either the model keeps its last.

    Returns:
        The step that was loaded (the last of several), or None.
    """
    steps = sorted(averaged) or [step for step in (progress.best_step,) if step is not None]
    if not steps:
        return None
    try:
        checkpoints.restore_mean(model, [checkpoints.folder_of(folder, step) for step in steps])
    except CheckpointError as error:
        console.warn(f"{error} The weights of the last step are kept instead of those of {_listed(steps)}.")
        return None
    if averaged:
        console.say(f"the weights are the mean of {_listed(steps)}")
    return steps[-1]


def _listed(steps: Sequence[int]) -> str:
    return f"step{'s' * (len(steps) > 1)} {', '.join(map(str, steps))}"
