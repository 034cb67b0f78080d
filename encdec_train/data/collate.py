"""From token lists to a padded micro-batch."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from encdec_train.batch import MicroBatch

Tokens = Sequence[int] | npt.NDArray[np.integer]


def pad_right(rows: Sequence[Tokens], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad token lists to the longest.

    Returns:
        Ids `[rows, longest]` and a mask that is True on tokens; the mask comes from lengths, so a pad id inside a text
        is a token like any other (known_defects D10).
    """
    lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    mask = np.arange(max(int(lengths.max(initial=0)), 1))[None, :] < lengths[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    if lengths.any():
        ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return torch.from_numpy(ids), torch.from_numpy(mask)


def collate(
    sources: Sequence[Tokens], targets: Sequence[Tokens], start_id: int, pad_ids: tuple[int, int]
) -> MicroBatch:
    """Make one micro-batch.

    Args:
        sources: Encoder tokens of each example, special tokens included.
        targets: `tokens + eos` of each example; may be empty, then the example has no weight in the loss.
        start_id: What decoding starts from; decoder inputs are `start + tokens` (known_defects D13).
        pad_ids: Of the source and of the target vocabulary; masked, so their value never matters.
    """
    source_ids, source_mask = pad_right(sources, pad_ids[0])
    labels, target_mask = pad_right(targets, pad_ids[1])
    start = torch.full((len(sources), 1), start_id, dtype=torch.int64)
    decoder_ids = torch.cat([start, labels[:, :-1]], dim=1)
    return MicroBatch(source_ids, source_mask, decoder_ids, target_mask, labels[target_mask])
