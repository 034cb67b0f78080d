"""Scores: each metric is a pure function of texts, found here under the key that `task.metrics` and `metrics.json` use.

To add one, write a file that makes a `Metric` and add a line to `METRICS`. Nothing here loads a scoring library.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec

from encdec_train.errors import ConfigError, fault
from encdec_train.metrics.bleu import sacrebleu_metric
from encdec_train.metrics.descriptive import DESCRIPTIVE
from encdec_train.metrics.exact import exact_match
from encdec_train.metrics.nltk_bleu import BLEU_NLTK
from encdec_train.metrics.rouge import rouge_metric
from encdec_train.metrics.sari import corpus_sari, sentence_sari
from encdec_train.metrics.spec import Metric

LOWER_IS_BETTER = frozenset({"ter", "empty", "repetition"})
GROUPS: dict[str, list[str]] = {"rouge": ["rouge1", "rouge2", "rougeL", "rougeLsum"]}

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        sacrebleu_metric("sacrebleu", "BLEU"),
        sacrebleu_metric("sacrebleu_uncased", "BLEU", lowercase=True),
        sacrebleu_metric("sacrebleu_intl", "BLEU", tokenize="intl"),
        sacrebleu_metric("sacrebleu_none", "BLEU", tokenize="none"),
        sacrebleu_metric("sacrebleu_zh", "BLEU", tokenize="zh"),
        sacrebleu_metric("sacrebleu_ja", "BLEU", tokenize="ja-mecab"),
        sacrebleu_metric("bleu_wmt14", "BLEU", ascii_quotes=True, lowercase=True, tokenize="intl"),
        BLEU_NLTK,
        sacrebleu_metric("chrf", "CHRF"),
        sacrebleu_metric("chrfpp", "CHRF", word_order=2),
        sacrebleu_metric("ter", "TER"),
        *map(rouge_metric, GROUPS["rouge"]),
        corpus_sari("sari", legacy=False),
        corpus_sari("sari_legacy", legacy=True),
        sentence_sari("sari_t2t"),
        exact_match("exact_match", normalized=False),
        exact_match("exact_match_normalized", normalized=True),
        *DESCRIPTIVE,
    )
}


def expand(names: Sequence[str]) -> list[str]:
    """Return the keys that a list of metrics stands for, each once, in order of first mention.

    Raises:
        ConfigError: For every unknown name, with the choices and the nearest of them; for a package that is missing.
    """
    unknown = [name for name in names if name not in METRICS and name not in GROUPS]
    if unknown:
        raise ConfigError([_unknown(name) for name in unknown])
    keys = [key for name in names for key in GROUPS.get(name, [name])]
    absent = [key for key in keys if any(find_spec(module) is None for module in METRICS[key].needs_modules)]
    if absent:
        reason, remedy = " and ".join(METRICS[absent[0]].needs_modules), f"pip install '{METRICS[absent[0]].pip_name}'"
        raise ConfigError(fault("task.metrics", "metrics that are installed", absent[0], f"it needs {reason}", remedy))
    return list(dict.fromkeys(keys))


def _unknown(name: str) -> str:
    choices = [*METRICS, *GROUPS]
    by_lower = {choice.lower(): choice for choice in choices}
    nearest = get_close_matches(name.lower(), by_lower, n=1)
    remedy = f"The nearest is {by_lower[nearest[0]]}" if nearest else ""
    return fault("task.metrics", f"names out of {', '.join(choices)}", name, remedy=remedy)
