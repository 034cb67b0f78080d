"""The audit: what the pairs of a run are like, and what in them costs quality without a complaint.

Lengths, duplicates and overlaps are of all pairs, read in batches; characters and sides are of a sample at even
distances. Two texts count as one where they differ in case and white space only.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from encdec_train.data.preprocess import EncodedSplit, TextCodec
from encdec_train.data.rows import Rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Facts = dict[str, Any]
CHARACTER_ROWS, SIDE_ROWS = 2_000, 20_000  # pairs of a split in the samples
NUM_SHOWN = 12  # characters
NUM_BINS = 32
KNOWN_FROM, MIN_KNOWN = 10, 3  # a word counts when it is so frequent, a text when it has so many of them
SURE = 0.5  # nats a word by which a text belongs to one side
TOLD_APART_FROM = 0.6  # share of pairs of which both texts surely belong to their sides; below, sides say nothing
_BATCH_ROWS = 4096

# Shares of a split's pairs (of characters, where characters are named) above which there is a warning; not studied.
WARN_ABOVE = {
    "cut sources": 0.10,
    "cut targets": 0.10,
    "empty texts": 0.0,
    "records set aside": 0.0,
    "repeated pairs": 0.01,
    "targets equal to their source": 0.10,
    "sources seen in training": 0.01,
    "unknown characters in sources": 0.01,
    "lost characters in targets": 0.01,
    "pairs with exchanged sides": 0.01,
    "pairs with both texts of one side's language": 0.05,
}


def audit(splits: Mapping[str, EncodedSplit], codec: TextCodec) -> Facts:
    """Examine splits; `train` is what the others are compared with.

    Returns:
        `splits`: the facts of each, JSON values, its `shares` under the names of `WARN_ABOVE`; `warnings`: those
        above, each with `split`, `name`, `share` and `above`.
    """
    found: dict[str, Facts] = {}
    trained: npt.NDArray[np.int64] | None = None
    for name in sorted(splits, key=lambda one: one != "train"):
        split = splits[name]
        facts, sources = _repeats(split.rows)
        facts |= {"sides": sides(*_sampled(split.rows, SIDE_ROWS)), **_lengths(split)}
        halves = ((codec.source_backend, codec.source_tokenizer), (codec.target_backend, codec.target_tokenizer))
        texts = zip(("source", "target"), _sampled(split.rows, CHARACTER_ROWS), halves, strict=True)
        for side, some, (backend, tokenizer) in texts:
            facts[side]["characters"] = lost_characters(some, backend, tokenizer.unk_token_id)
        if trained is not None:
            facts["seen_sources"] = int(np.isin(sources, trained).sum())
        trained = sources if name == "train" else trained
        found[name] = {**facts, "shares": _shares(facts)}
        split.tokens.release()
    warnings = [
        {"split": split, "name": name, "share": share, "above": WARN_ABOVE[name]}
        for split, facts in found.items()
        for name, share in facts["shares"].items()
        if share > WARN_ABOVE[name]
    ]
    return {"splits": found, "warnings": warnings}


def _shares(facts: Facts) -> dict[str, float]:
    pairs, told = max(facts["pairs"], 1), facts["sides"]
    source, target = facts["source"]["characters"], facts["target"]["characters"]
    shares = {
        "cut sources": facts["source"]["cut"] / pairs,
        "cut targets": facts["target"]["cut"] / pairs,
        "empty texts": facts["empty"] / pairs,
        "records set aside": facts["set_aside"] / max(facts["read"] + facts["set_aside"], 1),
        "repeated pairs": facts["repeated_pairs"] / pairs,
        "targets equal to their source": facts["equal"] / pairs,
        "sources seen in training": facts.get("seen_sources", 0) / pairs,
        "unknown characters in sources": source["unknown_share"],
        "lost characters in targets": target["unknown_share"] + target["normalised_share"],
    }
    if told["told_apart"]:
        shares["pairs with exchanged sides"] = told["exchanged"] / told["examined"]
        shares["pairs with both texts of one side's language"] = told["one_side"] / told["examined"]
    return shares


def _repeats(rows: Rows) -> tuple[Facts, npt.NDArray[np.int64]]:
    """Count what stands twice; return a hash of each source too, which is another in another process."""
    sources, pairs = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    empty = equal = 0
    for start in range(0, len(rows), _BATCH_ROWS):
        part = slice(start, start + _BATCH_ROWS)
        for index, texts in enumerate(zip(rows.sources[part], rows.targets[part], strict=True), start):
            source, target = (" ".join(text.lower().split()) for text in texts)
            sources[index], pairs[index] = hash(source), hash((source, target))
            empty += not source or not target
            equal += source == target
    counts = {"pairs": len(rows), "empty": empty, "equal": equal}
    counts |= {"set_aside": len(rows.set_aside), "read": rows.drawn_from or len(rows)}
    repeated = {"repeated_sources": sources, "repeated_pairs": pairs}
    return counts | {name: len(some) - len(np.unique(some)) for name, some in repeated.items()}, sources


def _lengths(split: EncodedSplit) -> Facts:
    lengths, facts = split.tokens.lengths, Facts()
    for side, (name, cut) in enumerate(zip(("source", "target"), split.tokens.num_truncated, strict=True)):
        tokens = lengths[:, side]
        width = max(math.ceil((int(tokens.max(initial=0)) + 1) / NUM_BINS), 1)
        facts[name] = {
            "cut": cut, "tokens": int(tokens.sum(dtype=np.int64)), "longest": int(tokens.max(initial=0)),
            "median": float(np.median(tokens)), "p95": float(np.percentile(tokens, 95)),
            "histogram": {"width": width, "counts": np.bincount(tokens // width).tolist()},
        }  # fmt: skip
    facts["longer_targets"] = int((lengths[:, 1] > lengths[:, 0]).sum())
    return facts


def _sampled(rows: Rows, most: int) -> tuple[list[str], list[str]]:
    """Take pairs at even distances."""
    chosen = np.linspace(0, len(rows) - 1, min(most, len(rows)), dtype=np.int64).tolist()
    return [rows.sources[index] for index in chosen], [rows.targets[index] for index in chosen]


def lost_characters(texts: Sequence[str], tokenizer: "Tokenizer", unknown_id: int | None) -> Facts:
    """Tokenise texts and back, and count what is not there any more, white space apart.

    Returns:
        `unknown`: characters inside unknown tokens; `normalised`: others, such as capitals and accents; the share of
        each, and the most frequent with their numbers.
    """
    unknown, lost = Counter[str](), Counter[str]()
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    backs = tokenizer.decode_batch([one.ids for one in encodings], skip_special_tokens=True)
    for text, one, back in zip(texts, encodings, backs, strict=True):
        places = (place for token, place in zip(one.ids, one.offsets, strict=True) if token == unknown_id)
        missing = Counter("".join("".join(text[start:end] for start, end in places).split()))
        unknown += missing
        lost += Counter("".join(text.split())) - Counter("".join(back.split())) - missing
    total = sum(len("".join(text.split())) for text in texts)
    facts: Facts = {"examined": len(texts)}
    for name, some in (("unknown", unknown), ("normalised", lost)):
        facts |= {f"{name}_share": some.total() / max(total, 1), name: dict(some.most_common(NUM_SHOWN))}
    return facts


def sides(sources: Sequence[str], targets: Sequence[str]) -> Facts:
    """Find pairs whose texts belong to the other side, by the words (signs, without spaces) that one side prefers.

    A word's weight is the logarithm of its frequency in sources over that in targets; a text's is the mean of its
    words'. Where most pairs have two texts that surely belong to their sides, as in translation, the others are
    counted; elsewhere (summaries, splitting) nothing is said. Up to about a third of the pairs may be exchanged: with
    more, neither side has a language of its own.
    """
    texts = [[_words(text) for text in side] for side in (sources, targets)]
    counts = [Counter(word for words in side for word in words) for side in texts]
    totals = [max(one.total(), 1) for one in counts]
    weights = {
        word: math.log((counts[0][word] + 0.5) / totals[0]) - math.log((counts[1][word] + 0.5) / totals[1])
        for word in counts[0] | counts[1]
        if counts[0][word] + counts[1][word] >= KNOWN_FROM
    }
    kinds = Counter[tuple[int, int]]()
    for pair in zip(*texts, strict=True):
        scores = [_mean(weights[word] for word in words if word in weights) for words in pair]
        if None not in scores:
            kinds[_sign(scores[0]), _sign(scores[1])] += 1
    examined, right = kinds.total(), kinds[1, -1]
    told = right >= TOLD_APART_FROM * examined and right >= KNOWN_FROM
    one_side = kinds[1, 1] + kinds[-1, -1]
    return {"examined": examined, "told_apart": told, "exchanged": kinds[-1, 1], "one_side": one_side}


def _words(text: str) -> list[str]:
    return [*text.lower().split(), *(sign for sign in text if sign >= "\u3040")]


def _mean(values: Iterable[float]) -> float | None:
    some = list(values)
    return sum(some) / len(some) if len(some) >= MIN_KNOWN else None


def _sign(score: float | None) -> int:
    return 0 if score is None or abs(score) < SURE else int(math.copysign(1, score))
