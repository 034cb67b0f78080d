"""SARI (Xu et al. 2016, TACL 4) in the three forms that published figures use.

SARI compares n-grams (n = 1..4) that a prediction adds to its source, keeps of it and deletes from it with those of
the references; it is the mean of the three operations' scores. docs/metrics.md has the forms side by side, with an
example of each difference.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version

import numpy as np

from encdec_train.metrics.spec import Metric, References, Statistics, Texts, mean_statistics, num_references
from encdec_train.metrics.words import Ngram, count_ngrams, words_13a

_ORDERS = (1, 2, 3, 4)


def corpus_sari(name: str, *, legacy: bool) -> Metric:
    """Build SARI from n-gram counts summed over the corpus; `legacy` keeps case and splits the source at spaces."""
    return Metric(name, partial(_corpus_counts, legacy), partial(_corpus_signature, name, legacy), _corpus_f1, True)


def _corpus_counts(legacy: bool, predictions: Texts, references: References, sources: Texts | None) -> Statistics:
    """Return 36 counts: for each order, and for add, keep and delete: right, predicted, possible."""
    words = words_13a()
    prepare: Callable[[str], str] = str if legacy else str.lower
    rows = []
    for source, prediction, texts in zip(sources or (), predictions, references, strict=True):
        source_words = source.split() if legacy else words(prepare(source))
        reference_words = [words(prepare(text)) for text in texts]
        rows.append(_counts(source_words, words(prepare(prediction)), reference_words))
    return np.array(rows, dtype=np.float64)


def _corpus_f1(total: Statistics) -> float:
    """Return the mean over orders and operations of F1, in percent."""
    right, predicted, possible = total.reshape(-1, 3).T
    whole = predicted + possible
    return 100 * float(np.mean(np.divide(2 * right, whole, out=np.zeros_like(whole), where=whole > 0)))


def _corpus_signature(name: str, legacy: bool, references: References) -> str:
    form = "case:mixed|tok:13a|source:space" if legacy else "case:lc|tok:13a|source:13a"
    nrefs = num_references(references)
    return f"{name}|nrefs:{nrefs}|refs:pooled|agg:corpus|del:f1|{form}|sacrebleu:{version('sacrebleu')}|version:1"


def sentence_sari(name: str) -> Metric:
    """Build SARI as tensor2tensor's `sari_hook` computes it from tokens, averaged over examples.

    The hook counts the training vocabulary's pieces; words are counted here, so that models with different vocabularies
    can be compared. Deletion is the hook's default, precision. Not settled: the paper does not say whether it passed
    another beta, as LaserTagger's evaluation of the same data sets does (beta 1, that is F1).
    """
    return Metric(name, _sentence_scores, partial(_sentence_signature, name), needs_source=True)


def _sentence_scores(predictions: Texts, references: References, sources: Texts | None) -> Statistics:
    rows = zip(sources or (), predictions, references, strict=True)
    return mean_statistics([
        _sentence_sari(source.split(), prediction.split(), [text.split() for text in texts])
        for source, prediction, texts in rows
    ])  # fmt: skip


def _sentence_signature(name: str, references: References) -> str:
    nrefs = num_references(references)
    return f"{name}|nrefs:{nrefs}|refs:weighted|agg:mean|del:precision|case:mixed|tok:space|version:1"


def _counts(source: Sequence[str], prediction: Sequence[str], references: Sequence[Sequence[str]]) -> list[int]:
    """Return right, predicted and possible counts of the three operations for every order, `[36]`.

    Additions are counted by kind of n-gram. For the other two, source and prediction count as if repeated once a
    reference, against the references' n-grams taken together.
    """
    row: list[int] = []
    times = len(references)
    for order in _ORDERS:
        src, hyp = count_ngrams(source, order), count_ngrams(prediction, order)
        pooled: Counter[Ngram] = Counter()
        for words in references:
            pooled.update(count_ngrams(words, order))
        added = [gram for gram in hyp if gram not in src]
        row += [sum(gram in pooled for gram in added), len(added), sum(gram not in src for gram in pooled)]
        row += _keep_and_delete(src, hyp, pooled, times)
    return row


def _keep_and_delete(
    src: Counter[Ngram], hyp: Counter[Ngram], pooled: Counter[Ngram], times: int
) -> tuple[int, int, int, int, int, int]:
    kept = keep_right = keep_possible = deleted = delete_right = delete_possible = 0
    for gram, count in src.items():
        whole, wanted = times * count, min(times * count, pooled[gram])
        here = min(whole, times * hyp[gram])
        kept += here
        keep_right += min(here, wanted)
        keep_possible += wanted
        deleted += whole - here
        delete_right += min(whole - here, whole - wanted)
        delete_possible += whole - wanted
    return keep_right, kept, keep_possible, delete_right, deleted, delete_possible


def _sentence_sari(source: Sequence[str], prediction: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    return float(np.mean([_order_sari(source, prediction, references, order) for order in _ORDERS]))


def _order_sari(
    source: Sequence[str], prediction: Sequence[str], references: Sequence[Sequence[str]], order: int
) -> float:
    src, hyp = set(count_ngrams(source, order)), set(count_ngrams(prediction, order))
    grams_of = [grams for words in references if (grams := set(count_ngrams(words, order)))]
    # the share of the references (that have n-grams of this order at all) with the n-gram
    share = {gram: votes / len(grams_of) for gram, votes in Counter(g for grams in grams_of for g in grams).items()}
    kept, deleted, added = src & hyp, src - hyp, hyp - src
    keep_right = sum(share.get(gram, 0.0) for gram in kept)
    keep = _f1(keep_right, len(kept), sum(share.get(gram, 0.0) for gram in src))
    delete = sum(1 - share.get(gram, 0.0) for gram in deleted) / len(deleted) if deleted else 1.0
    add = _f1(len(added & share.keys()), len(added), len(share.keys() - src))
    return (keep + delete + add) / 3


def _f1(right: float, predicted: float, possible: float) -> float:
    """Return F1 where a precision or recall of 0 / 0 is 1: nothing was asked for and nothing was done."""
    precision = right / predicted if predicted else 1.0
    recall = right / possible if possible else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
