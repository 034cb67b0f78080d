"""WikiSplit's lines: a separator, quotes that are none of CSV's, and lines that hold no pair."""

from typing import Any

import pyarrow as pa
import pytest

from encdec_train.compose import compose
from encdec_train.tasks.wikisplit import parse, prepare

NOTHING = {"complex_sentence": None, "simple_sentence_1": None, "simple_sentence_2": None}


def test_a_line_is_three_sentences() -> None:
    assert parse("A , and B .\tA . <::::> And B .") == {
        "complex_sentence": "A , and B .", "simple_sentence_1": "A .", "simple_sentence_2": "And B .",
    }  # fmt: skip


def test_a_quote_is_a_character() -> None:
    line = "\" A '' b '' , c .\t\"A '' b '' . <::::> \"C ."
    assert list(parse(line).values()) == ["\" A '' b '' , c .", "\"A '' b '' .", '"C .']


@pytest.mark.parametrize(
    "line",
    ["", "A .", "A .\tB . C .", "A .\tB . <::::> C . <::::> D .", "A .\tB . <::::> C .\tD", "A . <::::> B .\tC ."],
)
def test_a_line_of_another_form_holds_no_pair(line: str) -> None:
    assert parse(line) == NOTHING


@pytest.mark.parametrize(("line", "empty"), [("A .\t <::::> B .", 1), ("A .\tB . <::::>", 2), (" \tB . <::::> C .", 0)])
def test_an_empty_sentence_is_null(line: str, empty: int) -> None:
    assert [value is None for value in parse(line).values()] == [index == empty for index in range(3)]


def test_the_separator_becomes_a_space() -> None:
    task: Any = compose("train", ["task=wikisplit"]).task
    lines = ["A , and B .\tA . <::::> And B .", "A .\tB .", "A .\tB . <::::>"]
    table = prepare(pa.Table.from_pylist([parse(line) for line in lines]), task)
    assert table.to_pylist() == [
        {"source": "A , and B .", "target": "A . And B ."},
        {"source": None, "target": None},
        {"source": "A .", "target": None},
    ]
