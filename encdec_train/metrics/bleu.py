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

Option = str | float | bool | None
Form = tuple[str, bool, tuple[tuple[str, Option], ...]]  # kind, whether quotes become ASCII, sacreBLEU's arguments

_ASCII_QUOTES = str.maketrans("“”„‟«»‘’‚‛‹›", '""""""' + "''''''")


def sacrebleu_metric(name: str, kind: str, *, ascii_quotes: bool = False, **options: Option) -> Metric:
    """Build a metric that sacreBLEU computes over the corpus: `BLEU`, `CHRF` or `TER`, with arguments of its class.

    `bleu_wmt14` is how Rothe et al. 2020 score WMT14: TensorFlow's official transformer script (`compute_bleu.py`),
    uncased, quotes made ASCII, compounds left whole. It splits and smooths as sacreBLEU's `intl` and `exp` do.
    """
    form = (kind, ascii_quotes, tuple(options.items()))
    needs = ("MeCab", "ipadic") if options.get("tokenize") == "ja-mecab" else ()
    return Metric(
        name, partial(_statistics, form), partial(_signature, form), partial(_value, form), False, needs,
        "sacrebleu[ja]" if needs else "",
    )  # fmt: skip


def _statistics(form: Form, predictions: Texts, references: References, _sources: Texts | None) -> Statistics:
    """Return sacreBLEU's segment statistics: 10 for BLEU, 3 an order for chrF, 2 for TER.

    An empty prediction has statistics like any other; it is never left out.
    """
    if form[1]:
        predictions = [text.translate(_ASCII_QUOTES) for text in predictions]
        references = [[text.translate(_ASCII_QUOTES) for text in texts] for texts in references]
    # sacreBLEU wants the first references of all examples, then the second ones, with None where there is none
    streams = list(zip_longest(*references))
    rows = _scorer(form)._extract_corpus_statistics(predictions, streams)
    return np.array(rows, dtype=np.float64)


def _value(form: Form, total: Statistics) -> float:
    return float(_scorer(form)._compute_score_from_stats(total.tolist()).score)


def _signature(form: Form, references: References) -> str:
    """Return what sacreBLEU prints before its score, such as `BLEU|nrefs:1|case:mixed|…|version:2.6.0`."""
    scorer = _build(form)
    counts = {len(texts) for texts in references}
    scorer.num_refs = counts.pop() if len(counts) == 1 else -1  # -1 is printed as `var`
    quotes = "|quotes:ascii|compounds:whole" if form[1] else ""
    name = "chrF2" + "+" * int(dict(form[2]).get("word_order") or 0) if form[0] == "CHRF" else form[0]
    return f"{name}|{scorer.get_signature().format()}{quotes}"


def _build(form: Form) -> "Scorer":
    # imported here, because knowing a metric's name must stay cheap
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    kind, _, options = form
    if kind == "BLEU":
        return BLEU(force=True, **dict(options))  # type: ignore[arg-type]  # force: no warning about tokenised text
    return (CHRF if kind == "CHRF" else TER)(**dict(options))  # type: ignore[arg-type]


_scorer = cache(_build)  # keeps the tokenizer's own cache between metrics and resamples
