"""Predictions: each example decoded once, on any number of ranks, and written in data order."""

import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encdec_train import console, distributed
from encdec_train.data.formats import reader_of, text_lines, unzipped
from encdec_train.data.load import NUM_SHOWN_ROWS, Rows
from encdec_train.decoding.journal import Journal
from encdec_train.errors import ConfigError, DataError, fault
from encdec_train.fingerprint import json_sha256

if TYPE_CHECKING:
    from encdec_train.data.collate import Tokens
    from encdec_train.data.preprocess import EncodedSplit, TextCodec
    from encdec_train.decoding.search import Engine, SearchSettings


@dataclass(frozen=True)
class Prediction:
    """The outputs of one example."""

    texts: Sequence[str]  # the best first; an empty one where there is none
    scores: Sequence[float]  # of each; none where there is no output
    close: bool  # see `loop.Found`

    @property
    def values(self) -> dict[str, Any]:
        """What the journal and, of several outputs, the prediction file keep."""
        if len(self.scores) < 2:
            return {"prediction": self.texts[0]}
        several = [{"prediction": t, "score": round(s, 4)} for t, s in zip(self.texts, self.scores, strict=True)]
        return {"prediction": self.texts[0], "nbest": several}


def predictions(
    engine: "Engine",
    codec: "TextCodec",
    sources: "Mapping[int, Tokens]",
    settings: "SearchSettings",
    name: Callable[[int], str],
) -> "Iterator[tuple[int, Prediction]]":
    """Decode sources by number and yield each as it finishes; `name` says in messages which one a number is.

    A source of special and unknown tokens only says nothing to the model: its output is empty, without a search.

    Raises:
        EncDecError: What `Engine.search` raises, or the prefix cannot be continued.
    """
    silent = set(codec.source_tokenizer.all_special_ids)
    given = {index: tokens if not silent.issuperset(tokens) else () for index, tokens in sources.items()}
    for found in engine.search(given, prefixed(settings, codec), name):
        texts = [codec.decode(one.tokens) for one in found.hypotheses]
        yield found.index, Prediction(texts or [""], [one.score for one in found.hypotheses], found.close)


def prefixed(settings: "SearchSettings", codec: "TextCodec") -> "SearchSettings":
    """Give the settings the tokens of their prefix.

    Raises:
        ConfigError: It has none, or some that the decoder's tokenizer does not know or that end a text.
    """
    if not settings.prefix:
        return settings
    ids = codec.encode_targets([settings.prefix])[0][:-1]
    if not ids or set(ids) & set(codec.target_tokenizer.all_special_ids):
        reason = f"the tokenizer reads {codec.target_tokenizer.convert_ids_to_tokens(ids)}"
        raise ConfigError(fault("decoding.prefix", "text that can be continued", settings.prefix, reason))
    return replace(settings, prefix_ids=tuple(ids))


def predict(
    engine: "Engine",
    split: "EncodedSplit",
    indices: Sequence[int],
    codec: "TextCodec",
    settings: "SearchSettings",
    label: str,
) -> list[str]:  # fmt: skip
    """Decode the examples of a split that `indices` names; every rank must call it, and decodes its share.

    Returns:
        A text for each index, the same list on every rank.
    """
    mine = range(distributed.rank(), len(indices), distributed.world_size())
    work = _Work(engine, split, codec, settings, label)
    found = [(position, one.texts[0]) for position, one in work.predict({p: indices[p] for p in mine})]
    distributed.moved(label, waits=True)
    return distributed.gather_ordered(found)


def predict_file(
    path: Path, engine: "Engine", split: "EncodedSplit", codec: "TextCodec", settings: "SearchSettings", label: str
) -> None:
    """Decode a split into a file of `{"id","source","prediction","references"}` in data order; every rank must call it.

    What an earlier start with the same model, settings and sources has finished is not decoded again. With more than
    one output an example, the others are in `nbest`, with scores.
    """
    work, rows, ranks = _Work(engine, split, codec, settings, label), split.rows, distributed.world_size()
    with Journal(path, work.key(), len(split), distributed.rank()) as journal:
        missing = journal.missing()
        distributed.barrier()  # before anybody writes: all have read the same
        if len(missing) < len(split):
            console.say(f"{label}: {len(split) - len(missing):,} of {len(split):,} were decoded before")
        order = missing[(-split.source_lengths[missing]).argsort(kind="stable")]
        for index, one in work.predict({int(i): int(i) for i in order[distributed.rank() :: ranks]}):
            journal.append(index, one.values)
        distributed.moved(label, waits=True)
        distributed.barrier()
        if distributed.rank() == 0:
            journal.finish(lambda index, values: _line(rows, index, values))
        distributed.barrier()


@dataclass(frozen=True)
class _Work:
    """What is decoded, with what."""

    engine: "Engine"
    split: "EncodedSplit"
    codec: "TextCodec"
    settings: "SearchSettings"
    label: str

    def key(self) -> str:
        """Hash what the predictions depend on."""
        from encdec_train.data.preprocess import codec_fingerprint

        sources = sha256()
        for index in range(len(self.split)):
            tokens = self.split.source_ids[index]
            sources.update(len(tokens).to_bytes(4, "big") + tokens.tobytes())
        settings = {key: str(value) for key, value in asdict(self.settings).items() if key != "max_batch_tokens"}
        parts = [self.engine.fingerprint(), settings, sources.hexdigest(), codec_fingerprint(self.codec)]
        return json_sha256([*parts, list(self.split.rows.ids)])[:12]

    def predict(self, chosen: Mapping[int, int]) -> Iterator[tuple[int, Prediction]]:
        """Decode examples of the split, numbered by the caller."""
        ids, started, close = self.split.rows.ids, time.monotonic(), 0
        sources = dict(zip(chosen, self.split.take(chosen.values())[0], strict=True))
        with console.progress(len(chosen), self.label) as bar:
            name = lambda number: f"example {ids[chosen[number]]!r}"  # noqa: E731
            found = predictions(self.engine, self.codec, sources, self.settings, name)
            for done, (number, one) in enumerate(found, start=1):
                close += one.close
                distributed.moved(self.label)
                bar.advance(sentences_per_second=done / max(time.monotonic() - started, 1e-3))
                yield number, one
        if close:
            console.say(f"{self.label}: in {close:,} of {len(chosen):,} a choice was closer than 1e-5")


def _line(rows: Rows, index: int, values: Mapping[str, Any]) -> str:
    record = {
        "id": rows.ids[index],
        "source": rows.sources[index],
        "prediction": values["prediction"],
        "references": rows.references[index],
        **({"nbest": values["nbest"]} if "nbest" in values else {}),
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


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
