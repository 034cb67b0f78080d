"""Steps are the same however they are split over micro-batches and ranks; in `Seq2SeqTrainer` they are not.

What is compared, and the reference in plain torch, is `benchmarks/splits.py`, which also prints docs/results/splits.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import splits
from benchmarks.splits import SPLITS, Measured, Split, by_hand, difference, ours, seq2seq_trainer
from benchmarks.tiny_pair import Examples, Setting
from benchmarks.two_ranks import on_two_ranks
from encdec_train.data.plan import BatchSize, Plan

SETTINGS = {
    "float64": Setting(),  # smoothing, clipping and frozen embeddings
    "float64, plain": Setting(label_smoothing=0.0, max_grad_norm=None, frozen=False),
    "float64, one example left": Setting(num_examples=33),
    "float32": Setting(dtype=torch.float32),
}
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}  # relative; measured: 1e-14 and 1e-5
COUNTS = {  # micro-batches of five steps, on each rank
    "1 rank: 1": [[1, 1, 1, 1, 1]],
    "1 rank: 2": [[2, 2, 2, 2, 2]],
    "1 rank: 8": [[8, 8, 8, 8, 6]],
    "2 ranks: 1 + 1": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    "2 ranks: 4 + 4": [[4, 4, 4, 4, 3], [4, 4, 4, 4, 3]],
    "2 ranks: 2 + 2": [[2] * 5, [2] * 5],
    "2 ranks: 1 + 3": [[1, 1, 1, 1, 1], [3, 3, 3, 3, 3]],
    "2 ranks: 1 + none": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],  # a micro-batch of zero weight
    "2 ranks: none + 2": [[1, 1, 1, 1, 1], [2, 2, 2, 2, 2]],
}
PLAIN = Setting(label_smoothing=0.0, max_grad_norm=1.0, frozen=False, num_examples=40, equal_targets=True)
FIXED = "transformers.Seq2SeqTrainer has changed: print docs/results/splits.md again and correct what is said there"

exact = cache(by_hand)
Found = Mapping[tuple[str, str], list[Measured]]


@pytest.fixture(scope="module")
def found(one_thread: None) -> Found:
    """What every split of every setting measured, on each of its ranks."""
    alone = [(name, split) for name in SETTINGS for split in SPLITS if split.ranks == 1]
    both = [(name, split) for name in SETTINGS for split in SPLITS if split.ranks == 2]
    made = {(name, split.name): [ours(SETTINGS[name], split)] for name, split in alone}
    ranks = on_two_ranks(lambda: [ours(SETTINGS[name], split) for name, split in both])
    return made | {(name, split.name): [rank[i] for rank in ranks] for i, (name, split) in enumerate(both)}


@pytest.mark.parametrize("split", [split.name for split in SPLITS])
@pytest.mark.parametrize("name", SETTINGS)
def test_d05_d06_five_steps_are_the_same_however_they_are_split(name: str, split: str, found: Found) -> None:
    setting = SETTINGS[name]
    expected, tolerance = exact(setting), TOLERANCES[setting.dtype]
    for rank in found[name, split]:
        assert len(rank.losses) == len(rank.norms) == len(rank.gradients) == 5
        assert rank.losses == pytest.approx(expected.losses, rel=tolerance)
        assert rank.norms == pytest.approx(expected.norms, rel=tolerance)
        assert difference(rank, expected) < tolerance


def test_ranks_speak_once_a_step_beside_their_gradients() -> None:
    # One sum a step, and one when they part; Lightning would broadcast a flag of its own before every step and wait.
    def count() -> dict[str, int]:
        said = {"all_reduce": 0, "broadcast": 0}

        def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*given: Any, **more: Any) -> Any:
                said[name] += 1
                return original(*given, **more)

            return counted

        for name in said:
            setattr(torch.distributed, name, counting(name, getattr(torch.distributed, name)))
        ours(Setting(), next(split for split in SPLITS if split.ranks == 2))
        return said

    assert on_two_ranks(count) == [{"all_reduce": 5 + 1 + 2, "broadcast": 0}] * 2  # 2: Lightning, when its epoch ends


@pytest.mark.parametrize("split", [split.name for split in SPLITS])
def test_the_splits_are_what_they_are_called(split: str, found: Found) -> None:
    assert [rank.counts for rank in found["float64", split]] == COUNTS[split]


def test_the_plan_itself_leaves_a_rank_without_examples() -> None:
    plan = Examples(SETTINGS["float64, one example left"]).plan
    assert [len(plan.batch(step)[1]) for step in range(1, 6)] == [8, 8, 8, 8, 1]


def test_clipping_smoothing_and_freezing_take_part(found: Found) -> None:
    [measured], [plain] = found["float64", "1 rank: 1"], found["float64, plain", "1 rank: 1"]
    for norm, gradients in zip(measured.norms, measured.gradients, strict=True):
        clipped = np.sqrt(sum(np.square(gradient).sum() for gradient in gradients.values()))
        assert clipped == pytest.approx(0.05, rel=1e-6)
        assert norm > 1
    frozen = plain.gradients[0].keys() - measured.gradients[0].keys()
    assert len(frozen) == 5
    assert all(name.startswith("encoder.embeddings.") for name in frozen)
    assert abs(measured.losses[0] - plain.losses[0]) > 0.01


@pytest.mark.parametrize(
    ("split", "at_least"),
    [
        (Split("an example is lost", 1, lambda batch: [[batch[1:]]]), 0.01),
        (Split("an example comes twice", 1, lambda batch: [[batch, batch[:1]]]), 0.01),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_comparison_sees_a_wrong_split(split: Split, at_least: float) -> None:
    expected, wrong = exact(Setting()), ours(Setting(), split)
    assert difference(wrong, expected) > at_least
    assert wrong.losses[0] != pytest.approx(expected.losses[0], rel=at_least)


@pytest.fixture(scope="module")
def theirs(one_thread: None) -> dict[tuple[float, int, int], Measured]:
    """What Seq2SeqTrainer measured, by label smoothing, ranks and micro-batches on each rank."""
    pytest.importorskip("accelerate", reason="Seq2SeqTrainer needs accelerate")
    settings = [replace(PLAIN, label_smoothing=smoothing) for smoothing in (0.0, 0.1)]
    cases = [(setting, ranks, count) for setting in settings for ranks, counts in splits.HF_MICRO_BATCHES.items()
             for count in counts]  # fmt: skip
    two = on_two_ranks(lambda: [seq2seq_trainer(setting, count, 2) for setting, ranks, count in cases if ranks == 2])[0]
    return {
        (setting.label_smoothing, ranks, count): two.pop(0) if ranks == 2 else seq2seq_trainer(setting, count)
        for setting, ranks, count in cases
    }


@pytest.mark.parametrize(("ranks", "count"), [(1, 1), (1, 2), (1, 8), (2, 1), (2, 4)])
def test_d05_d06_seq2seq_trainer_multiplies_gradient_and_loss_by_ranks_and_micro_batches(
    ranks: int, count: int, theirs: dict[tuple[float, int, int], Measured]
) -> None:
    expected, measured = exact(PLAIN), theirs[0.0, ranks, count]
    factor = ranks * count
    assert measured.norms[0] / expected.norms[0] == pytest.approx(factor, rel=1e-10), FIXED  # before clipping
    assert measured.losses[0] / expected.losses[0] == pytest.approx(factor, rel=1e-10), FIXED


@pytest.mark.parametrize(("ranks", "count"), [(1, 1), (1, 2), (1, 8), (2, 1), (2, 4)])
def test_seq2seq_trainer_is_right_with_label_smoothing(
    ranks: int, count: int, theirs: dict[tuple[float, int, int], Measured]
) -> None:
    expected, measured = exact(replace(PLAIN, label_smoothing=0.1)), theirs[0.1, ranks, count]
    assert measured.norms[0] == pytest.approx(expected.norms[0], rel=1e-7), FIXED  # it adds in float32
    assert measured.losses[0] == pytest.approx(expected.losses[0], rel=1e-7), FIXED


@pytest.mark.parametrize("deal", [splits.ONE_MICRO_BATCH, 90, splits.ONE_EXAMPLE])
def test_ours_has_no_factor_on_the_same_examples(deal: int) -> None:
    expected, measured = exact(PLAIN), ours(PLAIN, Split("the same", 1, deal))
    assert measured.norms[0] / expected.norms[0] == pytest.approx(1, rel=1e-10)
    assert measured.losses[0] / expected.losses[0] == pytest.approx(1, rel=1e-10)


@pytest.mark.parametrize("batch_examples", [8, 39])  # 39 of 40: the second step has one example for two ranks
def test_d06_two_ranks_make_the_same_run_as_one(
    batch_examples: int, new_model: Callable[..., Any], make_run: Callable[..., Any], plan: Plan, validator: Any
) -> None:
    options = {"plan": Plan(plan.lengths, 11, BatchSize(batch_examples, None)), "validator": validator,
               "validate_every_steps": 3}  # fmt: skip
    alone = make_run(new_model(dropout=0.0), 4, name="one", **options)

    def run() -> Any:
        made = make_run(new_model(dropout=0.0), 4, name="two", devices=2, **options)
        return made.rows, made.callback.progress, [p.detach().numpy() for p in made.model.parameters()]

    (rows, *first), (_, *second) = on_two_ranks(run)
    for row, expected in zip(rows, alone.rows, strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    assert [first[0].best_step, second[0].best_step] == [alone.callback.progress.best_step] * 2
    for p, q, expected in zip(first[1], second[1], alone.model.parameters(), strict=True):
        assert (p == q).all()  # to the bit
        torch.testing.assert_close(torch.from_numpy(p), expected, rtol=1e-3, atol=1e-5)
