"""Sample predictions: which ones are shown, and where prediction and reference differ word by word."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path

from encdec_train.jsonl import read_rows

MAX_CHARACTERS = 1200  # of a text; a news article is cut
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Sample:
    """One prediction."""

    id: str  # of the example
    source: str  # what was rewritten
    prediction: str  # what the model wrote
    reference: str  # the closest of the references
    num_references: int  # how many there are


def pick_samples(path: Path, number: int) -> list[Sample]:
    """Take samples at even distances through a prediction file: chosen by position, never by how good they are.

    Raises:
        DataError: A line is no JSON object.
    """
    total = sum(1 for _ in read_rows(path))
    wanted = {index * total // number for index in range(number)} if total else set()
    rows = (row for index, row in enumerate(islice(read_rows(path), total)) if index in wanted)
    return [_sample(row, index) for index, row in enumerate(rows)]


def mark_differences(prediction: str, reference: str) -> tuple[str, str]:
    """Escape two texts for HTML and mark the words that the other one lacks.

    Returns:
        The prediction with `<ins>`, the reference with `<del>` around runs of such words.
    """
    ours, theirs = prediction.split(), reference.split()
    marked_ours, marked_theirs = [], []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        marked_ours += _marked(ours[a:b], "" if kind == "equal" else "ins")
        marked_theirs += _marked(theirs[c:d], "" if kind == "equal" else "del")
    return " ".join(marked_ours), " ".join(marked_theirs)


def _marked(words: Sequence[str], tag: str) -> list[str]:
    text = escape(" ".join(words))
    return [f"<{tag}>{text}</{tag}>" if tag else text] if words else []


def _sample(row: dict[str, object], index: int) -> Sample:
    references = row.get("references") or [""]
    texts = [str(text) for text in references] if isinstance(references, list) else [str(references)]
    prediction = str(row.get("prediction", ""))
    words = prediction.split()
    closest = max(texts, key=lambda text: difflib.SequenceMatcher(None, words, text.split(), autojunk=False).ratio())
    return Sample(
        id=str(row.get("id", index)),
        source=_cut(str(row.get("source") or "")),
        prediction=_cut(prediction),
        reference=_cut(closest),
        num_references=len(texts),
    )


def _cut(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    words = list(_WORD.finditer(text, 0, MAX_CHARACTERS))
    end = words[-1].start() if len(words) > 1 else MAX_CHARACTERS
    return text[:end].rstrip() + " […]"
