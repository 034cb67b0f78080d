"""What a task is made of besides the values in its YAML: where its splits are, their columns, what a pair is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from encdec_train.config import TaskConfig

if TYPE_CHECKING:
    import pyarrow as pa

TEXT = "string"  # the type of a column; a struct is the tuple of its texts' names
Columns = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class OnHub:
    """The parquet files of one split: `<folder>/<split>-00000-of-00003.parquet`, or `<folder>/<split>/0000.parquet`.

    Attributes:
        dataset: The Hub id.
        folders: Where the files may lie, the first that has some; the configuration's name, as a rule.
        split: Its name there.
        key: The config key that chose the folder, for messages.
        branch: Where the files are, unless `task.revision` says otherwise; None for the default branch.
        pinned: Whether `task.revision` speaks of this data set.
    """

    dataset: str
    folders: tuple[str, ...]
    split: str
    key: str = "task"
    branch: str | None = None
    pinned: bool = True


def plain_columns(task: TaskConfig) -> Columns:
    """Name the two columns of a task whose texts are used as they stand."""
    return {task.source_column: TEXT, task.target_column: TEXT}


def plain_pairs(table: "pa.Table", task: TaskConfig) -> "pa.Table":
    """Take both texts as they stand."""
    return pairs(table.column(task.source_column), table.column(task.target_column))


def pairs(source: "pa.ChunkedArray", target: "pa.ChunkedArray") -> "pa.Table":
    """Put two columns of texts beside each other."""
    import pyarrow as pa

    return pa.table({"source": source, "target": target})


def joined(first: "pa.ChunkedArray", second: "pa.ChunkedArray") -> "pa.ChunkedArray":
    """Put a space between two texts, where both hold something but white space; null where one is null."""
    import pyarrow.compute as pc

    parts = [pc.utf8_trim_whitespace(part) for part in (first, second)]
    return pc.utf8_trim_whitespace(pc.binary_join_element_wise(*parts, " "))


@dataclass(frozen=True)
class TaskSpec:
    """What a task is, besides the values in its YAML.

    Attributes:
        source: Where its rows come from; a key of `data.sources.SOURCES`.
        test_splits: Decoded and scored at the end of a run, in this order, where the rows exist.
        keys: The keys of the section `task` that only some tasks read, and this one does.
        on_hub: The splits by name (`source="hub"`).
        base_url: Where the original files are (`source="urls"`), the end of the address being in `urls`.
        urls: The original file of each split.
        columns: What the rows have where they come from.
        prepare: Makes the columns `source` and `target` of a table of such rows; null where a row holds no pair. None:
            the texts stand as they are in two columns.
        parse: Gives the columns of one line of an original file (`.tsv` without a header, also `.zip`), where it has
            such files.
    """

    source: str
    test_splits: tuple[str, ...] = ("test",)
    keys: frozenset[str] = frozenset()
    on_hub: Callable[[TaskConfig], Mapping[str, OnHub]] | None = None
    base_url: str = ""
    urls: Mapping[str, str] = field(default_factory=dict)
    columns: Callable[[TaskConfig], Columns] = plain_columns
    prepare: Callable[["pa.Table", TaskConfig], "pa.Table"] | None = None
    parse: Callable[[str], dict[str, str | None]] | None = None


def splits_on_hub(dataset: str, *folders: str, key: str = "task", branch: str | None = None) -> dict[str, OnHub]:
    """Name the three splits of a data set."""
    return {name: OnHub(dataset, folders, name, key, branch) for name in ("train", "validation", "test")}
