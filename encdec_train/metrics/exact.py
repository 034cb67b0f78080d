"""Exact match: the share of predictions that are one of their references, to the character."""

from collections.abc import Sequence
from dataclasses import dataclass

from encdec_train.metrics.spec import Statistics, mean_statistics, mean_value, num_references


@dataclass(frozen=True)
class ExactMatchMetric:
    """String equality with any reference, white space at both ends aside."""

    name: str = "exact_match"
    needs_source: bool = False

    def statistics(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str] | None
    ) -> Statistics:
        """Return 1 for a match and 0 otherwise, with the count."""
        del sources
        pairs = zip(predictions, references, strict=True)
        return mean_statistics([float(hyp.strip() in {ref.strip() for ref in refs}) for hyp, refs in pairs])

    def value(self, total: Statistics) -> float:
        """Return the percentage of matches."""
        return mean_value(total)

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """Return `exact_match|nrefs:…|refs:any|…`."""
        return f"{self.name}|nrefs:{num_references(references)}|refs:any|case:mixed|strip:yes|version:1"
