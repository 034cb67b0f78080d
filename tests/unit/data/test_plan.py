"""The plan is a pure function: every example once an epoch, budgets kept, nothing of devices in it."""

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encdec_train.config import LastBatch, Order
from encdec_train.data.plan import POOL_BATCHES, BatchSize, Plan, plan_epoch, split_batch
from encdec_train.errors import ConfigError

RAGGED, DROP = LastBatch.ragged, LastBatch.drop
lengths_of = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=60)
sizes = st.one_of(
    st.builds(BatchSize, st.integers(1, 25), st.none(), st.sampled_from(Order), st.sampled_from(LastBatch)),
    st.builds(BatchSize, st.none(), st.integers(1, 150), st.sampled_from(Order), st.sampled_from(LastBatch)),
)
seeds = st.integers(0, 2**32 - 1)


def flat(arrays: list[Any]) -> list[int]:
    return [int(index) for array in arrays for index in array]


def numbered(count: int) -> np.ndarray:
    """Lengths that differ from example to example, without a generator."""
    return np.array([(3 + i * 7 % 11, 2 + i * 5 % 9) for i in range(count)])


@settings(max_examples=150, deadline=None)
@given(lengths_of, sizes, seeds, st.integers(0, 1000))
def test_every_example_comes_once_an_epoch(lengths: Any, size: BatchSize, seed: int, epoch: int) -> None:
    batches = plan_epoch(lengths, seed, epoch, size)
    seen = flat(batches)
    assert len(seen) == len(set(seen))
    assert all(len(batch) for batch in batches)
    targets = np.array(lengths)[:, 1]
    left = sorted(set(range(len(lengths))) - set(seen))
    if size.last is RAGGED:
        assert left == []
    elif size.examples is not None:
        assert len(left) == len(lengths) % size.examples
    else:
        assert targets[left].sum() < size.target_tokens


@settings(max_examples=150, deadline=None)
@given(lengths_of, sizes, seeds)
def test_a_batch_holds_what_it_should(lengths: Any, size: BatchSize, seed: int) -> None:
    batches = plan_epoch(lengths, seed, 0, size)
    targets = np.array(lengths)[:, 1]
    if size.examples is not None:
        counts = sorted(len(batch) for batch in batches)
        assert counts[1:] == [size.examples] * (len(counts) - 1)
        assert not counts or counts[0] <= size.examples
        return
    for batch in batches:
        assert targets[batch].sum() <= size.target_tokens or len(batch) == 1
    if size.order is Order.random:
        for batch, following in zip(batches, batches[1:], strict=False):  # one more would not have fitted
            assert targets[batch].sum() + targets[following[0]] > size.target_tokens


@settings(max_examples=150, deadline=None)
@given(lengths_of, sizes, seeds, st.integers(1, 300), st.integers(1, 9))
def test_ranks_and_budgets_share_out_what_is_planned(
    lengths: Any, size: BatchSize, seed: int, budget: int, num_ranks: int
) -> None:
    tokens = np.array(lengths)
    for batch in plan_epoch(lengths, seed, 0, size):
        ranks = split_batch(batch, lengths, budget, num_ranks)
        assert len(ranks) == num_ranks
        micros = [micro for rank in ranks for micro in rank]
        assert sorted(flat(micros)) == sorted(batch.tolist())
        padded = [int(tokens[micro].max(axis=0).sum()) * len(micro) for micro in micros]
        assert all(cost <= budget or len(micro) == 1 for cost, micro in zip(padded, micros, strict=True))
        loads = [sum(int(tokens[micro].max(axis=0).sum()) * len(micro) for micro in rank) for rank in ranks]
        assert max(loads) <= sum(padded) / num_ranks + max(padded)  # the bound of any greedy dealing


def test_the_plan_is_the_same_everywhere() -> None:
    """The digest was written down once; it must be equal on every machine and with every numpy."""
    digest = hashlib.sha256()
    for order in Order:
        for examples, target_tokens in ((32, None), (None, 200)):
            plan = Plan(numbered(1000), 7, BatchSize(examples, target_tokens, order))
            for step in range(1, plan.num_steps(2) + 1):
                epoch, batch = plan.batch(step)
                digest.update(f"{epoch}:{','.join(map(str, batch.tolist()))};".encode())
    assert digest.hexdigest() == "8127cea840a12c3b2f3fee808c7bfb2984ad4d764d2722baafb0dd4ef22bb7f7"


def test_a_first_epoch_written_out() -> None:
    batches = plan_epoch(numbered(10), 0, 0, BatchSize(4, None))
    assert [batch.tolist() for batch in batches] == [[0, 2, 9, 1], [8, 5, 4, 3], [6, 7]]


def test_seeds_and_epochs_draw_anew() -> None:
    drawn = {
        tuple(flat(plan_epoch(numbered(50), seed, epoch, BatchSize(8, None))))
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(drawn) == 25


def test_a_batch_is_a_fair_sample() -> None:
    """Each example is as likely as any other to be in the first batch."""
    counts = np.zeros(20)
    for seed in range(4000):
        counts[plan_epoch(numbered(20), seed, 0, BatchSize(5, None))[0]] += 1
    assert counts.sum() == 20_000
    assert (abs(counts - 1000) < 5 * np.sqrt(1000 * 0.75)).all()  # 5 sigma


def test_pooled_batches_are_of_one_length_and_in_no_order_of_it() -> None:
    lengths = np.array([(5, 1 + i % 50) for i in range(600)])
    batches = plan_epoch(lengths, 3, 0, BatchSize(20, None, Order.length_pooled))
    assert len(lengths) < 20 * POOL_BATCHES  # a single pool
    longest = [int(lengths[batch, 1].max()) for batch in batches]
    ranges = sorted((int(lengths[batch, 1].min()), int(lengths[batch, 1].max())) for batch in batches)
    assert all(low_end[1] <= high_start[0] for low_end, high_start in zip(ranges, ranges[1:], strict=False))
    assert longest != sorted(longest)


def test_a_pool_reaches_over_64_batches() -> None:
    """Lengths are sorted within pools, not over the whole epoch: one more example makes a second pool."""

    def overlaps(count: int) -> bool:
        lengths = np.array([(5, 1 + i) for i in range(count)])
        batches = plan_epoch(lengths, 3, 0, BatchSize(4, None, Order.length_pooled))
        ranges = sorted((int(lengths[batch, 1].min()), int(lengths[batch, 1].max())) for batch in batches)
        return any(first[1] > second[0] for first, second in zip(ranges, ranges[1:], strict=False))

    assert not overlaps(POOL_BATCHES * 4)
    assert overlaps(POOL_BATCHES * 4 * 2)


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize(("examples", "target_tokens"), [(1, None), (100, None), (None, 1), (None, 1000)])
def test_one_example_makes_one_step(order: Order, examples: int | None, target_tokens: int | None) -> None:
    plan = Plan([(4, 6)], 0, BatchSize(examples, target_tokens, order))
    assert (plan.num_steps(1), plan.num_steps(3)) == (1, 3)
    assert [(epoch, batch.tolist()) for epoch, batch in map(plan.batch, (1, 2, 3))] == [(0, [0]), (1, [0]), (2, [0])]


def test_an_example_beyond_the_budget_travels_alone() -> None:
    lengths = [(50, 50), (2, 2), (2, 2), (30, 1)]
    assert [batch.tolist() for batch in split_batch(np.arange(4), lengths, 10, 1)[0]] == [[0], [3], [2, 1]]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (24, [[0, 2], [4, 3], [1]]),  # 24 tokens hold 2 x (5 + 7), and (5 + 6) x 2 = 22, not 3 x 11
        (23, [[2, 4], [3, 1], [0]]),  # 22, 14 and 12
        (100, [[0, 2, 4, 3, 1]]),
    ],
)
def test_micro_batches_by_hand(budget: int, expected: list[list[int]]) -> None:
    """Sorted by target, then source, the longest first; the costliest micro-batch comes first."""
    lengths = [(5, 7), (3, 2), (4, 7), (5, 2), (1, 6)]
    ranks = split_batch(np.array([0, 1, 2, 3, 4]), lengths, budget, 1)
    assert [micro.tolist() for micro in ranks[0]] == expected


def test_ranks_are_dealt_equal_work() -> None:
    """Costs of 10, 6, 5 and 2 tokens: each goes to the rank that has had the least."""
    ranks = split_batch(np.arange(4), [(5, 5), (3, 3), (3, 2), (1, 1)], 9, 2)
    assert [[micro.tolist() for micro in rank] for rank in ranks] == [[[0], [3]], [[1], [2]]]


def test_ranks_without_examples_get_none() -> None:
    ranks = split_batch(np.array([5, 2]), numbered(8), 1000, 4)
    assert sorted(len(rank) for rank in ranks) == [0, 0, 1, 1]


def test_an_empty_batch_is_split_into_nothing() -> None:
    assert split_batch(np.array([], dtype=np.int64), numbered(3), 10, 2) == [[], []]


@pytest.mark.parametrize("size", [BatchSize(7, None), BatchSize(None, 40), BatchSize(7, None, last=DROP)])
def test_steps_are_the_epochs_one_after_the_other(size: BatchSize) -> None:
    lengths = numbered(30)
    plan = Plan(lengths, 5, size)
    expected = [(epoch, batch.tolist()) for epoch in range(4) for batch in plan_epoch(lengths, 5, epoch, size)]
    assert plan.num_steps(4) == len(expected)
    found = [plan.batch(step) for step in range(1, len(expected) + 1)]
    assert [(epoch, batch.tolist()) for epoch, batch in found] == expected
    backwards = [Plan(lengths, 5, size).batch(step) for step in range(len(expected), 0, -1)]
    assert [(epoch, batch.tolist()) for epoch, batch in backwards] == expected[::-1]


def test_a_batch_larger_than_the_data_is_the_data() -> None:
    assert sorted(Plan(numbered(3), 0, BatchSize(64, None)).batch(1)[1].tolist()) == [0, 1, 2]


def test_a_run_without_examples_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task.train_file: expected at least one pair to train on\.$"):
        Plan([], 0, BatchSize(8, None))


@pytest.mark.parametrize("size", [BatchSize(8, None, last=DROP), BatchSize(None, 1000, last=DROP)])
def test_dropping_every_batch_is_refused(size: BatchSize) -> None:
    with pytest.raises(ConfigError, match=r"data.last_batch: expected ragged, got 'drop'; 3 examples do not fill one"):
        Plan(numbered(3), 0, size)
