"""Predictions: each example decoded once, on any number of ranks, and written in data order."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encdec_train import atomic, console, distributed
from encdec_train.data.formats import json_lines
from encdec_train.data.load import Rows
from encdec_train.errors import DataError, fault

if TYPE_CHECKING:
    from transformers import EncoderDecoderModel

    from encdec_train.data.preprocess import EncodedSplit, TextCodec
    from encdec_train.decoding.search import SearchSettings


def predict(
    model: "EncoderDecoderModel",
    split: "EncodedSplit",
    indices: Sequence[int],
    codec: "TextCodec",
    settings: "SearchSettings",
    label: str,
) -> list[str]:
    """Decode the examples of a split that `indices` names; every rank must call it, and decodes its share.

    Returns:
        A text for each index, the same list on every rank.
    """
    from encdec_train.decoding.search import decode

    mine = range(distributed.rank(), len(indices), distributed.world_size())
    sources, _ = split.take([indices[position] for position in mine])
    with console.progress(len(mine), label) as bar:
        tokens = decode(model, sources, settings, on_done=bar.advance)
    texts = [codec.decode(ids) for ids in tokens]
    return distributed.gather_ordered(list(zip(mine, texts, strict=True)))


def write_predictions(path: Path, rows: Rows, predictions: Sequence[str]) -> None:
    """Write `{"id","source","prediction","references"}` in data order."""
    lines = [
        json.dumps({"id": i, "source": s, "prediction": p, "references": r}, ensure_ascii=False) + "\n"
        for i, s, p, r in zip(rows.ids, rows.sources, predictions, rows.references, strict=True)
    ]
    atomic.write(path, "".join(lines).encode())


def read_predictions(path: Path) -> tuple[Rows, list[str]]:
    """Read a prediction file, ours or anybody's: JSONL with `prediction` and `references`; `id` and `source` may lack.

    Raises:
        DataError: When it is missing or empty, or a line is not such an object.
    """
    if not path.is_file():
        raise DataError(fault("predictions", "a JSONL file of predictions", str(path), "there is no such file"))
    with path.open("rb") as file:
        records = [_checked(record, path, number) for number, record in json_lines(file, set())]
    if not records:
        raise DataError(fault(str(path), "at least one prediction", "an empty file"))
    ids = [str(record.get("id", index)) for index, record in enumerate(records)]
    references = [record["references"] for record in records]
    rows = Rows(ids, [record.get("source", "") for record in records], [texts[0] for texts in references], references)
    return rows, [record["prediction"] for record in records]


def _checked(record: dict[str, Any] | str, path: Path, number: int) -> dict[str, Any]:
    """Pass a line on, with a list of references, or say what is wrong with it."""
    if isinstance(record, str):
        raise DataError(f"{path}:{record}")
    where = f"{path}:line {number}"
    if not isinstance(record.get("prediction"), str):
        raise DataError(fault(f"{where}:prediction", "text", record))
    if not isinstance(record.get("source", ""), str):
        raise DataError(fault(f"{where}:source", "text", record["source"]))
    references = record.get("references")
    texts = [references] if isinstance(references, str) else references
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(fault(f"{where}:references", "a list of texts", references))
    return {**record, "references": texts}
