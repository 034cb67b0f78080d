"""Pretrain a tiny BERT with a WordPiece vocabulary of its own on plain text, by masked-language modelling."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def wordpieces(words: Counter[str], size: int) -> list[str]:
    """Merge characters into pieces until the vocabulary is full; ties go to the pair that sorts first."""
    spelt = {word: [word[0], *(f"##{c}" for c in word[1:])] for word in words}
    vocabulary = dict.fromkeys(SPECIAL)
    vocabulary.update(dict.fromkeys(sorted({piece for pieces in spelt.values() for piece in pieces})))
    while len(vocabulary) < size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in spelt.items():
            for pair in zip(pieces, pieces[1:], strict=False):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merged = best[0] + best[1].removeprefix("##")
        vocabulary[merged] = None
        for pieces in spelt.values():
            for i in range(len(pieces) - 2, -1, -1):
                if i + 1 < len(pieces) and (pieces[i], pieces[i + 1]) == best:
                    pieces[i : i + 2] = [merged]
    return list(vocabulary)
