"""Keys and values of the examples that are being decoded.

Self-attention: every token that any beam has read keeps its place; nothing is moved when beams are chosen. Which places
a beam may look at, its own past, is a table of booleans, and that is what is chosen. Cross-attention: once an example.
Both ways the beams of an example are the queries of one attention, so its keys are read once for all of them.

Legend, besides `batch.py`'s: `N` examples, `W` beams of each, `P` places (tokens read, the prompt's too), `D` size of a
head, here with `H` heads.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.nn import functional

BLOCK_PLACES = 32  # room grows by so many
Pairs = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer


@dataclass
class Cache:
    """What the decoder's layers remember of some examples, a list entry a layer."""

    cross: Pairs  # keys and values `[N, H, S, D]`
    cross_mask: torch.Tensor  # `[N, 1, 1, S]`: 0 on the source's tokens, minus infinity elsewhere
    visible: torch.Tensor  # `[N, W, P, W]`: whether a beam descends from what a beam has read at a place
    own: Pairs = field(default_factory=list)  # keys and values `[N, H, P, W, D]`
    _mask: torch.Tensor | None = None  # `[N, 1, W, P * W]` of the current step
    _reading: tuple[torch.Tensor, torch.Tensor] | None = None  # row and place of the token that is being read
    _places: int = 0  # that the longest example has filled, the current one included

    def __len__(self) -> int:
        return len(self.cross_mask)

    def start_step(self, places: torch.Tensor, width: int) -> None:
        """Make room for one more token of each beam.

        Args:
            places: How many tokens each example has read before, `[N]`, on the CPU.
            width: The beams that read one; the first `width` of each example.
        """
        self._places = int(places.max()) + 1
        if self._places > self.visible.shape[2]:
            self._grow(BLOCK_PLACES)
        device = self.visible.device
        rows, at = torch.arange(len(self), device=device), places.to(device, non_blocking=True)
        self._reading = rows, at
        beams = torch.arange(self.visible.shape[1], device=device)
        self.visible[rows[:, None], beams, at[:, None], beams if width > 1 else 0] = True
        seen = self.visible[:, :width, : self._places].flatten(2)[:, None]
        self._mask = torch.zeros(seen.shape, device=device).masked_fill_(~seen, -torch.inf)

    def attend_own(self, layer: int, parts: tuple[torch.Tensor, ...], scale: float) -> torch.Tensor:
        """Store the keys and values of the token that is being read, and attend: `[N, H, W, D]` each, and back."""
        query, key, value = parts
        if self._reading is None or self._mask is None:
            raise RuntimeError("start_step comes first")
        rows, at = self._reading
        width = query.shape[2]
        if layer == len(self.own):
            shape = (len(self), key.shape[1], *self.visible.shape[2:], key.shape[3])
            self.own.append((key.new_zeros(shape), value.new_zeros(shape)))
        found = []
        for stored, new in zip(self.own[layer], (key, value), strict=True):
            stored[rows, :, at, :width] = new
            found.append(stored[:, :, : self._places].flatten(2, 3))
        return attend(query, found[0], found[1], self._mask, scale)

    def attend_source(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        """Attend to the source with all beams of an example: `[N, H, W, D]`, and back."""
        return attend(query, *self.cross[layer], self.cross_mask, scale)

    def choose(self, parents: torch.Tensor) -> None:
        """Let each beam go on from another one, `[N, W]`."""
        shape = (*parents.shape, *self.visible.shape[2:])
        self.visible = self.visible.gather(1, parents[:, :, None, None].expand(shape))

    def take(self, rows: torch.Tensor) -> "Cache":
        """Keep some examples, without the tail of the sources that none of them needs; this cache is used up."""
        mask = self.cross_mask[rows]
        longest = int((mask == 0).sum(-1).max())
        cross = [(key[rows, :, :longest], value[rows, :, :longest]) for key, value in _emptied(self.cross)]
        own = [(key[rows], value[rows]) for key, value in _emptied(self.own)]
        return Cache(cross, mask[..., :longest], self.visible[rows], own)

    def join(self, other: "Cache") -> "Cache":
        """Put the examples of another cache behind these; both caches are used up."""
        mask = _behind(self.cross_mask, other.cross_mask, 3, -torch.inf)
        visible = _behind(self.visible, other.visible, 2)
        return Cache(_pairs_behind(self.cross, other.cross), mask, visible, _pairs_behind(self.own, other.own))

    def _grow(self, places: int) -> None:
        self.visible = _padded(self.visible, 2, self.visible.shape[2] + places)
        room = self.visible.shape[2]
        self.own = [(_padded(key, 2, room), _padded(value, 2, room)) for key, value in self.own]


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attend with the library's kernel; the mask is one for all queries or one each."""
    mask = mask.expand(-1, -1, query.shape[2], -1).to(query.dtype)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def _pairs_behind(mine: Pairs, theirs: Pairs) -> Pairs:
    both = zip(_emptied(mine), _emptied(theirs), strict=True)
    return [(_behind(k, k2, 2), _behind(v, v2, 2)) for (k, v), (k2, v2) in both]


def _emptied(pairs: Pairs) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield what a list holds and let go of it: two copies of one layer are in memory, not of all."""
    while pairs:
        yield pairs.pop(0)


def _behind(mine: torch.Tensor, theirs: torch.Tensor, dim: int, fill: float = 0) -> torch.Tensor:
    size = max(mine.shape[dim], theirs.shape[dim])
    return torch.cat([_padded(mine, dim, size, fill), _padded(theirs, dim, size, fill)])


def _padded(values: torch.Tensor, dim: int, size: int, fill: float = 0) -> torch.Tensor:
    missing = size - values.shape[dim]
    if not missing:
        return values
    shape = list(values.shape)
    shape[dim] = missing
    return torch.cat([values, values.new_full(shape, fill)], dim)
