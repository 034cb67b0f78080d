"""What outputs look like, whatever they are worth: length, novelty, repetition, emptiness, in percent.

- `length_ratio`: words (split at spaces) of all predictions over those of all references, of an example's the mean.
- `novel_bigrams`: share of the predictions' bigrams that their source does not have (See et al. 2017).
- `repetition`: share of the predictions' 4-grams that stand earlier in the same one (Welleck et al. 2020, but summed).
- `empty`: share of predictions without a word.
"""

from collections import Counter
from functools import partial
from importlib.metadata import version

import numpy as np

from encdec_train.metrics.spec import Metric, References, Statistics, Texts, mean_statistics, num_references
from encdec_train.metrics.words import Ngram, count_ngrams, words_13a


def _signature(name: str, form: str, references: References) -> str:
    tool = f"|sacrebleu:{version('sacrebleu')}" if "13a" in form else ""
    return f"{name}|nrefs:{num_references(references)}|{form}{tool}|version:1"


def _lengths(predictions: Texts, references: References, _sources: Texts | None) -> Statistics:
    wanted = [np.mean([len(text.split()) for text in texts]) for texts in references]
    return np.column_stack([[float(len(text.split())) for text in predictions], wanted])


def _novel(order: int, predictions: Texts, _references: References, sources: Texts | None) -> Statistics:
    pairs = [(_ngrams(hyp, order), _ngrams(src, order)) for hyp, src in zip(predictions, sources or (), strict=True)]
    rows = [[sum(n for gram, n in hyp.items() if gram not in src), hyp.total()] for hyp, src in pairs]
    return np.array(rows, dtype=np.float64)


def _repeated(order: int, predictions: Texts, _references: References, _sources: Texts | None) -> Statistics:
    counts = [_ngrams(text, order) for text in predictions]
    return np.array([[count.total() - len(count), count.total()] for count in counts], dtype=np.float64)


def _empty(predictions: Texts, _references: References, _sources: Texts | None) -> Statistics:
    return mean_statistics([float(not text.split()) for text in predictions])


def _ngrams(text: str, order: int) -> Counter[Ngram]:
    return count_ngrams(words_13a()(text.lower()), order)


_NGRAMS = "refs:unused|n:{}|agg:corpus|case:lc|tok:13a"
DESCRIPTIVE = (
    Metric("length_ratio", _lengths, partial(_signature, "length_ratio", "refs:mean|agg:corpus|tok:space")),
    Metric("novel_bigrams", partial(_novel, 2), partial(_signature, "novel_bigrams", _NGRAMS.format(2)),
           needs_source=True),
    Metric("repetition", partial(_repeated, 4), partial(_signature, "repetition", _NGRAMS.format(4))),
    Metric("empty", _empty, partial(_signature, "empty", "refs:unused|tok:space")),
)  # fmt: skip
