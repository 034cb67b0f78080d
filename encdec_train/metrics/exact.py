"""Exact match: the share of predictions that are one of their references, white space at both ends aside."""

from encdec_train.metrics.spec import Metric, References, Statistics, Texts, mean_statistics, num_references


def _matches(predictions: Texts, references: References, _sources: Texts | None) -> Statistics:
    """Return 1 for a match and 0 otherwise, with the count."""
    pairs = zip(predictions, references, strict=True)
    return mean_statistics([float(hyp.strip() in {ref.strip() for ref in refs}) for hyp, refs in pairs])


def _signature(references: References) -> str:
    return f"exact_match|nrefs:{num_references(references)}|refs:any|case:mixed|strip:yes|version:1"


EXACT_MATCH = Metric("exact_match", _matches, _signature)
