"""TASKS: name -> what the task is made of. To add one: a YAML in `conf/task/` and a line here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskSpec:
    """What a task is, besides the values in its YAML.

    Attributes:
        source: Where its rows come from; a key of `data.sources.SOURCES`.
        test_splits: Decoded and scored at the end of a run, in this order, where the rows exist.
    """

    source: str
    test_splits: tuple[str, ...] = ("test",)


TASKS: dict[str, TaskSpec] = {
    "files": TaskSpec(source="files"),
    "demo": TaskSpec(source="demo", test_splits=("test", "test_unseen_words")),
}
