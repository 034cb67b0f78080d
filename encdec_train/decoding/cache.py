"""Keys and values of the examples that are being decoded.

Self-attention: what a beam has read stays where it was written; nothing is moved when beams are chosen. Which places a
beam may look at, its own past, is a table of booleans, and that is what is chosen. Beams soon have most of their past
in common, and a place from which no beam descends any more is written to again: an example fills little more than the
tokens of one beam. Cross-attention: once an example. Both ways the beams of an example are the queries of one
attention, so its keys are read once for all of them.

Legend, besides `batch.py`'s: `N` examples, `W` beams of each, `P` places (of a token that a beam has read, the prompt's
too), `D` size of a head, here with `H` heads.
"""

from dataclasses import dataclass, field

import torch
from torch.nn import functional

BLOCK_PLACES = 32  # room grows by so many


@dataclass
class Cache:
    """What the decoder's layers remember of some examples, a list entry a layer."""

    cross: list[torch.Tensor]  # keys and values `[N, S, 2, H, D]`
    cross_mask: torch.Tensor  # `[N, 1, 1, S]`: 0 on the source's tokens, minus infinity elsewhere
    visible: torch.Tensor  # `[N, W, P]`: whether a beam descends from what was read at a place
    own: list[torch.Tensor] = field(default_factory=list)  # keys and values `[N, P, 2, H, D]`
    _mask: torch.Tensor | None = None  # `[N, 1, W, P]` of the current step
    _reading: tuple[torch.Tensor, torch.Tensor] | None = None  # rows and places of the tokens that are being read
    _places: int = 0  # the first so many hold all that is visible

    def __len__(self) -> int:
        return len(self.cross_mask)

    def start_step(self, width: int) -> None:
        """Find a place for one more token of each beam.

        Args:
            width: The beams that read one; the first `width` of each example. A single one reads for all.
        """
        within = self._places + width
        if within > self.visible.shape[2]:
            self._grow(max(within, self.visible.shape[2] + BLOCK_PLACES))
        taken = self.visible[:, :, :within].any(1)
        free = taken.byte().sort(dim=1, stable=True).indices[:, :width]  # the first ones, so that few are looked at
        device = self.visible.device
        rows, beams = (torch.arange(count, device=device) for count in self.visible.shape[:2])
        self.visible[rows[:, None], beams, free] = True
        in_use = self.visible[:, :, :within].flatten(0, 1).any(0)
        self._places = int((in_use * torch.arange(1, within + 1, device=device)).max())  # waits, with nothing queued
        self._reading = rows[:, None], free
        seen = self.visible[:, None, :width, : self._places]
        self._mask = torch.zeros(seen.shape, device=device).masked_fill_(~seen, -torch.inf)

    def attend_own(self, layer: int, parts: torch.Tensor, scale: float) -> torch.Tensor:
        """Store the keys and values of the tokens that are being read, and attend.

        Args:
            layer: Its number.
            parts: Queries, keys and values, `[N, W, 3, H, D]`.
            scale: Of the scores.

        Returns:
            `[N, W, H * D]`.
        """
        if self._reading is None or self._mask is None:
            raise RuntimeError("start_step comes first")
        if layer == len(self.own):
            self.own.append(parts.new_zeros(len(self), self.visible.shape[2], 2, *parts.shape[3:]))
        self.own[layer][self._reading] = parts[:, :, 1:]
        return attend(parts[:, :, 0], self.own[layer][:, : self._places], self._mask, scale)

    def attend_source(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        """Attend to the source with all beams of an example: from `[N, W, H, D]` to `[N, W, H * D]`."""
        return attend(query, self.cross[layer], self.cross_mask, scale)

    def choose(self, parents: torch.Tensor) -> None:
        """Let each beam go on from another one, `[N, W]`."""
        self.visible = self.visible.gather(1, parents[:, :, None].expand(-1, -1, self.visible.shape[2]))

    def forget(self, row: int) -> None:
        """Let an example's places be written to again: it has finished."""
        self.visible[row] = False

    def take(self, rows: torch.Tensor) -> "Cache":
        """Copy some examples."""
        cross, own = ([pairs[rows] for pairs in layers] for layers in (self.cross, self.own))
        return Cache(cross, self.cross_mask[rows], self.visible[rows], own, _places=self._places)

    def put(self, rows: torch.Tensor, other: "Cache") -> None:
        """Write other examples over some of these."""
        sources, places = other.cross_mask.shape[3], other.visible.shape[2]
        self._widen(sources)
        if places > self.visible.shape[2]:
            self._grow(places)
        self.cross_mask[rows] = padded(other.cross_mask, 3, self.cross_mask.shape[3], -torch.inf)
        self.visible[rows] = padded(other.visible, 2, self.visible.shape[2])
        self._places = max(self._places, other._places)
        for mine, theirs in zip(self.cross, other.cross, strict=True):
            mine[rows, :sources] = theirs
        for mine, theirs in zip(self.own, other.own, strict=False):  # none yet where the prompt is one token
            mine[rows, :places] = theirs

    def extend(self, num: int) -> None:
        """Make room for more examples, which `put` brings."""
        self.cross, self.own = ([padded(pairs, 0, num) for pairs in layers] for layers in (self.cross, self.own))
        self.cross_mask, self.visible = padded(self.cross_mask, 0, num), padded(self.visible, 0, num)

    def cut(self, num: int) -> None:
        """Keep the first so many examples, without the tail of the sources that none of them needs."""
        self.cross_mask, self.visible = self.cross_mask[:num], self.visible[:num]
        longest = int((self.cross_mask == 0).sum(-1).max())
        self.cross_mask = self.cross_mask[..., :longest]
        self.cross = [pairs[:num, :longest] for pairs in self.cross]
        self.own = [pairs[:num] for pairs in self.own]

    def _widen(self, sources: int) -> None:
        if sources > self.cross_mask.shape[3]:
            self.cross_mask = padded(self.cross_mask, 3, sources, -torch.inf)
            self.cross = [padded(pairs, 1, sources) for pairs in self.cross]

    def _grow(self, places: int) -> None:
        self.visible = padded(self.visible, 2, places)
        for layer, pairs in enumerate(self.own):  # one at a time: two copies of one layer are in memory, not of all
            self.own[layer] = padded(pairs, 1, places)


def attend(query: torch.Tensor, pairs: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """Attend with the library's kernel, `[N, W, H, D]` to `[N, P, 2, H, D]`; one mask for all queries, or one each."""
    key, value = (part.transpose(1, 2) for part in pairs.unbind(2))
    mask = mask.expand(-1, -1, query.shape[1], -1).to(query.dtype)
    found = functional.scaled_dot_product_attention(query.transpose(1, 2), key, value, attn_mask=mask, scale=scale)
    return found.transpose(1, 2).flatten(2)


def padded(values: torch.Tensor, dim: int, size: int, fill: float = 0) -> torch.Tensor:
    """Make a dimension larger."""
    missing = size - values.shape[dim]
    if not missing:
        return values
    shape = list(values.shape)
    shape[dim] = missing
    return torch.cat([values, values.new_full(shape, fill)], dim)
