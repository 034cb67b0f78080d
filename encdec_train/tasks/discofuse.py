"""DiscoFuse: two sentences become one text that holds together, its second sentence empty where one is all."""

from typing import TYPE_CHECKING

from encdec_train.config import TaskConfig
from encdec_train.tasks.spec import TEXT, OnHub, TaskSpec, joined, pairs, splits_on_hub

if TYPE_CHECKING:
    import pyarrow as pa

BALANCED = "balanced"
SUBSETS = ("wikipedia", "sport", BALANCED)
SOURCE = ("incoherent_first_sentence", "incoherent_second_sentence")
TARGET = ("coherent_first_sentence", "coherent_second_sentence")


def on_hub(task: TaskConfig) -> dict[str, OnHub]:
    """Find the splits of a full set; of a balanced one the Hub has none."""
    return splits_on_hub("google-research-datasets/discofuse", f"discofuse-{task.subset}", key="task.subset")


def prepare(table: "pa.Table", _: TaskConfig) -> "pa.Table":
    """Join the sentences of each side by a space."""
    import pyarrow.compute as pc

    source = joined(*(table.column(name) for name in SOURCE))
    first, second = (table.column(name) for name in TARGET)
    return pairs(source, joined(first, pc.fill_null(second, "")))


DISCOFUSE = TaskSpec(
    source="hub",
    keys=frozenset(("subset",)),
    on_hub=on_hub,
    columns=lambda _: dict.fromkeys((*SOURCE, *TARGET), TEXT),
    prepare=prepare,
)
