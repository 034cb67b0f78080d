"""Exact match: the share of predictions that are one of their references."""

from collections.abc import Callable
from functools import partial
from unicodedata import normalize

from encdec_train.metrics.spec import Metric, References, Statistics, Texts, mean_statistics, num_references


def exact_match(name: str, *, normalized: bool) -> Metric:
    """Build exact match of texts without white space at their ends.

    With `normalized` they are case-folded, in Unicode's NFKC, and any white space is one space; punctuation counts.
    """
    form = "case:fold|unicode:nfkc|space:collapsed" if normalized else "case:mixed|strip:yes"
    return Metric(name, partial(_matches, _normalized if normalized else str.strip), partial(_signature, name, form))


def _normalized(text: str) -> str:
    # twice, because case folding can leave NFKC (Unicode 16, D146)
    return " ".join(normalize("NFKC", normalize("NFKC", text).casefold()).split())


def _matches(
    prepare: Callable[[str], str], predictions: Texts, references: References, _sources: Texts | None
) -> Statistics:
    """Return 1 for a match and 0 otherwise, with the count."""
    pairs = zip(predictions, references, strict=True)
    return mean_statistics([float(prepare(hyp) in {prepare(ref) for ref in refs}) for hyp, refs in pairs])


def _signature(name: str, form: str, references: References) -> str:
    return f"{name}|nrefs:{num_references(references)}|refs:any|{form}|version:1"
