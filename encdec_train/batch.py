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
    """

    step: int
    epoch: int
    num_target_tokens: int
    num_source_tokens: int
    num_examples: int
    micro_batches: list[MicroBatch]
    num_own_tokens: int = 0
    num_padded_tokens: int = 0
