"""Attention over packed tokens with dropout, forward and backward, a few examples of similar length at a time.

One example's products are too small for a processor, and a whole batch padded is too large: neighbours (micro-batches
are sorted by length) are padded to a group whose products are done at once. With a backward pass of its own no graph of
small operations is walked.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from encdec_train.modeling.dropout import keep_mask

_MOST_EXAMPLES, _MOST_PRODUCTS = 8, 24_576  # of a group; products a head: with 12 heads they stay in the cache
_MOST_PADDING = 1.3  # padded products to real ones


@dataclass(frozen=True)
class _Side:
    """Where the tokens of a group are.

    Attributes:
        tokens: Of the packed row.
        places: Of the tokens in the padded group; None where there is no padding.
        size: Examples, and tokens of the longest.
    """

    tokens: slice
    places: torch.Tensor | None
    size: tuple[int, int]

    def pad(self, packed: torch.Tensor, num_heads: int) -> torch.Tensor:
        """Take a group's tokens from `[tokens, heads x size]`; `[examples x heads, longest, size]`."""
        rows = packed[self.tokens]
        if self.places is not None:
            rows = rows.new_zeros(math.prod(self.size), rows.shape[1]).index_copy_(0, self.places, rows)
        split = rows.reshape(*self.size, num_heads, rows.shape[1] // num_heads)
        return split.transpose(1, 2).flatten(0, 1)

    def unpad(self, packed: torch.Tensor, padded: torch.Tensor, num_heads: int) -> None:
        """Write a group's tokens back, in place."""
        rows = padded.unflatten(0, (-1, num_heads)).transpose(1, 2).reshape(-1, packed.shape[1])
        packed[self.tokens] = rows if self.places is None else rows.index_select(0, self.places)


@dataclass(frozen=True)
class _Group:
    queries: _Side
    keys: _Side
    bias: torch.Tensor  # `[examples, 1, queries, keys]`: what is not seen is minus infinity


def attend(
    heads: Sequence[torch.Tensor], layout: tuple[tuple[int, ...], tuple[int, ...], bool], scale: float, rate: float
) -> torch.Tensor:
    """Attend within each example, with dropout on the weights.

    Args:
        heads: Queries, keys and values, `[1, heads, tokens, size]`, the examples one after the other.
        layout: Tokens of each example's queries and of its keys, and whether order is causal.
        scale: Of the products.
        rate: Of the dropout.

    Returns:
        `[1, tokens, heads, size]`.
    """
    found: torch.Tensor = _Attend.apply(*heads, layout, scale, rate)  # type: ignore[no-untyped-call]
    return found


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:  # noqa: ANN401
        *heads, layout, scale, rate = inputs
        _, num_heads, tokens, size = heads[0].shape
        query, key, value = (_rows(each) for each in heads)
        wide = torch.promote_types(query.dtype, torch.float32)
        out, saved = torch.empty_like(query), []
        for group in _groups(*layout):
            q, k, v = (
                group.queries.pad(query, num_heads),
                group.keys.pad(key, num_heads),
                group.keys.pad(value, num_heads),
            )
            scores = torch.bmm(q, k.transpose(1, 2)).unflatten(0, (-1, num_heads)).to(wide)
            weights = torch.add(group.bias, scores, alpha=scale).softmax(-1).to(q.dtype).flatten(0, 1)
            keep, factor = keep_mask(weights.shape, rate, weights.dtype)
            group.queries.unpad(out, torch.bmm(weights * keep, v).mul_(factor), num_heads)
            saved += [q, k, v, weights, keep]
        ctx.save_for_backward(*saved)
        ctx.layout, ctx.scale, ctx.factor = layout, scale, factor
        ctx.rows = query.shape, key.shape
        return out.view(1, tokens, num_heads, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        (of_queries, of_keys), saved = ctx.rows, ctx.saved_tensors
        num_heads = grad.shape[2]
        grad_rows = grad.reshape(of_queries)
        d_query, d_key, d_value = (grad_rows.new_empty(shape) for shape in (of_queries, of_keys, of_keys))
        for index, group in enumerate(_groups(*ctx.layout)):
            q, k, v, weights, keep = saved[5 * index : 5 * index + 5]
            d_out = group.queries.pad(grad_rows, num_heads)  # perhaps a view of what others read too
            d_v = torch.bmm((weights * keep).transpose(1, 2), d_out).mul_(ctx.factor)
            group.keys.unpad(d_value, d_v, num_heads)
            d_weights = torch.bmm(d_out, v.transpose(1, 2)).mul_(keep)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype).mul_(ctx.scale * ctx.factor)
            group.queries.unpad(d_query, torch.bmm(d_scores, k), num_heads)
            group.keys.unpad(d_key, torch.bmm(d_scores.transpose(1, 2), q), num_heads)
        split = (each.view(1, len(each), num_heads, -1).transpose(1, 2) for each in (d_query, d_key, d_value))
        return (*split, None, None, None)


def _rows(heads: torch.Tensor) -> torch.Tensor:
    """Put the heads of a token side by side: `[1, heads, tokens, size]` to `[tokens, heads x size]`."""
    return heads[0].transpose(0, 1).flatten(1)


@lru_cache(maxsize=12)  # three layouts a micro-batch, each for every layer, forward and backward
def _groups(queries: tuple[int, ...], keys: tuple[int, ...], causal: bool) -> list[_Group]:
    groups, first, real = [], 0, 0
    for last, (num_queries, num_keys) in enumerate(zip(queries, keys, strict=True)):
        most = max(queries[first : last + 1]) * max(keys[first : last + 1]) * (last + 1 - first)
        real += num_queries * num_keys
        if last > first and (last - first == _MOST_EXAMPLES or most > _MOST_PRODUCTS or most > _MOST_PADDING * real):
            groups.append(_group(queries, keys, slice(first, last), causal))
            first, real = last, num_queries * num_keys
    return [*groups, _group(queries, keys, slice(first, len(queries)), causal)]


def _group(queries: tuple[int, ...], keys: tuple[int, ...], members: slice, causal: bool) -> _Group:
    of_queries, of_keys = _side(queries, members), _side(keys, members)
    seen = torch.arange(of_keys.size[1]) < torch.tensor(keys[members])[:, None]
    bias = torch.zeros(len(seen), 1, of_queries.size[1], of_keys.size[1])
    bias.masked_fill_(~seen[:, None, None], float("-inf"))
    if causal:
        bias.masked_fill_(torch.ones(bias.shape[2:], dtype=torch.bool).triu(1), float("-inf"))
    return _Group(of_queries, of_keys, bias)


def _side(lengths: tuple[int, ...], members: slice) -> _Side:
    own, start = lengths[members], sum(lengths[: members.start])
    size, tokens = (len(own), max(own)), slice(start, start + sum(own))
    if min(own) == max(own):
        return _Side(tokens, None, size)
    return _Side(tokens, torch.cat([torch.arange(n) + i * size[1] for i, n in enumerate(own)]), size)
