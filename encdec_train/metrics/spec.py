"""What a metric has to offer: statistics an example, a value of their sum, and a signature."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Statistics = npt.NDArray[np.float64]


class MetricSpec(Protocol):
    """One metric, as pure functions of texts.

    Statistics are kept per example because everything else follows from sums of them: the value, a bootstrap interval
    and a paired test, without looking at the texts again.
    """

    @property
    def name(self) -> str:
        """The key under which `metrics.json` and `task.metrics` know it."""
        ...

    @property
    def needs_source(self) -> bool:
        """Whether the score depends on what was to be rewritten."""
        ...

    def statistics(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str] | None
    ) -> Statistics:
        """Return what is summed over examples, `[num_examples, num_statistics]`."""
        ...

    def value(self, total: Statistics) -> float:
        """Return the score on 0-100 from the statistics' sum over examples, `[num_statistics]`."""
        ...

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """Return tool, version, tokenisation, case and variant, and how several references are handled."""
        ...


def num_references(references: Sequence[Sequence[str]]) -> str:
    """Return how many references an example has, `var` where examples differ (sacreBLEU's notation)."""
    counts = {len(texts) for texts in references}
    return str(counts.pop()) if len(counts) == 1 else "var"


def mean_statistics(scores: Sequence[float]) -> Statistics:
    """Return statistics of a metric that is a mean over examples: `[num_examples, 2]`, the score and the count 1.

    Args:
        scores: One an example, on 0-1.
    """
    return np.column_stack([np.asarray(scores, dtype=np.float64), np.ones(len(scores))])


def mean_value(total: Statistics) -> float:
    """Return the mean on 0-100 from a sum of `mean_statistics`."""
    return 100 * float(total[0]) / float(total[1])
