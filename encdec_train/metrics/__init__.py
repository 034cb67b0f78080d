"""Scores: each metric is a pure function of texts, found here under the key that `task.metrics` and `metrics.json` use.

To add one, write a file with a `MetricSpec` and add a line to `METRICS`. Nothing here loads a scoring library.
"""

from collections.abc import Sequence
from difflib import get_close_matches

from encdec_train.errors import ConfigError, fault
from encdec_train.metrics.bleu import SacrebleuMetric
from encdec_train.metrics.exact import ExactMatchMetric
from encdec_train.metrics.rouge import RougeMetric
from encdec_train.metrics.sari import CorpusSariMetric, SentenceSariMetric
from encdec_train.metrics.spec import MetricSpec

METRICS: dict[str, MetricSpec] = {
    metric.name: metric
    for metric in (
        SacrebleuMetric("sacrebleu", kind="BLEU"),
        SacrebleuMetric("sacrebleu_uncased", kind="BLEU", lowercase=True),
        SacrebleuMetric("chrf", kind="CHRF"),
        SacrebleuMetric("ter", kind="TER"),
        RougeMetric("rouge1"),
        RougeMetric("rouge2"),
        RougeMetric("rougeL"),
        RougeMetric("rougeLsum"),
        CorpusSariMetric("sari", legacy=False),
        CorpusSariMetric("sari_legacy", legacy=True),
        SentenceSariMetric("sari_t2t"),
        ExactMatchMetric("exact_match"),
    )
}

GROUPS: dict[str, list[str]] = {"rouge": ["rouge1", "rouge2", "rougeL", "rougeLsum"]}


def expand(names: Sequence[str]) -> list[str]:
    """Return the keys that a list of metrics stands for, each once, in order of first mention.

    Raises:
        ConfigError: For every unknown name, with the choices and the nearest of them.
    """
    unknown = [name for name in names if name not in METRICS and name not in GROUPS]
    if unknown:
        raise ConfigError([_unknown(name) for name in unknown])
    keys = [key for name in names for key in GROUPS.get(name, [name])]
    return list(dict.fromkeys(keys))


def _unknown(name: str) -> str:
    choices = [*METRICS, *GROUPS]
    by_lower = {choice.lower(): choice for choice in choices}
    nearest = get_close_matches(name.lower(), by_lower, n=1)
    remedy = f"The nearest is {by_lower[nearest[0]]}" if nearest else ""
    return fault("task.metrics", f"names out of {', '.join(choices)}", name, remedy=remedy)
