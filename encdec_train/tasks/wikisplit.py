"""WikiSplit: a long sentence becomes two. Read from its original files, since the Hub has a builder script only.

A line is `complex <tab> simple <::::> simple`, tokenised at punctuation, with '' for both quotation marks; nothing in
it is quoted as CSV quotes, so that a `"` is a character like any other.
"""

from typing import TYPE_CHECKING

from encdec_train.config import TaskConfig
from encdec_train.tasks.spec import TEXT, TaskSpec, joined, pairs

if TYPE_CHECKING:
    import pyarrow as pa

SEPARATOR = "<::::>"
COLUMNS = ("complex_sentence", "simple_sentence_1", "simple_sentence_2")


def parse(line: str) -> dict[str, str | None]:
    """Cut a line into its three sentences; null where it is none of the kind."""
    cells = line.split("\t")
    simple = cells[-1].split(SEPARATOR)
    found: list[str | None] = [None] * 3
    if (len(cells), len(simple)) == (2, 2):
        found = [text.strip() or None for text in (cells[0], *simple)]
    return dict(zip(COLUMNS, found, strict=True))


def prepare(table: "pa.Table", _: TaskConfig) -> "pa.Table":
    """Join the two simple sentences by a space: the separator is no text, and no tokenizer's round trip keeps it."""
    import pyarrow.compute as pc

    whole, *simple = (table.column(name) for name in COLUMNS)
    return pairs(pc.utf8_trim_whitespace(whole), joined(*simple))


WIKISPLIT = TaskSpec(
    source="urls",
    base_url="https://github.com/google-research-datasets/wiki-split/raw/master/",
    urls={"train": "train.tsv.zip", "validation": "validation.tsv", "test": "test.tsv"},
    columns=lambda _: dict.fromkeys(COLUMNS, TEXT),
    prepare=prepare,
    parse=parse,
)
