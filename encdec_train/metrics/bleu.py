"""BLEU, chrF and TER: sacreBLEU's own, from its segment statistics.

The statistics come from the two methods that sacreBLEU's significance tests use (`_extract_corpus_statistics`,
`_compute_score_from_stats`); they are not public, so the tests compare with `corpus_score`.
"""

from functools import cache, partial
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from encdec_train.metrics.spec import Metric, References, Statistics, Texts

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric as Scorer


def sacrebleu_metric(name: str, kind: str, *, lowercase: bool = False) -> Metric:
    """Build a metric that sacreBLEU computes over the corpus, with its defaults except for case.

    Args:
        name: The key in `METRICS`.
        kind: `BLEU` (tokenised by 13a), `CHRF` or `TER`, an error rate: lower is better, and it may exceed 100.
        lowercase: Only read for BLEU: sacreBLEU's chrF keeps case and its TER ignores it.
    """
    form = (kind, lowercase)
    return Metric(name, partial(_statistics, form), partial(_signature, form), partial(_value, form))


def _statistics(
    form: tuple[str, bool], predictions: Texts, references: References, _sources: Texts | None
) -> Statistics:
    """Return sacreBLEU's segment statistics: 10 for BLEU, 18 for chrF, 2 for TER.

    An empty prediction has statistics like any other; it is never left out.
    """
    # sacreBLEU wants the first references of all examples, then the second ones, with None where there is none
    streams = list(zip_longest(*references))
    rows = _scorer(*form)._extract_corpus_statistics(predictions, streams)
    return np.array(rows, dtype=np.float64)


def _value(form: tuple[str, bool], total: Statistics) -> float:
    return float(_scorer(*form)._compute_score_from_stats(total.tolist()).score)


def _signature(form: tuple[str, bool], references: References) -> str:
    """Return what sacreBLEU prints before its score, such as `BLEU|nrefs:1|case:mixed|…|version:2.6.0`."""
    scorer = _build(*form)
    counts = {len(texts) for texts in references}
    scorer.num_refs = counts.pop() if len(counts) == 1 else -1  # -1 is printed as `var`
    return f"{_SCORE_NAME[form[0]]}|{scorer.get_signature().format()}"


_SCORE_NAME = {"BLEU": "BLEU", "CHRF": "chrF2", "TER": "TER"}  # as sacreBLEU prints them


def _build(kind: str, lowercase: bool) -> "Scorer":
    # imported here, because knowing a metric's name must stay cheap
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    if kind == "BLEU":
        return BLEU(lowercase=lowercase, force=True)  # force: no warning about tokenised text; WikiSplit is tokenised
    return CHRF() if kind == "CHRF" else TER()


_scorer = cache(_build)  # keeps the tokenizer's own cache between metrics and resamples
