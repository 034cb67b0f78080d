"""Predictions: one for each index, in order, in a file that is whole or not there."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from encdec_train import distributed
from encdec_train.config import Overlong
from encdec_train.data.load import Rows
from encdec_train.data.preprocess import EncodedSplit, Limits, TextCodec, encode_split
from encdec_train.decoding import predictions
from encdec_train.decoding.predictions import predict, predict_file, prefixed, read_predictions
from encdec_train.decoding.search import Engine, SearchSettings, decode
from encdec_train.errors import ConfigError, DataError, ModelError

GREEDY = SearchSettings(num_beams=1, length_penalty=1.0, max_new_tokens=12, no_repeat_ngram=0, max_batch_tokens=100)
SOURCES = ["cat dog", "the cat sat on the mat", "she", "a bird flew over the old red house", "it ran"]


@pytest.fixture
def codec(tiny_source: Any) -> TextCodec:
    """The tiny BERT's tokenizer on both sides."""
    tokenizer = tiny_source.tokenizer
    return TextCodec(tokenizer, tokenizer, decoder_start_id=2, eos_id=3, pad_id=0, source_pad_id=0)


@pytest.fixture
def split(codec: TextCodec) -> EncodedSplit:
    """Five sources."""
    rows = Rows(list("abcde"), SOURCES, SOURCES, [[source] for source in SOURCES])
    return encode_split(rows, codec, Limits(16, 16, Overlong.refuse), name="test", cache_dir=None, cache_key=None)


def test_each_index_gets_its_text(talkative: Any, split: EncodedSplit, codec: TextCodec) -> None:
    tokenizer = codec.source_tokenizer
    tokens = decode(talkative, [tokenizer(source).input_ids for source in SOURCES], GREEDY)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]
    assert len(set(texts)) > 3
    assert predict(Engine(talkative), split, range(5), codec, GREEDY, "test") == texts
    assert predict(Engine(talkative), split, [3, 0, 3], codec, GREEDY, "test") == [texts[3], texts[0], texts[3]]
    assert predict(Engine(talkative), split, [], codec, GREEDY, "test") == []


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_ranks_decode_each_example_once(
    ranks: int, talkative: Any, split: EncodedSplit, codec: TextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = predict(Engine(talkative), split, range(5), codec, GREEDY, "test")
    shares: list[tuple[int, str]] = []
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    monkeypatch.setattr(distributed, "gather_ordered", shares.extend)
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        predict(Engine(talkative), split, range(5), codec, GREEDY, "test")
    assert sorted(shares) == list(enumerate(alone))


def test_the_file_written_out(talkative: Any, split: EncodedSplit, codec: TextCodec, tmp_path: Path) -> None:
    path, more = tmp_path / "sub" / "test.jsonl", ["größer\n", 'a "b"']
    split.rows.references[1].extend(more)
    texts = predict(Engine(talkative), split, range(5), codec, GREEDY, "test")
    predict_file(path, Engine(talkative), split, codec, GREEDY, "test")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert records == [
        {"id": "abcde"[n], "source": SOURCES[n], "prediction": texts[n],
         "references": [SOURCES[n], *(more if n == 1 else [])]}
        for n in range(5)
    ]  # fmt: skip
    assert [list(record) for record in records] == [["id", "source", "prediction", "references"]] * 5
    assert "größer" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["test.jsonl"]
    assert read_predictions(path) == (replace(split.rows, targets=SOURCES), texts)


@pytest.mark.parametrize("seven", [1, 3, 5])
def test_what_was_decoded_before_is_not_decoded_again(
    seven: int, talkative: Any, split: EncodedSplit, codec: TextCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, path = Engine(talkative), tmp_path / "test.jsonl"
    predict_file(path, engine, split, codec, GREEDY, "test")
    whole = path.read_bytes()
    append, count = predictions.Journal.append, []

    def killed(journal: Any, index: int, values: Any) -> None:
        append(journal, index, values)
        count.append(index)
        if len(count) == seven:
            raise KeyboardInterrupt

    monkeypatch.setattr(predictions.Journal, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_file(tmp_path / "again.jsonl", engine, split, codec, GREEDY, "test")
    assert not (tmp_path / "again.jsonl").exists()
    before, searched = list(count), list[int]()
    search = Engine.search
    monkeypatch.setattr(
        Engine, "search", lambda own, sources, *rest: searched.extend(sources) or search(own, sources, *rest)
    )
    monkeypatch.setattr(predictions.Journal, "append", append)
    predict_file(tmp_path / "again.jsonl", engine, split, codec, GREEDY, "test")
    assert sorted([*before, *searched]) == [0, 1, 2, 3, 4]
    assert (tmp_path / "again.jsonl").read_bytes() == whole


def test_several_outputs_stand_beside_the_best(
    talkative: Any, split: EncodedSplit, codec: TextCodec, tmp_path: Path
) -> None:
    settings = replace(GREEDY, num_beams=3, num_return_sequences=2)
    predict_file(tmp_path / "n.jsonl", Engine(talkative), split, codec, settings, "test")
    for line in (tmp_path / "n.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        texts, scores = ([one[key] for one in record["nbest"]] for key in ("prediction", "score"))
        assert texts[0] == record["prediction"]
        assert len({*texts}) == 2
        assert scores == sorted(scores, reverse=True)


def test_a_source_of_unknown_tokens_has_an_empty_output(talkative: Any, codec: TextCodec) -> None:
    sources = {0: [2, 6, 3], 1: [2, 1, 1, 3], 2: [2, 3], 3: []}
    found = dict(predictions.predictions(Engine(talkative), codec, sources, GREEDY, str))
    assert [found[index].texts for index in (1, 2, 3)] == [[""]] * 3
    assert found[0].texts[0]


def test_damaged_weights_name_the_example(talkative: Any, split: EncodedSplit, codec: TextCodec) -> None:
    word = codec.source_tokenizer.convert_tokens_to_ids("she")
    talkative.encoder.embeddings.word_embeddings.weight.data[word] = float("nan")
    with pytest.raises(ModelError, match=r"^example 'c': expected logits that are numbers"):
        predict(Engine(talkative), split, range(5), codec, GREEDY, "test")


def test_every_output_begins_with_the_prefix(talkative: Any, split: EncodedSplit, codec: TextCodec) -> None:
    texts = predict(Engine(talkative), split, range(5), codec, replace(GREEDY, prefix="The Cat"), "test")
    assert all(text.startswith("the cat") for text in texts)
    assert len({*texts}) > 2


@pytest.mark.parametrize("prefix", ["zebra", "cat [SEP]", " "])
def test_a_prefix_that_cannot_be_continued(prefix: str, codec: TextCodec) -> None:
    with pytest.raises(
        ConfigError, match=r"^decoding.prefix: expected text that can be continued, got .*the tokenizer reads"
    ):
        prefixed(replace(GREEDY, prefix=prefix), codec)


def test_anybodys_file_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.jsonl"
    lines = [{"prediction": "a b", "references": "a", "id": "x"}, {"prediction": "", "references": ["b", "c"], "id": 7}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, texts = read_predictions(path)
    assert texts == ["a b", ""]
    assert found == Rows(["x", "7"], ["", ""], ["a", "b"], [["a"], ["b", "c"]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"l:line 2: expected a JSON object; Expecting"),
        (b"\xff", r"l:line 2: expected UTF-8; byte 1 is 0xff. Save the file as UTF-8"),
        (b"[1]", r"l:line 2: expected a JSON object; its type is list. Write one object a line"),
        (b"{}", r"l:line 2:prediction: expected text"),
        (b'{"prediction": 1, "references": ["a"]}', r"l:line 2:prediction: expected text"),
        (
            b'{"prediction": "a"}',
            r"l:line 2:references: expected a list of texts\. Add them, or name .* task\.test_file",
        ),
        (b'{"prediction": "a", "references": []}', r"l:line 2:references: expected a list of texts, got \[\]"),
        (
            b'{"prediction": "a", "references": [1]}',
            r"l:line 2:references: expected a list of texts, got \[1\]",
        ),
        (b'{"prediction": "a", "references": ["a"], "source": null}', r"l:line 2:source: expected text"),
    ],
)
def test_a_line_that_is_no_prediction_is_named(line: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(b'{"prediction": "a", "references": ["a"]}\n' + line + b"\n")
    with pytest.raises(DataError, match=message):
        read_predictions(path)


TEXTS = ["wort", "", "Zeile 3 "]
SPLIT = Rows(["x", "7", "z"], ["s", "t", "u"], ["a", "b", "c"], [["a"], ["b", "d"], ["c"]])


def records(*ids: object, **more: object) -> str:
    return "".join(json.dumps({"id": i, "prediction": TEXTS[n % 3], **more}) + "\n" for n, i in enumerate(ids))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.jsonl", records("x", 7, "z")),
        ("p.jsonl", "".join(records("x", 7, "z").splitlines(keepends=True)[::-1])),
        ("p.jsonl", records("x", "7", "z", references=["of another split"], source="no")),
        ("p.jsonl", "\n".join(json.dumps({"prediction": text}) for text in TEXTS)),
        ("p", records("x", 7, "z")),
        ("p.csv", "prediction,id\nwort,x\n,7\nZeile 3 ,z\n"),
        ("p.tsv", "id\tprediction\n7\t\nx\twort\nz\tZeile 3 \n"),
        ("p.txt", "wort\n\nZeile 3 \n"),
        ("p.txt", "\ufeffwort\r\n\r\nZeile 3 "),
        ("p.de", "wort\n\nZeile 3 \n"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_form_is_joined_to_the_split(zipped: bool, name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / (f"{name}.gz" if zipped else name)
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    assert read_predictions(path, SPLIT) == (SPLIT, TEXTS)


def test_a_parquet_file_is_joined_too(tmp_path: Path) -> None:
    table = pa.table({"id": [7, 1, 2], "prediction": ["b", "c", "a"], "source": ["", "", ""]})
    parquet.write_table(table, tmp_path / "p.parquet")
    rows = Rows(["2", "7", "1"], SPLIT.sources, SPLIT.targets, SPLIT.references)
    assert read_predictions(tmp_path / "p.parquet", rows) == (rows, ["a", "b", "c"])


def test_plain_text_may_look_like_json_after_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text('{"a\n{"prediction": 1}\n[1]\n')
    assert read_predictions(tmp_path / "p.txt", SPLIT)[1] == ['{"a', '{"prediction": 1}', "[1]"]


WRONG: list[tuple[str, bytes, str]] = [
    ("p.jsonl", records("x", "z").encode(), "@: expected a prediction for example '7', got 'none'."),
    ("p.jsonl", records("x", "7", "z", "x").encode(),
     "@:line 4:id: expected an id of its own, got 'x'; @:line 1 has the same."),
    ("p.jsonl", records("x", "7", "y", "z").encode(), "@:line 3:id: expected the id of an example, got 'y'."),
    ("p.jsonl", records("x", "7", "y").encode(),
     "@:line 3:id: expected the id of an example, got 'y'.\n@: expected a prediction for example 'z', got 'none'."),
    ("p.jsonl", records("x", None, "7", "z").encode(), "@:line 2:id: expected an id, as others have one."),
    ("p.jsonl", records("x", True, "7", "z").encode(), "@:line 2:id: expected an id, as others have one, got True."),
    ("p.jsonl", records("x", "7", "z").encode() + b'{"prediction": "a"}',
     "@:line 4:id: expected an id, as others have one."),
    ("p.jsonl", records(*"abcd").encode(),
     "\n".join([*(f"@:line {n}:id: expected the id of an example, got '{i}'." for n, i in enumerate("abcd", 1)),
                "@: expected a prediction for example 'x', got 'none'.", "and 2 more."])),
    ("p.jsonl", b'{"prediction": ""}\n', "@: expected 3 predictions, one an example, got 1; example '7' is left over."),
    ("p.txt", b"a\nb\n", "@: expected 3 predictions, one an example, got 2; example 'z' is left over."),
    ("p.txt", b"a\nb\nc\n\n", "@: expected 3 predictions, one an example, got 4; @:line 4 is left over."),
    ("p.txt", b"a\nb\nc\xff\n", "@:line 3: expected UTF-8; byte 2 is 0xff. Save the file as UTF-8."),
    ("p.jsonl", b'{"id": 1, "text": "\xe9"}', "@:line 1: expected UTF-8; byte 20 is 0xe9. Save the file as UTF-8."),
    ("p.txt", b"", "@: expected at least one prediction, got 'an empty file'."),
    ("p.jsonl", b"\n\n", "@: expected at least one prediction, got 'an empty file'."),
    ("p.csv", b"id,prediction\n", "@: expected at least one prediction, got 'an empty file'."),
    ("p.csv", b"id,text\nx,y\n", "@:line 2:prediction: expected text, got {'id': 'x', 'text': 'y'}."),
    ("p.txt.gz", gzip.compress(b"a\nb\nc\n")[:-9], "predictions: expected a file that can be read to its end, got '@'; "
     "Compressed file ended before the end-of-stream marker was reached."),
    ("p.parquet", b"PAR1", "predictions: expected a file that can be read to its end, got '@'; Parquet file size is 4 "
     "bytes, smaller than the minimum file footer (8 bytes)."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), WRONG)
def test_what_cannot_be_joined_is_said_with_its_place(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_predictions(path, SPLIT)
    assert str(caught.value) == message.replace("@", str(path))


def test_plain_text_alone_has_no_references(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"p\.txt:line 1:references: expected a list of texts\. .* task\.test_file=…"):
        read_predictions(tmp_path / "p.txt")


def test_a_file_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"predictions: expected a file, got .*no such file"):
        read_predictions(tmp_path / "nothing.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty.jsonl: expected at least one prediction, got 'an empty file'"):
        read_predictions(tmp_path / "empty.jsonl")


def test_a_pipe_is_written_while_the_bar_is_silent(
    talkative: Any, split: EncodedSplit, codec: TextCodec, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(Engine(talkative), split, range(5), codec, GREEDY, "decode test")
    captured = capsys.readouterr()
    assert captured.out == ""  # standard output belongs to what scripts read
    assert "decode test 5/5" in captured.err
