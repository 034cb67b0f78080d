"""The examples that are being searched for, and the choices among their candidates.

Legend, besides `cache.py`'s: `T` prompt and new tokens, `K` candidates.
"""

from dataclasses import dataclass
from typing import Any

import torch

from encdec_train.decoding.cache import Cache, padded

_BLOCK = 64  # of the vocabulary; measured: 32 and 128 are slower


@dataclass
class Beams:
    """The examples in hand; a tensor's first dimension is the example."""

    index: list[int]  # the number of each
    steps: torch.Tensor  # new tokens of each, on the CPU
    limits: torch.Tensor  # `[N, 2]`: the fewest and the most, on the CPU
    live: torch.Tensor  # whether it is still searched for, on the CPU
    ids: torch.Tensor  # `[N, W, T]`
    scores: torch.Tensor  # `[N, W]` log-probabilities of `ids`
    done_ids: torch.Tensor  # `[N, W, T]` of finished texts, the best first
    done_scores: torch.Tensor  # `[N, W]`, over the length penalty
    done_length: torch.Tensor  # `[N, W]` new tokens; 0: there is none
    close: torch.Tensor  # `[N]`
    draws: torch.Tensor  # `[N, W, T]` uniform numbers, where tokens are drawn
    over: torch.Tensor  # `[N]`: the step in hand was its last
    broken: torch.Tensor  # `[N]`: its scores are no numbers
    cache: Cache

    def finish(self, row: int) -> None:
        """Count an example out; its row goes on to be computed, where it is out of the way, until another takes it."""
        self.live[row], self.steps[row] = False, 0
        self.cache.forget(row)

    def take(self, rows: torch.Tensor) -> "Beams":
        """Copy some examples; `rows` is on the CPU."""
        there = rows.to(self.ids.device)
        kept: dict[str, Any] = {name: value[_rows(value, rows, there)] for name, value in self._tensors.items()}
        return Beams([self.index[row] for row in rows.tolist()], **kept, cache=self.cache.take(there))

    def put(self, rows: torch.Tensor, other: "Beams") -> None:
        """Write other examples over some of these; `rows` is on the CPU."""
        there = rows.to(self.ids.device)
        for row, index in zip(rows.tolist(), other.index, strict=True):
            self.index[row] = index
        for name, value in self._tensors.items():
            value[_rows(value, rows, there)] = other._tensors[name]
        self.cache.put(there, other.cache)

    def extend(self, num: int) -> None:
        """Make room for more examples at the end, which `put` brings: `num` altogether."""
        self.index += [-1] * (num - len(self.index))
        vars(self).update({name: padded(value, 0, num) for name, value in self._tensors.items()})
        self.cache.extend(num)

    def close_ranks(self, holes: torch.Tensor) -> None:
        """Drop some examples: the last ones take their rows."""
        num = len(self.index) - len(holes)
        tail = [row for row in range(num, len(self.index)) if row not in set(holes.tolist())]
        if tail:
            self.put(holes[: len(tail)], self.take(torch.tensor(tail)))
        self.index = self.index[:num]
        vars(self).update({name: value[:num] for name, value in self._tensors.items()})
        self.cache.cut(num)

    @property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}


def _rows(value: torch.Tensor, rows: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    return there if value.device == there.device else rows


def best(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what `topk` does, for long rows: look only into the blocks that have the largest maxima.

    Returns:
        The `count` largest values of each row, the largest first, and where they stand.
    """
    num = scores.shape[-1] // _BLOCK
    if num <= count:
        return scores.topk(count, -1)
    whole, device = num * _BLOCK, scores.device
    blocks = scores[..., :whole].unflatten(-1, (num, _BLOCK)).amax(-1).topk(count, -1).indices
    within = (blocks[..., None] * _BLOCK + torch.arange(_BLOCK, device=device)).flatten(-2)
    rest = torch.arange(whole, scores.shape[-1], device=device).expand(*scores.shape[:-1], -1)
    places = torch.cat([within, rest], -1)
    values, order = scores.gather(-1, places).topk(count, -1)
    return values, places.gather(-1, order)


def chosen(values: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Gather `[N, W, T]` by `[N, K]` along the beams."""
    return values.gather(1, order[:, :, None].expand(-1, -1, values.shape[2]))
