"""The plan is a pure function: every example once an epoch, budgets kept, nothing of devices in it."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encdec_train.config import LastBatch, Order
from encdec_train.data import plan as module
from encdec_train.data.plan import POOL_BATCHES, BatchSize, Plan, plan_epoch, split_batch
from encdec_train.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = "3a47e78f7b6bcb9557cd0e80a23a1e23b4e7b0aca07d3771ea0efb00a587ed5a"
DROP = LastBatch.drop


def flat(arrays: list[Any]) -> list[int]:
    return [int(index) for array in arrays for index in array]


def flat_list(ranks: list[list[Any]]) -> list[Any]:
    return [micro for rank in ranks for micro in rank]


def padded(tokens: np.ndarray, micros: list[Any]) -> int:
    return sum(int(tokens[micro].max(axis=0).sum()) * len(micro) for micro in micros)


def filled(order: np.ndarray, tokens: np.ndarray, budget: int) -> list[list[int]]:
    """Fill micro-batches in a given order, the slow way."""
    micros: list[list[int]] = []
    for index in order.tolist():
        if micros and padded(tokens, [[*micros[-1], index]]) <= budget:
            micros[-1].append(index)
        else:
            micros.append([index])
    return micros


def numbered(count: int) -> np.ndarray:
    """Lengths that differ from example to example, without a generator."""
    return np.array([(3 + i * 7 % 11, 2 + i * 5 % 9) for i in range(count)])


def correlated(count: int) -> np.ndarray:
    """Lengths like those of translations: most are short, a few long, a target is about as long as its source."""
    rng = np.random.default_rng(0)
    sources = 22 * np.exp(0.6 * rng.standard_normal(count))
    targets = sources * np.exp(0.25 * rng.standard_normal(count))
    return np.stack([sources, targets], axis=1).round().astype(np.int64).clip(2, 128)


def digest() -> str:
    """Hash two epochs of every kind of batch, and how two of the batches are split."""
    found = hashlib.sha256()
    for order, last, (examples, target_tokens) in product(Order, LastBatch, ((32, None), (None, 200))):
        plan = Plan(numbered(1000), 7, BatchSize(examples, target_tokens, order, last))
        for step in range(1, plan.num_steps(2) + 1):
            epoch, batch = plan.batch(step)
            found.update(f"{epoch}:{batch.tolist()};".encode())
    for examples, num_ranks in product((10, 500), (1, 3, 8)):
        ranks = split_batch(np.arange(0, 2 * examples, 2), numbered(1000), 128, num_ranks)
        found.update(str([[micro.tolist() for micro in rank] for rank in ranks]).encode())
    return found.hexdigest()


def test_the_plan_is_the_same_everywhere() -> None:
    """The digest was written down once; it must be equal on every machine and with every numpy."""
    assert digest() == GOLDEN


def test_the_plan_is_the_same_in_another_process() -> None:
    code = f"import runpy; print(runpy.run_path({__file__!r})['digest']())"
    env = os.environ | {"PYTHONHASHSEED": "4242", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == GOLDEN


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


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("num_examples", [0, 1, 2, 3])
def test_a_few_examples_for_any_number_of_ranks(num_examples: int, num_ranks: int) -> None:
    """Ranks without examples get none; what there is comes once, on as many ranks as it goes round."""
    for budget in (1, 20, 1000):
        ranks = split_batch(np.arange(num_examples), numbered(3), budget, num_ranks)
        assert sorted(flat(flat_list(ranks))) == list(range(num_examples))
        assert len(ranks) == num_ranks
        assert sum(map(bool, ranks)) == min(num_examples, num_ranks)


def test_a_budget_below_every_example_makes_micro_batches_of_one() -> None:
    [rank] = split_batch(np.arange(3), [(4, 4), (9, 1), (2, 3)], 1, 1)
    assert [micro.tolist() for micro in rank] == [[1], [0], [2]]


def test_lengths_of_zero_cost_nothing() -> None:
    lengths = [(0, 0), (0, 3), (2, 0), (0, 0)]
    batches = plan_epoch(lengths, 0, 0, BatchSize(None, 3))
    assert sorted(flat(batches)) == [0, 1, 2, 3]
    [rank] = split_batch(np.arange(4), lengths, 6, 1)
    assert [micro.tolist() for micro in rank] == [[2, 3, 0], [1]]
    ranks = split_batch(np.array([0, 3]), lengths, 6, 2)
    assert [[micro.tolist() for micro in rank] for rank in ranks] == [[[3, 0]], []]
    assert len(plan_epoch([(0, 0)] * 5, 0, 0, BatchSize(None, 1))) == 1


def test_micro_batches_pad_less_than_in_order_of_target_and_source() -> None:
    tokens = correlated(2048)
    ours = split_batch(np.arange(2048), tokens, 4096, 1)[0]
    by_target = np.lexsort((tokens[:, 0], tokens[:, 1]))[::-1]
    assert padded(tokens, ours) / tokens.sum() < 1.15
    assert padded(tokens, filled(by_target, tokens, 4096)) / tokens.sum() > 1.2


@pytest.mark.parametrize("num_ranks", [2, 8, 64])
def test_ranks_have_near_equal_work(num_ranks: int) -> None:
    tokens = correlated(2048)
    ranks = split_batch(np.arange(2048), tokens, 4096, num_ranks)
    assert max(padded(tokens, rank) for rank in ranks) < 1.2 * tokens.sum() / num_ranks


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


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """List the epochs that are planned."""
    epochs: list[int] = []
    draw = module._draw

    def noted(tokens: Any, seed: int, epoch: int, size: BatchSize) -> Any:
        epochs.append(epoch)
        return draw(tokens, seed, epoch, size)

    monkeypatch.setattr(module, "_draw", noted)
    return epochs


@pytest.mark.parametrize("order", Order)
def test_a_late_step_is_found_without_planning_what_is_before(order: Order, drawn: list[int]) -> None:
    plan = Plan(numbered(30), 5, BatchSize(7, None, order))
    assert plan.num_steps(1000) == 5000
    assert plan.batch(251)[0] == 50
    assert plan.batch(255)[0] == 50
    assert drawn == [0, 50]


def test_epochs_cut_by_tokens_are_planned_once_each(drawn: list[int]) -> None:
    plan = Plan(numbered(30), 5, BatchSize(None, 40))
    steps = plan.num_steps(4)
    assert drawn == [0, 1, 2, 3]
    assert [plan.batch(step)[0] for step in (steps, steps - 1, 1, 2)] == [3, 3, 0, 0]
    assert drawn == [0, 1, 2, 3, 0]


def test_a_last_batch_cut_by_tokens_is_short_when_the_longest_would_have_fitted() -> None:
    """Targets of 4 under a limit of 10 go in twos; 5 of them leave one, and so do 3 with one of 6 at the end."""
    sizes = [len(batch) for batch in plan_epoch([(1, 4)] * 5, 0, 0, BatchSize(None, 10, last=DROP))]
    assert sizes == [2, 2]
    assert [len(batch) for batch in plan_epoch([(1, 4)] * 4, 0, 0, BatchSize(None, 10, last=DROP))] == [2, 2]
    lengths = [(1, 6), (1, 5), (1, 5)]
    ends = {tuple(flat(plan_epoch(lengths, seed, 0, BatchSize(None, 11, last=DROP)))[2:]) for seed in range(30)}
    assert ends == {(), (0,)}  # a 5 at the end leaves room for the 6, which is dropped with it; a 6 has no room left


@pytest.mark.parametrize(
    "size", [BatchSize(4, None, Order.length_pooled, DROP), BatchSize(None, 40, Order.length_pooled, DROP)]
)
def test_a_pooled_epoch_does_not_always_drop_the_longest(size: BatchSize) -> None:
    """One pool of ten; with its longest examples at its end they would never be trained on."""
    lengths = [(5, 1 + i) for i in range(10)]
    dropped = {
        index for epoch in range(100) for index in set(range(10)) - set(flat(plan_epoch(lengths, 3, epoch, size)))
    }
    assert dropped == set(range(10))


def test_a_batch_larger_than_the_data_is_the_data() -> None:
    assert sorted(Plan(numbered(3), 0, BatchSize(64, None)).batch(1)[1].tolist()) == [0, 1, 2]


def test_a_run_without_examples_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task.train_file: expected at least one pair to train on\.$"):
        Plan([], 0, BatchSize(8, None))


@pytest.mark.parametrize("size", [BatchSize(8, None, last=DROP), BatchSize(None, 1000, last=DROP)])
def test_dropping_every_batch_is_refused(size: BatchSize) -> None:
    with pytest.raises(ConfigError, match=r"data.last_batch: expected ragged, got 'drop'; 3 examples do not fill one"):
        Plan(numbered(3), 0, size)
