"""BLEU, chrF and TER: sacreBLEU's own, from its segment statistics.

The statistics come from the two methods that sacreBLEU's significance tests use (`_extract_corpus_statistics`,
`_compute_score_from_stats`); they are not public, so the tests compare with `corpus_score`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from encdec_train.metrics.spec import Statistics

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric


@dataclass(frozen=True)
class SacrebleuMetric:
    """A metric that sacreBLEU computes over the corpus, with its defaults except for case."""

    name: str
    kind: str  # `BLEU` (tokenised by 13a), `CHRF` or `TER`
    lowercase: bool = False  # only read for BLEU: sacreBLEU's chrF keeps case and its TER ignores it
    needs_source: bool = False

    def statistics(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str] | None
    ) -> Statistics:
        """Return sacreBLEU's segment statistics: 10 for BLEU, 18 for chrF, 2 for TER.

        An empty prediction has statistics like any other; it is never left out.
        """
        del sources
        scorer = _scorer(self.kind, self.lowercase)
        streams = _streams(references)
        rows = scorer._extract_corpus_statistics(predictions, streams)  # type: ignore[arg-type]  # None is documented
        return np.array(rows, dtype=np.float64)

    def value(self, total: Statistics) -> float:
        """Return the corpus score; TER is an error rate (lower is better) and may exceed 100."""
        return float(_scorer(self.kind, self.lowercase)._compute_score_from_stats(total.tolist()).score)

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """Return what sacreBLEU prints before its score, such as `BLEU|nrefs:1|case:mixed|…|version:2.6.0`."""
        scorer = _build(self.kind, self.lowercase)
        counts = {len(texts) for texts in references}
        scorer.num_refs = counts.pop() if len(counts) == 1 else -1  # -1 is printed as `var`
        return f"{_SCORE_NAME[self.kind]}|{scorer.get_signature().format()}"


_SCORE_NAME = {"BLEU": "BLEU", "CHRF": "chrF2", "TER": "TER"}  # as sacreBLEU prints them


def _build(kind: str, lowercase: bool) -> "Metric":
    # imported here, because knowing a metric's name must stay cheap
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    if kind == "BLEU":
        return BLEU(lowercase=lowercase, force=True)  # force: no warning about tokenised text; WikiSplit is tokenised
    return CHRF() if kind == "CHRF" else TER()


_scorer = cache(_build)  # keeps the tokenizer's own cache between metrics and resamples


def _streams(references: Sequence[Sequence[str]]) -> list[tuple[str | None, ...]]:
    # sacreBLEU wants the first references of all examples, then the second ones, with None where there is none
    return list(zip_longest(*references))
