"""The plan: which examples each optimizer step sees, and how a step is cut into micro-batches.

Two pure functions of lengths. `plan_epoch` makes global batches, which depend on nothing but lengths, seed, epoch and
batch config; `split_batch` cuts one global batch for a number of ranks and a token budget. So the optimisation is the
same on any number of devices, and the position in the data is one integer: the step.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encdec_train.config import LastBatch, Order
from encdec_train.errors import ConfigError, fault

Ints = npt.NDArray[np.int64]
POOL_BATCHES = 64  # length_pooled: sorted within pools of so many global batches; not studied


@dataclass(frozen=True)
class BatchSize:
    """The size of a global batch: examples or target tokens, exactly one of them."""

    examples: int | None
    target_tokens: int | None
    order: Order = Order.random
    last: LastBatch = LastBatch.ragged


def plan_epoch(lengths: npt.ArrayLike, seed: int, epoch: int, size: BatchSize) -> list[Ints]:
    """Draw the global batches of one epoch.

    Args:
        lengths: `[num_examples, 2]` source and target tokens.
        seed: The run's seed.
        epoch: Counted from 0.
        size: What a global batch holds.

    Returns:
        For each step of the epoch its examples' indices; every example once, except those that `last=drop` leaves.
    """
    tokens = np.asarray(lengths, dtype=np.int64).reshape(-1, 2)
    order = _permutation(len(tokens), seed, epoch, stream=0)
    if size.order is Order.length_pooled:
        order = _pool(order, tokens, size)
    batches = _cut(order, tokens[:, 1], size)
    if batches and size.last is LastBatch.drop and _is_short(batches[-1], tokens[:, 1], size):
        batches.pop()
    if size.order is Order.length_pooled:
        batches = [batches[i] for i in _permutation(len(batches), seed, epoch, stream=1)]
    return batches


def split_batch(batch: Ints, lengths: npt.ArrayLike, max_tokens: int, num_ranks: int) -> list[list[Ints]]:
    """Cut one global batch into each rank's micro-batches.

    Examples are sorted by target and source length, cut where the padded size (rows x (longest source + longest
    target)) would pass the budget, and dealt to the rank with the least work, the largest first.

    Args:
        batch: Indices of the global batch's examples.
        lengths: `[num_examples, 2]` source and target tokens of the whole data set.
        max_tokens: Source + target tokens of a micro-batch, padding counted. A larger example travels alone.
        num_ranks: How many ranks share the batch.

    Returns:
        `[rank][micro-batch]` arrays of indices; a rank's list may be empty.
    """
    tokens = np.asarray(lengths, dtype=np.int64).reshape(-1, 2)[batch]
    by_length = np.lexsort((batch, tokens[:, 0], tokens[:, 1]))[::-1]
    cost = tokens.sum(axis=1)
    fair_share = -(-int(cost.sum()) // num_ranks)
    budget = min(max_tokens, max(fair_share, int(cost.max(initial=1)))) if num_ranks > 1 else max_tokens
    cuts, costs = _micro_batches(by_length, tokens, budget)
    ranks: list[list[Ints]] = [[] for _ in range(num_ranks)]
    load = [0] * num_ranks
    for micro in sorted(range(len(cuts)), key=lambda i: (-costs[i], i)):
        lightest = load.index(min(load))
        ranks[lightest].append(batch[cuts[micro]])
        load[lightest] += costs[micro]
    return ranks


class Plan:
    """The whole run's global batches by step, epochs planned when they are reached.

    Args:
        lengths: `[num_examples, 2]` source and target tokens.
        seed: The run's seed.
        size: What a global batch holds.

    Raises:
        ConfigError: When an epoch would hold no batch at all.
    """

    def __init__(self, lengths: npt.ArrayLike, seed: int, size: BatchSize) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64).reshape(-1, 2)
        self._seed, self._size = seed, size
        self._starts = [0]  # steps before epoch i
        self._epoch = (-1, list[Ints]())
        if not len(self.lengths):
            raise ConfigError(fault("task.train_file", "at least one pair to train on", None))
        if not self._batches(0):
            reason = f"{len(self.lengths)} examples do not fill one batch"
            raise ConfigError(fault("data.last_batch", "ragged", size.last.value, reason))

    def num_steps(self, epochs: int) -> int:
        """Count the steps of the first `epochs` epochs."""
        while len(self._starts) <= epochs:
            self._starts.append(self._starts[-1] + len(self._batches(len(self._starts) - 1)))
        return self._starts[epochs]

    def batch(self, step: int) -> tuple[int, Ints]:
        """Return epoch and example indices of a step counted from 1."""
        epoch = 0
        while self.num_steps(epoch + 1) < step:
            epoch += 1
        return epoch, self._batches(epoch)[step - 1 - self._starts[epoch]]

    def _batches(self, epoch: int) -> list[Ints]:
        if self._epoch[0] != epoch:
            self._epoch = (epoch, plan_epoch(self.lengths, self._seed, epoch, self._size))
        return self._epoch[1]


def _permutation(n: int, seed: int, epoch: int, stream: int) -> Ints:
    """Shuffle 0..n-1 by raw Philox bits, whose stream numpy guarantees over versions and platforms (NEP 19)."""
    bits = np.random.Philox(key=[seed, (epoch << 8) | stream]).random_raw(n)
    return np.argsort(bits, kind="stable").astype(np.int64)


def _pool(order: Ints, tokens: Ints, size: BatchSize) -> Ints:
    mean_target = max(float(tokens[:, 1].mean()) if len(tokens) else 1.0, 1.0)
    batch = size.examples if size.examples is not None else max(int((size.target_tokens or 1) / mean_target), 1)
    pools = [order[i : i + batch * POOL_BATCHES] for i in range(0, len(order), batch * POOL_BATCHES)]
    return np.concatenate([pool[np.lexsort((tokens[pool, 0], tokens[pool, 1]))] for pool in pools] or [order])


def _cut(order: Ints, targets: Ints, size: BatchSize) -> list[Ints]:
    if size.examples is not None:
        return [order[i : i + size.examples] for i in range(0, len(order), size.examples)]
    limit = size.target_tokens or 1
    ends = np.cumsum(targets[order])
    batches, start = [], 0
    while start < len(order):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + limit, side="right")), start + 1)
        batches.append(order[start:stop])
        start = stop
    return batches


def _is_short(batch: Ints, targets: Ints, size: BatchSize) -> bool:
    if size.examples is not None:
        return len(batch) < size.examples
    return int(targets[batch].sum()) < (size.target_tokens or 1)


def _micro_batches(by_length: Ints, tokens: Ints, budget: int) -> tuple[list[Ints], list[int]]:
    cuts: list[Ints] = []
    costs: list[int] = []
    start, longest, cost = 0, np.zeros(2, dtype=np.int64), 0
    for position, example in enumerate(by_length):
        grown = np.maximum(longest, tokens[example])
        padded = int(grown.sum()) * (position - start + 1)
        if position > start and padded > budget:
            cuts.append(by_length[start:position])
            costs.append(cost)
            start, grown = position, tokens[example]
            padded = int(grown.sum())
        longest, cost = grown, padded
    if start < len(by_length):
        cuts.append(by_length[start:])
        costs.append(cost)
    return cuts, costs
