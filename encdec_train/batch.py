"""The batch types, and the one legend of shapes.

Legend: `B` examples of a micro-batch, `S` source tokens (padded), `T` target tokens (padded), `N` target tokens that
carry a label (no padding), `H` hidden size, `V` vocabulary size. A tensor named `labels_N` has the shape `[N]`.

Three sizes of batch, from large to small:
a *global batch* is what one optimizer step sees, on all ranks together;
a *step batch* is one rank's share of it, the item of the DataLoader;
a *micro-batch* is what goes through the model at once.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MicroBatch:
    """Examples that go through the model together, padded on the right.

    Attributes:
        source_ids_BS: Encoder tokens.
        source_mask_BS: True where `source_ids_BS` is a token, from lengths and never from ids (known_defects D10).
        decoder_ids_BT: Decoder inputs, `start + tokens`.
        target_mask_BT: True where the position has a label.
        labels_N: `tokens + eos` of every example, one after the other: the rows of `target_mask_BT`.
    """

    source_ids_BS: "torch.Tensor"
    source_mask_BS: "torch.Tensor"
    decoder_ids_BT: "torch.Tensor"
    target_mask_BT: "torch.Tensor"
    labels_N: "torch.Tensor"

    def to(self, device: "torch.device | str") -> "MicroBatch":
        """Copy to a device, without waiting for the copy."""
        tensors = {name: value.to(device, non_blocking=True) for name, value in vars(self).items()}
        return MicroBatch(**tensors)

    @property
    def num_tokens(self) -> int:
        """Count source and target tokens with padding."""
        return self.source_ids_BS.numel() + self.decoder_ids_BT.numel()

    def halves(self) -> "tuple[MicroBatch, MicroBatch]":
        """Split two or more examples in two, each half padded to its own longest."""
        middle = len(self.source_ids_BS) // 2
        return self._rows(0, middle), self._rows(middle, len(self.source_ids_BS))

    def weightless(self) -> "MicroBatch":
        """Return one token of an example without a label: its loss and its gradients are zero."""
        one = self._rows(0, 1)
        source, mask, decoder = one.source_ids_BS[:, :1], one.source_mask_BS[:, :1], one.decoder_ids_BT[:, :1]
        return MicroBatch(source, mask, decoder, one.target_mask_BT[:, :1] & False, one.labels_N[:0])

    def _rows(self, start: int, stop: int) -> "MicroBatch":
        sources, targets = self.source_mask_BS[start:stop], self.target_mask_BT[start:stop]
        S, T = (max(int(mask.sum(1).max()), 1) for mask in (sources, targets))
        before = int(self.target_mask_BT[:start].sum())
        labels_N = self.labels_N[before : before + int(targets.sum())]
        ids = self.source_ids_BS[start:stop, :S], self.decoder_ids_BT[start:stop, :T]
        return MicroBatch(ids[0], sources[:, :S], ids[1], targets[:, :T], labels_N)


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of one optimizer step.

    Attributes:
        step: The optimizer step that this batch makes, counted from 1 over the whole run.
        epoch: The epoch that the global batch belongs to, counted from 0.
        num_target_tokens: Labels in the global batch over all ranks: the loss is divided by it.
        num_source_tokens: Source tokens in the global batch over all ranks, without padding.
        num_examples: Examples in the global batch over all ranks.
        micro_batches: What this rank runs, in order; at least one (of zero weight on a rank without examples).
        num_own_tokens: Source and target tokens of this rank's micro-batches, without padding.
        num_padded_tokens: The same with padding.
        num_passes: Micro-batches of the rank that has most; `trainer.sharding` makes so many passes on each.
    """

    step: int
    epoch: int
    num_target_tokens: int
    num_source_tokens: int
    num_examples: int
    micro_batches: list[MicroBatch]
    num_own_tokens: int = 0
    num_padded_tokens: int = 0
    num_passes: int = 1
