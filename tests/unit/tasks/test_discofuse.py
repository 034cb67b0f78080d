"""DiscoFuse's rows: two sentences on each side, the target's second one empty where one is all."""

from typing import Any

import pyarrow as pa
import pytest

from encdec_train.compose import compose
from encdec_train.tasks.discofuse import SOURCE, TARGET, on_hub, prepare


@pytest.mark.parametrize(
    ("sentences", "pair"),
    [
        (("A .", "B .", "A .", "However , B ."), ("A . B .", "A . However , B .")),
        (("A .", "B .", "A because B .", ""), ("A . B .", "A because B .")),
        (("A .", "B .", "A because B .", "  "), ("A . B .", "A because B .")),
        (("A .", "B .", "A because B .", None), ("A . B .", "A because B .")),
        ((' "A" ', '"B .', '"A', 'B" . '), ('"A" "B .', '"A B" .')),
        (("A .", "", "A .", ""), ("A .", "A .")),
        (("A .", None, "A .", ""), (None, "A .")),
        (("A .", "B .", None, "C ."), ("A . B .", None)),
        (("", " ", "A .", ""), ("", "A .")),
    ],
)
def test_a_row_becomes_a_pair(sentences: tuple[str | None, ...], pair: tuple[str | None, str | None]) -> None:
    task: Any = compose("train", ["task=discofuse"]).task
    schema = pa.schema([(name, pa.string()) for name in (*SOURCE, *TARGET)])
    table = pa.Table.from_pylist([dict(zip(schema.names, sentences, strict=True))], schema=schema)
    assert prepare(table, task).to_pylist() == [{"source": pair[0], "target": pair[1]}]


def test_a_subset_is_a_folder() -> None:
    for subset in ("wikipedia", "sport"):
        task = compose("train", ["task=discofuse", f"task.subset={subset}"]).task
        assert {place.folders for place in on_hub(task).values()} == {(f"discofuse-{subset}",)}
