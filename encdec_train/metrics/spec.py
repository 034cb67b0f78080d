"""What a metric has to offer: statistics an example, a value of their sum, and a signature."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Texts = Sequence[str]  # one an example
References = Sequence[Sequence[str]]  # one text or more an example
Statistics = npt.NDArray[np.float64]


def num_references(references: References) -> str:
    """Return how many references an example has, `var` where examples differ (sacreBLEU's notation)."""
    counts = {len(texts) for texts in references}
    return str(counts.pop()) if len(counts) == 1 else "var"


def mean_statistics(scores: Sequence[float]) -> Statistics:
    """Return `[num_examples, 2]` for a metric that is a mean over examples: each score (on 0-1) and the count 1."""
    return np.column_stack([np.asarray(scores, dtype=np.float64), np.ones(len(scores))])


def mean_value(total: Statistics) -> float:
    """Return the first sum over the second in percent: of `mean_statistics` the mean. A ratio to nothing is 0."""
    return 100 * float(total[0]) / float(total[1]) if total[1] else 0.0


@dataclass(frozen=True)
class Metric:
    """One metric, as pure functions of texts; `statistics` takes predictions, references and sources.

    Statistics are kept per example because everything else follows from sums of them: the value, a bootstrap interval
    and a paired test, without looking at the texts again.
    """

    name: str  # the key under which `metrics.json` and `task.metrics` know it
    statistics: Callable[[Texts, References, Texts | None], Statistics]  # `[num_examples, num_statistics]`, to sum
    signature: Callable[[References], str]  # tool, version, tokenisation, case, variant, how references are handled
    value: Callable[[Statistics], float] = mean_value  # the score on 0-100 from the sum, `[num_statistics]`
    needs_source: bool = False  # whether the score depends on what was to be rewritten
    needs_modules: tuple[str, ...] = ()  # what it imports beyond this package's requirements
    pip_name: str = ""  # what brings them
