"""ROUGE-1, -2, -L and -Lsum with exactly the digits of rouge_score 0.1.2 (stemmer on), in an eighth of its time.

Three things cost rouge_score its time: every word is stemmed again each time, every text is tokenised again for each
variant, and longest common subsequences are tables in Python. Here stems and tokens are cached, and a row of the table
is one integer whose bits say where the row steps up (Hyyrö 2004, "Bit-parallel LCS-length computation revisited").
Four variants of 11,490 CNN/DailyMail outputs take 3 s on one core (docs/results/published-scores.md).

What papers print as ROUGE-L is `rougeLsum` over texts with a sentence a line; `rougeL` takes a text for one sentence.
"""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from functools import cache, lru_cache, partial
from importlib.metadata import version

from encdec_train.metrics.spec import Metric, References, Statistics, Texts, mean_statistics, num_references

Line = tuple[str, ...]
Text = tuple[Line, ...]
Overlap = tuple[int, int, int]  # units in common, units in the reference, units in the prediction
Compare = Callable[[Text, Text], Overlap]  # reference and prediction

_WORD = re.compile(r"[a-z0-9]+")
_REPRODUCES = "rouge_score:0.1.2"


def rouge_metric(name: str) -> Metric:
    """Build the mean over examples of one ROUGE variant's F1; of several references the one with the best F1 counts."""
    return Metric(name, partial(_best_f1, _OVERLAPS[name]), partial(_signature, name))


def _best_f1(overlap: Compare, predictions: Texts, references: References, _sources: Texts | None) -> Statistics:
    """Return F1 with the count. A text without letters or digits scores 0."""
    scores = []
    for prediction, texts in zip(predictions, references, strict=True):
        hyp = _tokenize(prediction)
        scores.append(max(_f1(overlap(_tokenize(text), hyp)) for text in texts))
    return mean_statistics(scores)


def _signature(name: str, references: References) -> str:
    """Return `rougeLsum|nrefs:…|refs:max-f1|…`, with what a sentence is and the package whose digits these are."""
    split = {"rougeL": "|sentence:text", "rougeLsum": "|sentence:line"}.get(name, "")
    nrefs, tool = num_references(references), f"{_REPRODUCES}|nltk:{version('nltk')}"
    return f"{name}|nrefs:{nrefs}|refs:max-f1|score:f1|agg:mean|case:lc|stem:porter{split}|{tool}"


@cache
def _stem() -> Callable[[str], str]:
    from rouge_score.tokenizers import porter  # its very stemmer, nltk's; here, because importing nltk takes 1.8 s

    return lru_cache(maxsize=2**17)(porter.PorterStemmer().stem)


@lru_cache(maxsize=2**16)
def _tokenize(text: str) -> Text:
    # Tokens never span a line, so one pass serves all variants. Words of 3 letters or fewer are not stemmed.
    stem = _stem()
    return tuple(
        tuple(stem(word) if len(word) > 3 else word for word in _WORD.findall(line.lower()))
        for line in text.split("\n")
    )


def _flat(text: Text) -> Line:
    return text[0] if len(text) == 1 else tuple(token for line in text for token in line)


def _f1(overlap: Overlap) -> float:
    # rouge_score's order of operations, for equal digits
    hits, num_reference, num_prediction = overlap
    precision, recall = hits / max(num_prediction, 1), hits / max(num_reference, 1)
    return 2 * precision * recall / (precision + recall) if hits else 0.0


def _common(ref: Iterable[Hashable], hyp: Iterable[Hashable]) -> Overlap:
    ref_counts, hyp_counts = Counter(ref), Counter(hyp)
    hits = sum(min(count, hyp_counts[unit]) for unit, count in ref_counts.items() if unit in hyp_counts)
    return hits, ref_counts.total(), hyp_counts.total()


def _unigrams(ref: Text, hyp: Text) -> Overlap:
    return _common(_flat(ref), _flat(hyp))


def _bigrams(ref: Text, hyp: Text) -> Overlap:
    ref_tokens, hyp_tokens = _flat(ref), _flat(hyp)
    return _common(zip(ref_tokens, ref_tokens[1:], strict=False), zip(hyp_tokens, hyp_tokens[1:], strict=False))


def _sentence_lcs(ref: Text, hyp: Text) -> Overlap:
    ref_tokens, hyp_tokens = _flat(ref), _flat(hyp)
    rows = _lcs_rows(ref_tokens, hyp_tokens)
    return rows[-1].bit_count(), len(ref_tokens), len(hyp_tokens)


def _summary_lcs(ref: Text, hyp: Text) -> Overlap:
    """Count reference tokens in the union of each line's subsequences with all predicted lines (Lin 2004, 3.2).

    A token counts at most as often as either text holds it, as in ROUGE-1.5.5.
    """
    ref_left, hyp_left = Counter(_flat(ref)), Counter(_flat(hyp))
    num_reference, num_prediction, hits = ref_left.total(), hyp_left.total(), 0
    for line in ref:
        union = set().union(*(_lcs_positions(line, other) for other in hyp))
        for token in [line[i] for i in sorted(union)]:
            if ref_left[token] > 0 and hyp_left[token] > 0:
                ref_left[token] -= 1
                hyp_left[token] -= 1
                hits += 1
    return hits, num_reference, num_prediction


def _lcs_rows(ref: Line, hyp: Line) -> list[int]:
    """Return the table of longest common subsequences, `len(ref) + 1` rows of `len(hyp)` bits.

    Bit `j - 1` of row `i` is set where `lcs(ref[:i], hyp[:j])` is one more than `lcs(ref[:i], hyp[:j - 1])`, so a
    prefix's length is a count of bits.
    """
    places: dict[str, int] = {}
    for j, token in enumerate(hyp):
        places[token] = places.get(token, 0) | 1 << j
    full = (1 << len(hyp)) - 1
    flat, rows = full, [0]  # `flat` is the complement of the row, which makes the step three operations
    for token in ref:
        match = flat & places.get(token, 0)
        if match:
            flat = ((flat + match) | (flat - match)) & full
        rows.append(flat ^ full)
    return rows


def _lcs_positions(ref: Line, hyp: Line) -> list[int]:
    """Return the positions in `ref` of one longest common subsequence: the one that rouge_score reads out."""
    rows = _lcs_rows(ref, hyp)
    if not rows[-1]:
        return []
    i, j, positions = len(ref), len(hyp), []
    while i and j:
        left = (1 << (j - 1)) - 1
        if ref[i - 1] == hyp[j - 1]:
            i, j = i - 1, j - 1
            positions.append(i)
        elif (rows[i] & left).bit_count() > (rows[i - 1] & (left << 1 | 1)).bit_count():
            j -= 1
        else:
            i -= 1
    return positions


_OVERLAPS: dict[str, Compare] = {
    "rouge1": _unigrams,
    "rouge2": _bigrams,
    "rougeL": _sentence_lcs,
    "rougeLsum": _summary_lcs,
}
