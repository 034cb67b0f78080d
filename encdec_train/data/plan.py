"""The plan: which examples each optimizer step sees, and how a step is cut into micro-batches.

Two pure functions of lengths. `plan_epoch` makes global batches, which depend on nothing but lengths, seed, epoch and
batch config; `split_batch` cuts one global batch for a number of ranks and a token budget. So the optimisation is the
same on any number of devices, and the position in the data is one integer: the step.
"""

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encdec_train.config import LastBatch, Order
from encdec_train.errors import ConfigError, fault

Ints = npt.NDArray[np.int64]
POOL_BATCHES = 64  # length_pooled: sorted within pools of so many global batches; not studied


@dataclass(frozen=True)
class BatchSize:
    """The size of a global batch: examples or target tokens, exactly one of them.

    An epoch's last batch is short, and left out by `last=drop`, when it has fewer than `examples`, or when the longest
    target of the data set would still have fitted: no batch before an epoch's last one has so much room.
    """

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
        size: What a global batch holds. A target longer than `target_tokens` is a batch of its own.

    Returns:
        For each step of the epoch its examples' indices; every example once, except those that `last=drop` leaves.
    """
    order, bounds = _draw(np.asarray(lengths, dtype=np.int64).reshape(-1, 2), seed, epoch, size)
    return [order[start:stop] for start, stop in bounds.tolist()]


def split_batch(batch: Ints, lengths: npt.ArrayLike, max_tokens: int, num_ranks: int) -> list[list[Ints]]:
    """Cut one global batch into each rank's micro-batches.

    Examples are sorted by length, the longest first, cut where the padded size (rows x (longest source + longest
    target)) would pass the budget, and dealt, the largest micro-batch first, to the rank with the least work.

    Args:
        batch: Indices of the global batch's examples.
        lengths: `[num_examples, 2]` source and target tokens of the whole data set.
        max_tokens: Source + target tokens of a micro-batch, padding counted. A larger example travels alone.
        num_ranks: How many ranks share the batch.

    Returns:
        `[rank][micro-batch]` arrays of indices; a rank's list may be empty. No rank has more padded tokens than an
        equal share and one micro-batch.
    """
    tokens = np.asarray(lengths).reshape(-1, 2)[batch].astype(np.int64)
    by_length = _by_length(tokens)[::-1]
    ranks: list[list[Ints]] = [[] for _ in range(num_ranks)]
    load = [0] * num_ranks
    for cost, micro in sorted(_micro_batches(tokens[by_length], max_tokens, num_ranks), key=lambda each: -each[0]):
        lightest = load.index(min(load))
        ranks[lightest].append(batch[by_length[micro]])
        load[lightest] += cost
    return ranks


class Plan:
    """The whole run's global batches by step. One epoch's order is held: 8 bytes an example, 24 while it is drawn.

    Batches of `examples` make epochs of equal length: any step is found by planning its epoch alone. Where a batch
    begins that is cut by `target_tokens` depends on what came before, so the epochs before it are planned once too.

    Args:
        lengths: `[num_examples, 2]` source and target tokens.
        seed: The run's seed.
        size: What a global batch holds.

    Raises:
        ConfigError: When an epoch would hold no batch at all.
    """

    def __init__(self, lengths: npt.ArrayLike, seed: int, size: BatchSize) -> None:
        self.lengths = np.asarray(lengths).reshape(-1, 2)  # as it is: it may be mapped from a file
        self._seed, self._size = seed, size
        self._starts = [0]  # steps before epoch i
        self._drawn: dict[int, tuple[Ints, Ints]] = {}
        if not len(self.lengths):
            raise ConfigError(fault("task.train_file", "at least one pair to train on", None))
        if not self.num_steps(1):
            reason = f"{len(self.lengths)} examples do not fill one batch"
            raise ConfigError(fault("data.last_batch", "ragged", size.last.value, reason))

    def num_steps(self, epochs: int) -> int:
        """Count the steps of the first `epochs` epochs."""
        while (epoch := len(self._starts) - 1) < epochs:
            equal = epoch > 0 and self._size.examples is not None
            self._starts.append(self._starts[-1] + (self._starts[1] if equal else len(self._epoch(epoch)[1])))
        return self._starts[epochs]

    def batch(self, step: int) -> tuple[int, Ints]:
        """Return epoch and example indices of a step counted from 1."""
        while self._starts[-1] < step:
            self.num_steps(len(self._starts))
        epoch = bisect_left(self._starts, step) - 1
        order, bounds = self._epoch(epoch)
        start, stop = bounds[step - 1 - self._starts[epoch]]
        return epoch, order[start:stop]

    def _epoch(self, epoch: int) -> tuple[Ints, Ints]:
        if epoch not in self._drawn:
            self._drawn.clear()
            self._drawn[epoch] = _draw(self.lengths, self._seed, epoch, self._size)
        return self._drawn[epoch]


def _draw(tokens: Ints, seed: int, epoch: int, size: BatchSize) -> tuple[Ints, Ints]:
    """Return one epoch's examples in order, and where each step's batch begins and ends in it, `[steps, 2]`."""
    order = _permutation(len(tokens), seed, epoch, stream=0)
    if size.order is Order.length_pooled:
        _pool(order, tokens, size)
    ends = _batch_ends(order, tokens[:, 1], size)
    bounds = np.stack([np.append(0, ends)[:-1], ends], axis=1)
    if size.order is Order.length_pooled:
        bounds = bounds[_permutation(len(bounds), seed, epoch, stream=1)]
    return order, bounds


def _permutation(n: int, seed: int, epoch: int, stream: int) -> Ints:
    """Shuffle 0..n-1 by raw Philox bits, whose stream numpy guarantees over versions and platforms (NEP 19)."""
    keys = np.random.Philox(key=[seed, (epoch << 8) | stream]).random_raw(n)
    low = np.uint64((1 << n.bit_length()) - 1)  # bits for the index: no two keys are equal, so every sort agrees
    keys &= ~low
    keys |= np.arange(n, dtype=np.uint64)
    keys.sort()
    keys &= low
    return keys.view(np.int64)


def _pool(order: Ints, tokens: Ints, size: BatchSize) -> None:
    """Sort each pool by length, in place."""
    batch = size.examples or max((size.target_tokens or 1) * len(tokens) // max(int(tokens[:, 1].sum()), 1), 1)
    small = tokens.astype(np.min_scalar_type(tokens.max(initial=0)))  # measured: one or two bytes sort 35 times as fast
    # What `last=drop` leaves is the end of the last pool: turned by a random number, it is not always the longest.
    turn = int(order[-1]) if len(order) and size.last is LastBatch.drop else 0
    for start in range(0, len(order), batch * POOL_BATCHES):
        pool = order[start : start + batch * POOL_BATCHES]
        pool[:] = np.roll(pool[_by_length(small[pool])], turn if start + len(pool) == len(order) else 0)


def _by_length(tokens: Ints) -> Ints:
    """Sort by the longer of source and target: both then vary little (docs/results/plan.md has other orders)."""
    sources, targets = tokens.T
    return np.lexsort((np.minimum(sources, targets), np.maximum(sources, targets)))


def _batch_ends(order: Ints, targets: Ints, size: BatchSize) -> Ints:
    if size.examples is not None:
        whole = np.arange(size.examples, len(order) + 1, size.examples)
        ragged = len(order) % size.examples and size.last is LastBatch.ragged
        return np.append(whole, len(order)) if ragged else whole
    limit, ends = size.target_tokens or 1, [0]
    sums = np.zeros(len(order) + 1, dtype=np.int64)
    np.cumsum(targets[order], out=sums[1:])
    while ends[-1] < len(order):
        stop = int(np.searchsorted(sums, sums[ends[-1]] + limit, side="right")) - 1
        ends.append(max(stop, ends[-1] + 1))
    if size.last is LastBatch.drop and len(order) and sums[-1] - sums[ends[-2]] + targets.max() <= limit:
        ends.pop()
    return np.array(ends[1:], dtype=np.int64)


def _micro_batches(tokens: Ints, budget: int, num_ranks: int) -> list[tuple[int, slice]]:
    """Cut sorted examples; return each micro-batch's padded tokens, and where it is.

    Several ranks get about equal numbers of about equal ones: the number that the budget needs is rounded up to a
    multiple of the ranks, and the smallest budget (to 1/64) is taken that needs no more.
    """
    pairs = tokens.tolist()
    ends = _fill(pairs, budget)
    most = -(-len(ends) // num_ranks) * num_ranks
    low, high = int(tokens.sum()) // max(most, 1), budget
    while num_ranks > 1 and high - low > max(high // 64, 1):
        middle = (low + high) // 2
        found = _fill(pairs, middle)
        if len(found) <= most:
            ends, high = found, middle
        else:
            low = middle
    bounds = zip([0, *ends], ends, strict=False)
    return [(int(tokens[start:end].max(axis=0).sum()) * (end - start), slice(start, end)) for start, end in bounds]


def _fill(pairs: list[list[int]], budget: int) -> list[int]:
    """Fill one micro-batch after the other; return their ends. In plain integers: numpy is slow on short runs."""
    ends: list[int] = []
    longest_source = longest_target = rows = 0
    for position, (source, target) in enumerate(pairs):
        rows += 1
        if source > longest_source or target > longest_target:
            longest_source, longest_target = max(source, longest_source), max(target, longest_target)
        if rows > 1 and (longest_source + longest_target) * rows > budget:
            ends.append(position)
            longest_source, longest_target, rows = source, target, 1
    return [*ends, len(pairs)] if pairs else []
