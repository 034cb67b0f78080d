"""Predictions: one for each index, in order, in a file that is whole or not there."""

import json
from pathlib import Path
from typing import Any

import pytest

from encdec_train import distributed
from encdec_train.config import Overlong
from encdec_train.data.load import Rows
from encdec_train.data.preprocess import EncodedSplit, Limits, TextCodec, encode_split
from encdec_train.decoding.predictions import predict, read_predictions, write_predictions
from encdec_train.decoding.search import SearchSettings, decode
from encdec_train.errors import DataError

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
    assert predict(talkative, split, range(5), codec, GREEDY, "test") == texts
    assert predict(talkative, split, [3, 0, 3], codec, GREEDY, "test") == [texts[3], texts[0], texts[3]]
    assert predict(talkative, split, [], codec, GREEDY, "test") == []


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_ranks_decode_each_example_once(
    ranks: int, talkative: Any, split: EncodedSplit, codec: TextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = predict(talkative, split, range(5), codec, GREEDY, "test")
    shares: list[tuple[int, str]] = []
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    monkeypatch.setattr(distributed, "gather_ordered", shares.extend)
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        predict(talkative, split, range(5), codec, GREEDY, "test")
    assert sorted(shares) == list(enumerate(alone))


@pytest.fixture
def rows() -> Rows:
    """Two rows, one with two references."""
    return Rows(["x", "1"], ["größe", 'a "b"\n c'], ["t", "u"], [["t"], ["u", "v"]])


def test_the_file_written_out(rows: Rows, tmp_path: Path) -> None:
    path = tmp_path / "predictions" / "test.jsonl"
    write_predictions(path, rows, ["größer", ""])
    assert path.read_text(encoding="utf-8") == (
        '{"id": "x", "source": "größe", "prediction": "größer", "references": ["t"]}\n'
        '{"id": "1", "source": "a \\"b\\"\\n c", "prediction": "", "references": ["u", "v"]}\n'
    )
    assert [file.name for file in path.parent.iterdir()] == ["test.jsonl"]
    assert read_predictions(path) == (rows, ["größer", ""])


def test_too_few_predictions_leave_the_file_as_it_was(rows: Rows, tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text("before")
    with pytest.raises(ValueError, match="shorter"):
        write_predictions(path, rows, ["one"])
    assert path.read_text() == "before"


def test_anybodys_file_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.jsonl"
    lines = [{"prediction": "a b", "references": "a"}, {"prediction": "", "references": ["b", "c"], "id": 7, "more": 1}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, texts = read_predictions(path)
    assert texts == ["a b", ""]
    assert found == Rows(["0", "7"], ["", ""], ["a", "b"], [["a"], ["b", "c"]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"l:line 2: expected a JSON object; Expecting"),
        (b"\xff", r"l:line 2: expected UTF-8; byte 1 is 0xff. Save the file as UTF-8"),
        (b"[1]", r"l:line 2: expected a JSON object; its type is list. Write one object a line"),
        (b"{}", r"l:line 2:prediction: expected text"),
        (b'{"prediction": 1, "references": ["a"]}', r"l:line 2:prediction: expected text"),
        (b'{"prediction": "a"}', r"l:line 2:references: expected a list of texts\.$"),
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


def test_a_file_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"predictions: expected a JSONL file of predictions, got .*no such file"):
        read_predictions(tmp_path / "nothing.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty.jsonl: expected at least one prediction, got 'an empty file'"):
        read_predictions(tmp_path / "empty.jsonl")


def test_a_pipe_is_written_while_the_bar_is_silent(
    talkative: Any, split: EncodedSplit, codec: TextCodec, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(talkative, split, range(5), codec, GREEDY, "decode test")
    captured = capsys.readouterr()
    assert captured.out == ""  # standard output belongs to what scripts read
    assert "decode test 5/5" in captured.err
