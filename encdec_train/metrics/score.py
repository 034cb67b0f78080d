"""Score predictions: a value, a signature and a 95 % interval for each metric."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from encdec_train.errors import ConfigError, DataError, fault
from encdec_train.metrics import METRICS, expand
from encdec_train.metrics.spec import References, Statistics, Texts

_CHUNK_DRAWS = 2**20  # indices drawn at a time: 8 MiB


def score(
    predictions: Texts,
    references: References,
    sources: Texts | None,
    metrics: Sequence[str],
    seed: int = 0,
    num_resamples: int = 1000,
) -> dict[str, dict[str, Any]]:
    """Score predictions against references, all on 0-100.

    Args:
        predictions: One an example; an empty one is scored like any other.
        references: One or more an example.
        sources: What was rewritten, for SARI; may be None when no metric asks for it.
        metrics: Keys of `METRICS` and names of `GROUPS`.
        seed: Of the bootstrap; the same examples are drawn for all metrics.
        num_resamples: Bootstrap resamples.

    Returns:
        `{"sacrebleu": {"value": 31.2, "signature": "…", "ci95": [30.4, 32.0]}, …}`, the object under a split of
        `metrics.json`. The interval is the percentile bootstrap's over examples (Koehn 2004): the test set's share of
        the uncertainty, not that of training.

    Raises:
        ConfigError: Unknown metric, or `num_resamples` below 1.
        DataError: No examples, different numbers of them, something else than text, or sources missing.
    """
    names = expand(metrics)
    if num_resamples < 1:
        raise ConfigError(fault("num_resamples", "1 or more", num_resamples))
    _check(predictions, references, sources)
    asking = [name for name in names if METRICS[name].needs_source]
    if asking and sources is None:
        raise DataError(fault("sources", "one an example", "none", f"{', '.join(asking)} compares with the source",
                              "Give sources or leave these metrics out"))  # fmt: skip
    tables = {name: METRICS[name].statistics(predictions, references, sources) for name in names}
    intervals = _intervals(tables, seed, num_resamples)
    return {
        name: {
            "value": METRICS[name].value(table.sum(axis=0)),
            "signature": METRICS[name].signature(references),
            "ci95": intervals[name],
        }
        for name, table in tables.items()
    }


def describe(predictions: Texts, references: References, sources: Texts | None) -> dict[str, float]:
    """Return what a score does not show about predictions; lengths are in words split at white space.

    Returns:
        `empty_hypotheses`: predictions without a word.
        `mean_length`: words of a prediction.
        `length_ratio`: all predictions' words over all references' (of an example's references the mean).
        `source_length_ratio`: the same over the sources', where there are sources.
        A ratio to nothing is 0.

    Raises:
        DataError: As `score`.
    """
    _check(predictions, references, sources)
    lengths = [len(text.split()) for text in predictions]
    wanted = sum(float(np.mean([len(text.split()) for text in texts])) for texts in references)
    facts = {
        "empty_hypotheses": float(lengths.count(0)),
        "mean_length": sum(lengths) / len(lengths),
        "length_ratio": sum(lengths) / wanted if wanted else 0.0,
    }
    if sources is not None:
        given = sum(len(text.split()) for text in sources)
        facts["source_length_ratio"] = sum(lengths) / given if given else 0.0
    return facts


def _check(predictions: Texts, references: References, sources: Texts | None) -> None:
    if not predictions:
        raise DataError(fault("predictions", "1 or more", 0, "there is nothing to score"))
    columns = {"references": references} if sources is None else {"references": references, "sources": sources}
    for name, column in columns.items():
        if len(column) != len(predictions):
            raise DataError(fault(name, f"{len(predictions)}, one a prediction", len(column), "which belong together?",
                                  "Join predictions to references by id"))  # fmt: skip
    for row, texts in enumerate(references):
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise DataError(fault(f"references:{row}", "a list of one text or more", texts))
    for name, column in {"predictions": predictions, "sources": sources or ()}.items():
        for row, text in enumerate(column):
            if not isinstance(text, str):
                raise DataError(fault(f"{name}:{row}", "text", repr(text)))


def _intervals(tables: dict[str, Statistics], seed: int, num_resamples: int) -> dict[str, list[float]]:
    if not tables:
        return {}
    sums = _resample(np.hstack(list(tables.values())), seed, num_resamples)
    ends = np.cumsum([table.shape[1] for table in tables.values()])
    intervals = {}
    for name, end in zip(tables, ends, strict=True):
        own = sums[:, end - tables[name].shape[1] : end]
        low, high = np.percentile([METRICS[name].value(total) for total in own], [2.5, 97.5])
        intervals[name] = [float(low), float(high)]
    return intervals


def _resample(table: Statistics, seed: int, num_resamples: int) -> Statistics:
    """Return the statistics' sums over resamples of the examples with replacement, `[num_resamples, num_statistics]`.

    A resample is a row of weights (how often each example was drawn), so that a chunk of them is one matrix product.
    """
    generator = np.random.default_rng(seed)
    num_examples = len(table)
    rows = max(1, _CHUNK_DRAWS // num_examples)
    chunks = []
    for start in range(0, num_resamples, rows):
        drawn = generator.integers(num_examples, size=(min(rows, num_resamples - start), num_examples))
        weights = np.stack([np.bincount(row, minlength=num_examples) for row in drawn])
        chunks.append(weights.astype(np.float64) @ table)
    return np.concatenate(chunks)
