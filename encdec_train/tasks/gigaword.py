"""Gigaword: the first sentence of an article becomes its headline; lower case.

The data set is a builder script on the Hub, which is never run: its rows are read from the branch into which the Hub
converts such data sets.
"""

from encdec_train.tasks.spec import TaskSpec, splits_on_hub

GIGAWORD = TaskSpec(
    source="hub",
    on_hub=lambda _: splits_on_hub("Harvard/gigaword", "default", branch="refs/convert/parquet"),
)
