"""Do two systems differ? An effect with its interval and a p value for each metric, from sums of its statistics."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from encdec_train.metrics import METRICS
from encdec_train.metrics.score import _resample
from encdec_train.metrics.spec import Statistics

NUM_TRIALS, NUM_RESAMPLES = 10_000, 1_000
_CHUNK_TRIALS = 64  # a multiple of 32, the coins in a word of numpy's generator: chunks toss what one call would
_TIE = 1e-9  # points: a smaller difference between two scores is rounding
_DECIMALS = 9  # of a resampled difference

Tables = Mapping[str, Statistics]  # a run's statistics by metric, all `[num_examples, num_statistics]`


def paired_tests(
    a: Sequence[Tables],
    b: Sequence[Tables],
    seed: int,
    num_trials: int = NUM_TRIALS,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, dict[str, Any]]:
    """Compare the runs of two systems on the same examples, in the same order.

    The interval is the paired bootstrap's (Koehn 2004, EMNLP, section 5): percentiles of the difference over examples
    drawn with replacement, the same for all runs. Of several runs a side, as many are drawn as there are, likewise, so
    that the interval has the seeds' share of the uncertainty: none of it with one run, too little with few, for the
    variance between n runs comes out as (n - 1) / n of itself.

    The p value is that of two-sided approximate randomisation (Noreen 1989; Riezler and Maxwell 2005, figure 1). Null
    hypothesis: on every example, independently, it is a toss-up which system wrote which outputs. An exchange swaps
    the outputs of all runs of a side at once, so that runs that agree are not counted as evidence of their own; the
    statistic is the difference between the scores of each side's outputs taken together. With one run a side this is
    sacreBLEU's test, but that a tie counts against a difference: equal systems have p = 1. It speaks of these runs;
    whether new seeds would differ likewise, only the interval of several runs tells.

    Args:
        a: One run or more of one system, each with the tables of the same metrics of `METRICS`.
        b: Likewise of the other; the numbers of runs may differ.
        seed: Of both; the examples that the bootstrap draws are those of the intervals of `score`.
        num_trials: Of the randomisation; the smallest p is 1 / (num_trials + 1).
        num_resamples: Of the bootstrap.

    Returns:
        For each metric `a` and `b` (means over runs), `difference` (a - b), its `ci95`, and `p`.
    """
    runs = np.stack([np.hstack(list(run.values())) for run in (*a, *b)])
    drawn = _resample(np.hstack(list(runs)), seed, num_resamples).reshape(num_resamples * len(runs), -1)
    draw = np.random.default_rng([seed, 1]).multinomial  # how often each run is drawn
    shares = [draw(num, [1 / num] * num, num_resamples) / num for num in (len(a), len(b))]
    weights = np.hstack([shares[0], -shares[1]])
    sums = np.concatenate([runs.sum(axis=1), drawn, *_swap(runs[: len(a)], runs[len(a) :], seed, num_trials)])
    found, end = {}, 0
    for name, table in a[0].items():
        start, end = end, end + table.shape[1]
        values = np.array([METRICS[name].value(total) for total in sums[:, start:end]])
        of_runs, resampled, swapped = np.split(values, [len(runs), len(runs) + len(drawn)])
        of_a, of_b = float(of_runs[: len(a)].mean()), float(of_runs[len(a) :].mean())
        # Threads of a matrix product add in another order from column to column, so equal runs differ by 1e-14.
        differences = (weights * resampled.reshape(weights.shape)).sum(axis=1).round(_DECIMALS)
        low, high = np.percentile(differences, [2.5, 97.5])
        gaps = np.abs(np.subtract(*np.split(swapped, 2)))
        found[name] = {
            "a": of_a, "b": of_b, "difference": of_a - of_b, "ci95": [float(low), float(high)],
            "p": float((gaps >= gaps[0] - _TIE).mean()),
        }  # fmt: skip
    return found


def _swap(a: Statistics, b: Statistics, seed: int, num_trials: int) -> tuple[Statistics, Statistics]:
    """Return the sums of both sides, `[1 + num_trials, num_statistics]`: as they are, then with examples exchanged.

    A side's table is the mean of its runs', times both numbers of runs until all is summed up: so counts stay whole
    numbers, and none that should be 0 comes out as 1e-16, which BLEU's smoothing of a count of 0 would miss.
    """
    scale = len(a) * len(b)
    left, right = a.sum(axis=0) * len(b), b.sum(axis=0) * len(a)
    generator = np.random.default_rng(seed)
    sums = [left.sum(axis=0, keepdims=True)]
    for start in range(0, num_trials, _CHUNK_TRIALS):
        stays = generator.integers(2, size=(min(_CHUNK_TRIALS, num_trials - start), len(left)), dtype=np.bool_)
        sums.append(right.sum(axis=0) + stays.astype(np.float64) @ (left - right))
    ours = np.concatenate(sums)
    return ours / scale, ((left + right).sum(axis=0) - ours) / scale
