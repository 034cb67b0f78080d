"""Corpus BLEU as NLTK computes it: the paper's BLEU for WikiSplit (NLTK 3.2.2, cased).

It differs from sacreBLEU's in three ways. Words are what stands between spaces. Nothing is smoothed: a corpus without
any match of an order scores 0 (older NLTK leaves such an order out of the mean, 3.10 comes to 1e-77). A
prediction shorter than n words counts as one wrong n-gram (`short:1`). A test compares with `corpus_bleu`.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from encdec_train.metrics.spec import Metric, References, Statistics, Texts, num_references
from encdec_train.metrics.words import Ngram, count_ngrams


def _counts(predictions: Texts, references: References, _sources: Texts | None) -> Statistics:
    """Return right and predicted n-grams of each order, words, and words of the reference nearest in length: 10."""
    pairs = zip(predictions, references, strict=True)
    rows = [_row(prediction.split(), [text.split() for text in texts]) for prediction, texts in pairs]
    return np.array(rows, dtype=np.float64)


def _row(prediction: Sequence[str], references: Sequence[Sequence[str]]) -> list[int]:
    row: list[int] = []
    for order in (1, 2, 3, 4):
        allowed: Counter[Ngram] = Counter()
        for words in references:
            allowed |= count_ngrams(words, order)
        found = count_ngrams(prediction, order)
        row += [(found & allowed).total(), max(found.total(), 1)]
    nearest = min((abs(len(words) - len(prediction)), len(words)) for words in references)
    return [*row, len(prediction), nearest[1]]


def _value(total: Statistics) -> float:
    right, predicted, (words, wanted) = total[:8:2], total[1:8:2], total[8:]
    if not right.all():
        return 0.0
    brevity = min(0.0, 1 - float(wanted / words))
    return 100 * math.exp(brevity + float(np.log(right / predicted).mean()))


def _signature(references: References) -> str:
    return f"bleu_nltk|nrefs:{num_references(references)}|case:mixed|tok:space|smooth:none|short:1|version:1"


BLEU_NLTK = Metric("bleu_nltk", _counts, _signature, _value)
