"""The DataModule: one DataLoader item is this rank's micro-batches of one optimizer step."""

import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from encdec_train.batch import StepBatch
from encdec_train.data.collate import collate
from encdec_train.data.plan import Plan, split_batch
from encdec_train.data.preprocess import EncodedSplit, TextCodec
from encdec_train.errors import ConfigError, fault

_SHARED_BYTES = 1 << 20  # a worker's queues and a few steps; not studied


class StepDataset(Dataset[StepBatch]):
    """The steps of a run, by index from 0 (step 1).

    Args:
        split: The tokenised training split.
        codec: Start and pad ids.
        plan: The global batches.
        max_micro_tokens: The token budget of a micro-batch.
        ranks: This rank and the number of ranks.
    """

    def __init__(
        self, split: EncodedSplit, codec: TextCodec, plan: Plan, max_micro_tokens: int, ranks: tuple[int, int]
    ) -> None:
        self._split, self._codec, self._plan = split, codec, plan
        self._max_micro_tokens, self._ranks = max_micro_tokens, ranks

    def __getitem__(self, index: int) -> StepBatch:
        """Collate this rank's share of step `index + 1`."""
        epoch, examples = self._plan.batch(index + 1)
        rank, num_ranks = self._ranks
        shares = split_batch(examples, self._plan.lengths, self._max_micro_tokens, num_ranks)
        micro_batches, most = shares[rank], max(map(len, shares))
        start, pads = self._codec.decoder_start_id, (self._codec.source_pad_id, self._codec.pad_id)
        collated = [collate(*self._split.take(micro), start, pads) for micro in micro_batches]
        if not collated:  # a rank without examples runs one micro-batch of zero weight, so that gradients synchronise
            collated = [collate([[self._codec.source_pad_id]], [[]], start, pads)]
        sources, targets = self._plan.lengths[examples].sum(axis=0)
        own = [self._plan.lengths[micro] for micro in micro_batches]
        sizes = int(sum(one.sum() for one in own)), int(sum(len(one) * one.max(axis=0).sum() for one in own))
        return StepBatch(index + 1, epoch, int(targets), int(sources), len(examples), collated, *sizes, most)


def ignore_signals(_worker: int) -> None:
    """Leave signals to the main process: a group's signal reaches workers too, whose batches are still wanted."""
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(one, signal.SIG_IGN)


class StepSampler(Sampler[int]):
    """Steps `start..total`, counted as all of them: Lightning's own bookkeeping then agrees with a resumed run."""

    def __init__(self, start: int, total: int) -> None:
        self._start, self._total = start, total

    def __len__(self) -> int:
        """Count all steps of the run."""
        return self._total

    def __iter__(self) -> Iterator[int]:
        """Yield the steps that are still to do."""
        return iter(range(self._start, self._total))


def _check_shared_memory(num_workers: int) -> None:
    """Say what torch's own messages hide: in a container shared memory may be tiny (docker's default: 64 MB)."""
    shared = Path("/dev/shm")  # noqa: S108
    free = shutil.disk_usage(shared).free if num_workers and shared.is_dir() else None
    if free is not None and free < num_workers * _SHARED_BYTES:
        reason = f"{shared} has {free:,} bytes left, and they hand their batches over there"
        remedy = "Make it larger (docker run --shm-size=1g), or set data.num_workers=0"
        raise ConfigError(fault("data.num_workers", "0", num_workers, reason, remedy))


class Seq2SeqDataModule(pl.LightningDataModule):
    """Feeds steps to Lightning.

    Args:
        split: The tokenised training split.
        codec: Start and pad ids.
        plan: The global batches.
        max_micro_tokens: The token budget of a micro-batch; what chooses it is asked when the model is on its device.
        steps: Steps already done, and steps in all.
        num_workers: Processes that collate.

    Raises:
        ConfigError: When they could not hand over what they collate.
    """

    def __init__(
        self,
        split: EncodedSplit,
        codec: TextCodec,
        plan: Plan,
        max_micro_tokens: int | Callable[[], int],
        steps: tuple[int, int],
        num_workers: int,
    ) -> None:
        super().__init__()
        _check_shared_memory(num_workers)
        self._split, self._codec, self._plan = split, codec, plan
        self._max_micro_tokens, self._steps, self._num_workers = max_micro_tokens, steps, num_workers

    def ids(self, step: int) -> list[str]:
        """Name the examples of a step's global batch."""
        return [self._split.rows.ids[int(index)] for index in self._plan.batch(step)[1]]

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        """Copy the micro-batches; the counts stay where they are."""
        return replace(batch, micro_batches=[micro.to(device) for micro in batch.micro_batches])

    def train_dataloader(self) -> DataLoader[StepBatch]:
        """Return this rank's loader; an item is a whole step, so there is nothing left to batch or to shuffle."""
        trainer = self.trainer
        ranks = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        budget = self._max_micro_tokens if isinstance(self._max_micro_tokens, int) else self._max_micro_tokens()
        dataset = StepDataset(self._split, self._codec, self._plan, budget, ranks)
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=StepSampler(*self._steps),
            num_workers=self._num_workers,
            worker_init_fn=ignore_signals,
            persistent_workers=self._num_workers > 0,
        )
