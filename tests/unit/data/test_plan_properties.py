"""What holds for any lengths, batch size, seed, budget and number of ranks."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from encdec_train.config import LastBatch, Order
from encdec_train.data.plan import BatchSize, Plan, plan_epoch, split_batch

Ranks = list[list[Any]]

pairs = st.one_of(st.tuples(st.integers(0, 40), st.integers(0, 40)), st.tuples(st.integers(0, 400), st.integers(0, 4)))
lengths_of = st.lists(pairs, min_size=1, max_size=60)
orders, lasts = st.sampled_from(Order), st.sampled_from(LastBatch)
by_examples = st.builds(BatchSize, st.integers(1, 25), st.none(), orders, lasts)
by_tokens = st.builds(BatchSize, st.none(), st.integers(1, 150), orders, lasts)
sizes = st.one_of(by_examples, by_tokens)
seeds, epochs = st.integers(0, 2**32 - 1), st.integers(0, 1000)
budgets, nums_ranks = st.integers(1, 600), st.integers(1, 9)
checked = settings(max_examples=200, deadline=None, derandomize=True)


def flat(arrays: Any) -> list[int]:
    return [int(index) for array in arrays for index in array]


def padded(tokens: np.ndarray, micro: Any) -> int:
    return len(micro) * (max(tokens[i][0] for i in micro) + max(tokens[i][1] for i in micro))


def splits(lengths: Any, budget: int, num_ranks: int) -> tuple[Ranks, list[list[int]], list[int]]:
    """Split all examples as one batch; return the ranks', and all micro-batches with the longest first, and costs."""
    ranks = split_batch(np.arange(len(lengths)), lengths, budget, num_ranks)
    micros = [micro.tolist() for rank in ranks for micro in rank]
    micros.sort(key=lambda micro: [(-max(lengths[i]), -min(lengths[i]), -i) for i in micro])
    return ranks, micros, [padded(lengths, micro) for micro in micros]


@checked
@given(lengths_of, sizes, seeds, epochs)
def test_every_example_comes_once_an_epoch(lengths: Any, size: BatchSize, seed: int, epoch: int) -> None:
    batches = plan_epoch(lengths, seed, epoch, size)
    seen = flat(batches)
    assert len(seen) == len(set(seen))
    assert all(len(batch) for batch in batches)
    left = sorted(set(range(len(lengths))) - set(seen))
    if size.last is LastBatch.ragged:
        assert left == []
    elif size.examples is not None:
        assert len(left) == len(lengths) % size.examples
    else:
        targets = [target for _, target in lengths]
        assert not left or sum(targets[i] for i in left) + max(targets) <= size.target_tokens


@checked
@given(lengths_of, by_examples, seeds)
def test_batches_of_examples_have_so_many(lengths: Any, size: BatchSize, seed: int) -> None:
    counts = sorted(len(batch) for batch in plan_epoch(lengths, seed, 0, size))
    assert counts[1:] == [size.examples] * (len(counts) - 1)
    assert not counts or counts[0] == size.examples or size.last is LastBatch.ragged


@checked
@given(lengths_of, by_tokens, seeds)
def test_batches_of_target_tokens_have_no_more_and_no_room(lengths: Any, size: BatchSize, seed: int) -> None:
    targets = [target for _, target in lengths]
    batches = plan_epoch(lengths, seed, 0, size)
    sums = [sum(targets[i] for i in batch) for batch in batches]
    assert all(held <= size.target_tokens or len(batch) == 1 for held, batch in zip(sums, batches, strict=True))
    short = [held for held in sums if held + max(targets) <= size.target_tokens]
    assert len(short) <= (size.last is LastBatch.ragged)
    if size.order is Order.random:
        for held, following in zip(sums, batches[1:], strict=False):  # one more would not have fitted
            assert held + targets[following[0]] > size.target_tokens


@checked
@given(lengths_of, sizes, seeds, budgets, nums_ranks)
def test_ranks_together_have_the_global_batch(
    lengths: Any, size: BatchSize, seed: int, budget: int, num_ranks: int
) -> None:
    """Neither ranks nor budget are arguments of the plan; any number of them shares out the same batch."""
    for batch in plan_epoch(lengths, seed, 0, size):
        ranks = split_batch(batch, lengths, budget, num_ranks)
        assert len(ranks) == num_ranks
        assert sorted(flat(micro for rank in ranks for micro in rank)) == sorted(batch.tolist())


@checked
@given(lengths_of, budgets, nums_ranks)
def test_micro_batches_are_within_the_budget(lengths: Any, budget: int, num_ranks: int) -> None:
    _, micros, costs = splits(lengths, budget, num_ranks)
    assert all(cost <= budget or len(micro) == 1 for cost, micro in zip(costs, micros, strict=True))


@checked
@given(lengths_of, budgets, nums_ranks)
def test_micro_batches_are_sorted_by_length(lengths: Any, budget: int, num_ranks: int) -> None:
    """One after the other they are the batch sorted by the longer side, then by the shorter."""
    _, micros, _ = splits(lengths, budget, num_ranks)
    found = [(max(lengths[i]), min(lengths[i])) for i in flat(micros)]
    assert found == sorted(found, reverse=True)


@checked
@given(lengths_of, budgets)
def test_one_rank_fills_its_micro_batches(lengths: Any, budget: int) -> None:
    _, micros, _ = splits(lengths, budget, 1)
    for micro, following in zip(micros, micros[1:], strict=False):
        assert padded(lengths, [*micro, following[0]]) > budget


@checked
@given(lengths_of, budgets, nums_ranks)
def test_ranks_are_dealt_about_equal_work(lengths: Any, budget: int, num_ranks: int) -> None:
    """Graham's bound for dealing to the least loaded: (1 - 1 / ranks) of a micro-batch above an equal share."""
    ranks, micros, costs = splits(lengths, budget, num_ranks)
    loads = [sum(padded(lengths, micro) for micro in rank) for rank in ranks]
    assert max(loads) * num_ranks <= sum(costs) + (num_ranks - 1) * max(costs)
    alone = len(splits(lengths, budget, 1)[1])
    assert len(micros) <= -(-alone // num_ranks) * num_ranks
    for rank in ranks:
        found = [padded(lengths, micro) for micro in rank]
        assert found == sorted(found, reverse=True)


@checked
@given(lengths_of, by_examples | by_tokens, seeds, nums_ranks, st.integers(1, 4))
def test_every_rank_makes_the_same_steps(
    lengths: Any, size: BatchSize, seed: int, num_ranks: int, num_epochs: int
) -> None:
    """Each rank plans for itself; whatever step one of them starts at, all find the same batch and as many steps."""
    if not plan_epoch(lengths, seed, 0, size):
        return
    expected = [(epoch, batch) for epoch in range(num_epochs) for batch in plan_epoch(lengths, seed, epoch, size)]
    for rank in range(num_ranks):
        plan = Plan(lengths, seed, size)
        start = 1 + rank * len(expected) // num_ranks
        for step in range(start, len(expected) + 1):
            epoch, batch = plan.batch(step)
            assert (epoch, batch.tolist()) == (expected[step - 1][0], expected[step - 1][1].tolist())
        assert plan.num_steps(num_epochs) == len(expected)
