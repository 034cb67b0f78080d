"""Predictions: each example decoded once, on any number of ranks, and written in data order."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encdec_train import atomic, console, distributed
from encdec_train.data.formats import reader_of, text_lines, unzipped
from encdec_train.data.load import NUM_SHOWN_ROWS, Rows
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

        def done(count: int) -> None:
            distributed.moved(label)
            bar.advance(count)

        tokens = decode(model, sources, settings, on_done=done)
    distributed.moved(label, waits=True)
    texts = [codec.decode(ids) for ids in tokens]
    return distributed.gather_ordered(list(zip(mine, texts, strict=True)))


def write_predictions(path: Path, rows: Rows, predictions: Sequence[str]) -> None:
    """Write `{"id","source","prediction","references"}` in data order."""
    lines = [
        json.dumps({"id": i, "source": s, "prediction": p, "references": r}, ensure_ascii=False) + "\n"
        for i, s, p, r in zip(rows.ids, rows.sources, predictions, rows.references, strict=True)
    ]
    atomic.write(path, "".join(lines).encode())


def read_predictions(path: Path, split: Rows | None = None) -> tuple[Rows, list[str]]:
    """Read a prediction file, ours or anybody's, and join it to a split's rows where they are given.

    A record (JSONL, CSV, TSV, Parquet) has a `prediction`, and `references` (perhaps `id`, `source`) where there is no
    split. Other files are plain text: a line is a prediction, a blank one an empty prediction. What has ids is joined
    by id, in any order, what has none by position.

    Returns:
        Rows, and the prediction of each: in the split's order, else in the file's.

    Raises:
        DataError: A line or record cannot be used, or predictions and the split's rows are not one to one.
    """
    records = _records(path)
    if not records:
        raise DataError(fault(str(path), "at least one prediction", "an empty file"))
    ids = _ids(path, records, split)
    if split is not None:
        texts = dict(zip(ids, (record["prediction"] for _, record in records), strict=True))
        return split, [texts[own] for own in split.ids]
    references = [_references(record, where) for where, record in records]
    sources = [record.get("source", "") for _, record in records]
    rows = Rows(ids, sources, [several[0] for several in references], references)
    return rows, [record["prediction"] for _, record in records]


_Records = list[tuple[str, dict[str, Any]]]  # each with the place where it stands


def _records(path: Path) -> _Records:
    reader, unit = reader_of(path, "predictions", text_lines)
    try:
        with path.open("rb") as file, unzipped(file, path) as stream:
            found = list(reader(stream, {"prediction", "source"}))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(fault("predictions", "a file that can be read to its end", str(path), str(error))) from error
    for number, record in found:
        if isinstance(record, str):
            raise DataError(f"{path}:{record}")
        if not isinstance(record.get("prediction"), str):
            raise DataError(fault(f"{path}:{unit} {number}:prediction", "text", record))
        if not isinstance(record.get("source", ""), str):
            raise DataError(fault(f"{path}:{unit} {number}:source", "text", record["source"]))
    return [(f"{path}:{unit} {number}", record) for number, record in found if isinstance(record, dict)]


def _references(record: dict[str, Any], where: str) -> list[str]:
    references = record.get("references")
    texts = [references] if isinstance(references, str) else references
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        remedy = "Add them, or name the rows that were predicted: task.test_file=…"
        raise DataError(fault(f"{where}:references", "a list of texts", references, remedy=remedy))
    return texts


def _ids(path: Path, records: _Records, split: Rows | None) -> Sequence[str]:
    """Return the id of each record: with a split, each of the split's once."""
    rows = split.ids if split is not None else [str(index) for index in range(len(records))]
    if not any("id" in record for _, record in records):
        if len(records) == len(rows):
            return rows
        odd = f"example {rows[len(records)]!r}" if len(records) < len(rows) else records[len(rows)][0]
        reason = f"{odd} is left over"
        raise DataError(fault(str(path), f"{len(rows)} predictions, one an example", len(records), reason))
    faults, places = list[str](), dict[str, str]()
    known = set(rows)
    for where, record in records:
        value = record.get("id")
        own = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
        if not own:
            faults.append(fault(f"{where}:id", "an id, as others have one", value))
        elif own in places:
            faults.append(fault(f"{where}:id", "an id of its own", own, f"{places[own]} has the same"))
        elif split is not None and own not in known:
            faults.append(fault(f"{where}:id", "the id of an example", own))
        places.setdefault(own, where)
    if split is not None:
        faults += [fault(str(path), f"a prediction for example {own!r}", "none") for own in rows if own not in places]
    if faults:
        more = [f"and {len(faults) - NUM_SHOWN_ROWS} more."] if len(faults) > NUM_SHOWN_ROWS else []
        raise DataError("\n".join([*faults[:NUM_SHOWN_ROWS], *more]))
    return list(places)
