"""WMT: translation of news, any year and pair. newstest2016 is a second test split where WMT16 has the pair.

Not of 2016, whose test split it is, nor of 2017, where it is validation data: the best checkpoint is chosen on it.
"""

from typing import TYPE_CHECKING

from encdec_train.config import TaskConfig
from encdec_train.tasks.spec import Columns, OnHub, TaskSpec, pairs, splits_on_hub

if TYPE_CHECKING:
    import pyarrow as pa

IN_WMT16 = {frozenset(("en", other)) for other in ("cs", "de", "fi", "ro", "ru", "tr")}


def _languages(task: TaskConfig) -> tuple[str, str]:
    source, _, target = (task.subset or "").partition("-")
    return source, target


def on_hub(task: TaskConfig) -> dict[str, OnHub]:
    """Find a year's splits. The folder is named after the pair in one direction; both directions read it."""
    source, target = _languages(task)
    year, folders = (task.wmt_year or 0) % 100, (f"{source}-{target}", f"{target}-{source}")
    splits = splits_on_hub(f"wmt/wmt{year}", *folders, key="task.subset")
    if year == 19:
        del splits["test"]  # the data set has none
    if year not in {16, 17} and {source, target} in IN_WMT16:
        splits["newstest2016"] = OnHub("wmt/wmt16", folders, "test", "task.subset", pinned=False)
    return splits


def columns(task: TaskConfig) -> Columns:
    """One column holds the text in both languages."""
    return {"translation": _languages(task)}


def prepare(table: "pa.Table", task: TaskConfig) -> "pa.Table":
    """Take the pair's two languages out of the column `translation`."""
    import pyarrow.compute as pc

    source, target = (pc.struct_field(table.column("translation"), language) for language in _languages(task))
    return pairs(source, target)


WMT = TaskSpec(
    source="hub",
    test_splits=("test", "newstest2016"),
    keys=frozenset(("wmt_year", "subset")),
    on_hub=on_hub,
    columns=columns,
    prepare=prepare,
)
