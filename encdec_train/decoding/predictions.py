"""Predictions: each example decoded once, on any number of ranks, and written in data order."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encdec_train import console, distributed
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
    """Decode examples of a split; every rank must call it, and decodes its share.

    Args:
        model: The pair.
        split: The tokenised split.
        indices: Which examples, in the order wanted.
        codec: Turns tokens back into text.
        settings: How to search.
        label: Shown at the progress bar.

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
    """Write `{"id","source","prediction","references"}` in data order, atomically."""
    lines = [
        json.dumps({"id": i, "source": s, "prediction": p, "references": r}, ensure_ascii=False)
        for i, s, p, r in zip(rows.ids, rows.sources, predictions, rows.references, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    beside.replace(path)


def read_predictions(path: Path) -> tuple[Rows, list[str]]:
    """Read a prediction file, ours or anybody's: JSONL with `prediction` and `references`; `id` and `source` may lack.

    Raises:
        DataError: When it is missing or empty, or a line is not such an object.
    """
    if not path.is_file():
        raise DataError(fault("predictions", "a JSONL file of predictions", str(path), "there is no such file"))
    records = [_record(path, number, line) for number, line in enumerate(path.read_bytes().splitlines(), start=1)]
    if not records:
        raise DataError(fault(str(path), "at least one prediction", "an empty file"))
    references = [record["references"] for record in records]
    rows = Rows(
        ids=[str(record.get("id", index)) for index, record in enumerate(records)],
        sources=[record.get("source", "") for record in records],
        targets=[several[0] for several in references],
        references=references,
    )
    return rows, [record["prediction"] for record in records]


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(fault(f"{path}:{number}", "a JSON object", None, str(error))) from error
    if not isinstance(record, dict) or not isinstance(record.get("prediction"), str):
        raise DataError(fault(f"{path}:{number}:prediction", "text", record))
    if not isinstance(record.get("source", ""), str):
        raise DataError(fault(f"{path}:{number}:source", "text", record["source"]))
    references = record.get("references")
    if isinstance(references, str):
        record["references"] = references = [references]
    if not isinstance(references, list) or not references or not all(isinstance(text, str) for text in references):
        raise DataError(fault(f"{path}:{number}:references", "a list of texts", references))
    return record
