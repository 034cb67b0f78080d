"""Scores: each metric is a pure function of texts, found here under the key that `task.metrics` and `metrics.json` use.

To add one, write a file that makes a `Metric` and add a line to `METRICS`. Nothing here loads a scoring library.
"""

from collections.abc import Sequence
from difflib import get_close_matches

from encdec_train.errors import ConfigError, fault
from encdec_train.metrics.bleu import sacrebleu_metric
from encdec_train.metrics.exact import EXACT_MATCH
from encdec_train.metrics.rouge import rouge_metric
from encdec_train.metrics.sari import corpus_sari, sentence_sari
from encdec_train.metrics.spec import Metric

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        sacrebleu_metric("sacrebleu", "BLEU"),
        sacrebleu_metric("sacrebleu_uncased", "BLEU", lowercase=True),
        sacrebleu_metric("chrf", "CHRF"),
        sacrebleu_metric("ter", "TER"),
        rouge_metric("rouge1"),
        rouge_metric("rouge2"),
        rouge_metric("rougeL"),
        rouge_metric("rougeLsum"),
        corpus_sari("sari", legacy=False),
        corpus_sari("sari_legacy", legacy=True),
        sentence_sari("sari_t2t"),
        EXACT_MATCH,
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
