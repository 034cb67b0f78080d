"""The LightningModule: one training step is one optimizer step over this rank's micro-batches.

Loss = sum of token cross-entropies over the global batch / its target tokens. Ranks and micro-batches only add, so the
gradient is the same however a global batch is split (known_defects D5, D6).
"""

import contextlib
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.nn.parallel import DistributedDataParallel
from transformers import EncoderDecoderModel

from encdec_train import distributed
from encdec_train.batch import MicroBatch, StepBatch
from encdec_train.config import OptimConfig, Precision
from encdec_train.errors import EncDecError, fault
from encdec_train.modeling import dropout, linear, packed
from encdec_train.modeling.loss import loss_sum
from encdec_train.modeling.precision import autocast
from encdec_train.training import memory
from encdec_train.training.optim import build_optimizer, learning_rate
from encdec_train.training.sharding import ShardedLoss
from encdec_train.training.stop import SIGNALS, StopWish, agreed


class Seq2SeqModule(pl.LightningModule):
    """Wraps an encoder-decoder model for training.

    Args:
        model: The pair.
        optim: The section of the config.
        total_steps: Steps of the whole run.
        seed: Of the run; dropout masks are a function of it, the step, the rank and the micro-batch or its piece.
        precision: What is computed in; weights stay float32.
        fresh: Names of the parameters that the checkpoints lack.
    """

    def __init__(
        self,
        model: EncoderDecoderModel,
        optim: OptimConfig,
        total_steps: int,
        seed: int,
        precision: Precision,
        fresh: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        dropout.install(model)
        linear.install(model)
        self.stop_wish = StopWish()
        self.limits = memory.MemoryLimits()
        self.sharded: ShardedLoss | None = None
        self._most_tokens = 0  # of a micro-batch that has fitted since this process started
        self._optim, self._total_steps, self._seed, self._precision = optim, total_steps, seed, precision
        self._fresh = fresh

    def configure_model(self) -> None:
        """Shard the model where the strategy wants it; `model` is another one then."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy) and self.sharded is None:
            self.sharded = ShardedLoss(self.model, strategy.root_device)
            self.model = self.sharded.model

    def whole_model(self) -> AbstractContextManager[EncoderDecoderModel]:
        """Lend the model with all its weights, for use without gradients; every rank must come here."""
        return contextlib.nullcontext(self.model) if self.sharded is None else self.sharded.whole()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer over distinct parameters."""
        return build_optimizer(self.model.named_parameters(), self._optim, self._fresh)

    def training_step(self, batch: StepBatch, batch_idx: int) -> dict[str, Any]:
        """Make one update of the weights.

        Returns:
            `loss`, the global token mean in nats before the update; `grad_norm`, of the global gradient before
            clipping; `skipped`, whether the update was left out because that is not finite (every rank sees the same
            gradient, so all decide alike); `lr`; `stop`, the signal that any rank noted, the same on all of them.
        """
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        shared = torch.zeros(1 + len(SIGNALS), dtype=torch.float64, device=self.device)
        distributed.moved(f"step {batch.step}")
        while (summed := self._add_gradients(batch)) is None:
            optimizer.zero_grad()
            memory.release()
        shared[0] = summed
        if distributed.world_size() > 1:
            shared[1:] = torch.tensor(self.stop_wish.counts())
        wait = distributed.start_sum(shared)  # while the weights are updated
        lr = learning_rate(batch.step, self._total_steps, self._optim)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        if batch.step <= self._optim.freeze_warm_steps:
            self._drop_warm_gradients()
        limit = float("inf") if self._optim.max_grad_norm is None else self._optim.max_grad_norm
        grad_norm = distributed.whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        skipped = not bool(torch.isfinite(grad_norm))
        if not skipped:
            optimizer.step()
        wait()
        distributed.moved(f"the end of step {batch.step}")
        stop = agreed(shared[1:].tolist()) if distributed.world_size() > 1 else self.stop_wish.noted
        return {
            "loss": shared[0] / batch.num_target_tokens,
            "grad_norm": grad_norm,
            "skipped": skipped,
            "lr": lr,
            "stop": stop,
        }

    def _add_gradients(self, batch: StepBatch) -> torch.Tensor | None:
        """Add the loss and the gradients of this rank's micro-batches; None where memory ran out, with a lower limit.

        Ranks meet once, in the last backward pass. There none may fail, so a micro-batch larger than all that have
        fitted comes before it, and one of zero weight is the last. Those of a sharded model meet in every pass, so
        that each makes as many as the one with most micro-batches, with zero weight where it has no more.
        """
        pieces = self.limits.pieces(batch.step, batch.micro_batches)
        fitted = max([self._most_tokens, *(micro.num_tokens for _, micro in pieces[:-1])])
        weightless = pieces[-1][1].weightless()
        if self.sharded is not None:
            pieces += [((place,), weightless) for place in range(len(pieces), batch.num_passes)]
        elif distributed.world_size() > 1 and pieces[-1][1].num_tokens > fitted:
            pieces.append(((len(batch.micro_batches),), weightless))
        scale = distributed.world_size() / batch.num_target_tokens  # DDP averages over ranks; this undoes it
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, (place, micro) in enumerate(pieces, start=1):
            torch.manual_seed(mix(self._seed, batch.step, distributed.rank(), *place))
            try:
                total += self.add_gradient(micro, scale, batch.step, last=number == len(pieces))
            except (RuntimeError, MemoryError) as error:
                if not memory.ran_out(error):
                    raise
                self._lower(batch.step, micro, together=number == len(pieces) and distributed.world_size() > 1)
                return None
            self._most_tokens = max(self._most_tokens, micro.num_tokens)
        return total

    def add_gradient(self, micro: MicroBatch, scale: float, step: int, *, last: bool) -> torch.Tensor:
        """Run one micro-batch forward and backward.

        Args:
            micro: The micro-batch.
            scale: What its summed loss is multiplied by.
            step: Whose it is, for the watchdog.
            last: Whether ranks add their gradients in this backward pass; else each keeps its own.

        Returns:
            Its summed cross-entropy in nats.
        """
        with contextlib.nullcontext() if last else self._without_sync():
            if self.sharded is not None:
                distributed.moved(f"the forward pass of step {step}", waits=True)
            loss = partial(loss_sum, self.model) if self.sharded is None else self.sharded
            pack = packed.suits(self.model, micro)
            with packed.attention(self.model) if pack else contextlib.nullcontext():
                with self.autocast():
                    summed = loss(micro, self._optim.label_smoothing, pack=pack)
                distributed.moved(f"the backward pass of step {step}", waits=last or self.sharded is not None)
                self.manual_backward(summed * scale)
        return summed.detach()

    def _lower(self, step: int, micro: MicroBatch, *, together: bool) -> None:
        """Take note that a micro-batch did not fit."""
        if self.sharded is not None:
            reason = f"step {step}: memory ran out in a pass that all ranks make together (trainer.sharding)"
            remedy = "Lower it, the same command goes on, or set trainer.gradient_checkpointing=true"
            raise EncDecError(fault("data.max_micro_tokens", f"below {micro.num_tokens}", None, reason, remedy))
        if len(micro.source_ids_BS) > 1:
            self.limits.lower(step, micro.num_tokens)
        if together:
            reason = f"step {step}: memory ran out while the ranks added their gradients"
            remedy = "The same command goes on, in smaller pieces; a lower data.max_micro_tokens avoids it"
            raise EncDecError(fault("data.max_micro_tokens", "micro-batches that fit", None, reason, remedy))
        if len(micro.source_ids_BS) == 1:
            reason = f"step {step}: one example of so many tokens, padding included, does not fit into memory"
            layers = any(getattr(layer, "gradient_checkpointing", False) for layer in self.model.modules())
            first = "" if layers else "Set trainer.gradient_checkpointing=true, or lower"
            remedy = f"{first or 'Lower'} task.max_source_tokens and task.max_target_tokens"
            raise EncDecError(fault("memory", "room for one example", micro.num_tokens, reason, remedy))

    def anyone_asked_to_stop(self) -> bool:
        """Ask all ranks, between steps; every rank must call it."""
        counts = torch.tensor(self.stop_wish.counts(), device=self.device)
        return agreed(distributed.all_sum(counts).tolist()) is not None

    def autocast(self) -> AbstractContextManager[object]:
        """Compute in the run's precision."""
        return autocast(self._precision, self.device.type, cached=self.sharded is None)

    def _drop_warm_gradients(self) -> None:
        """Leave what was loaded as it is: without a gradient the optimizer does not see it, nor does clipping."""
        for name, p in self.model.named_parameters():
            if name not in self._fresh:
                p.grad = None

    def _without_sync(self) -> AbstractContextManager[object]:
        wrapped = self.trainer.strategy.model
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else contextlib.nullcontext()


def mix(*numbers: int) -> int:
    """Hash whole numbers to one of 63 bits (splitmix64's finaliser), the same on every platform."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
