"""SOURCES: where a task's rows come from. Nothing is read before a split's `load` is called."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from encdec_train.config import TaskConfig
from encdec_train.data import demo_corpus
from encdec_train.data.demo import DemoSizes
from encdec_train.data.load import Rows, load_file, open_file
from encdec_train.errors import ConfigError, fault
from encdec_train.fingerprint import file_sha256
from encdec_train.tasks import TASKS


@dataclass(frozen=True)
class SplitSource:
    """One split that has not been read yet."""

    fingerprint: str  # changes when its rows do
    load: Callable[[], Rows]  # reads and checks them


def splits_of(task: TaskConfig, cache_dir: Path) -> dict[str, SplitSource]:
    """Find a task's splits by name: `train`, `validation`, `test` and further test splits, where they exist.

    Raises:
        ConfigError: When a split is another one's twin.
        DataError: When a file is missing.
    """
    splits = SOURCES[TASKS[task.name].source](task, cache_dir)
    train = splits.get("train")
    for name, split in splits.items():
        if train is not None and name != "train" and split.fingerprint == train.fingerprint:
            key, reason = f"{name}_file", "the two have the same content, and scores on training data say nothing"
            raise ConfigError(fault(f"task.{key}", "other rows than task.train_file", getattr(task, key), reason))
    return splits


def limit_of(task: TaskConfig, split: str) -> int | None:
    """Return how many rows of a split are used, None for all."""
    limits = {"train": task.num_train_examples, "validation": task.num_validation_examples}
    return limits.get(split, task.num_test_examples)


def _from_files(task: TaskConfig, cache_dir: Path) -> dict[str, SplitSource]:
    splits = {}
    for name in ("train", "validation", "test"):
        given = getattr(task, f"{name}_file")
        if given is None:
            continue
        columns, key = (task.source_column, task.target_column), f"task.{name}_file"
        read = partial(load_file, Path(given), *columns, key=key, reverse=task.reverse)
        read(limit=1)  # a missing file or column is said at once
        load = partial(open_file, cache_dir, Path(given), columns, key=key, reverse=task.reverse)
        splits[name] = SplitSource(file_sha256(Path(given)), partial(load, limit=limit_of(task, name)))
    return splits


def _from_demo(task: TaskConfig, cache_dir: Path) -> dict[str, SplitSource]:
    sizes = DemoSizes()

    def read(name: str) -> Rows:
        path = demo_corpus.write_corpus(cache_dir / "demo", sizes)[name]
        return load_file(
            path, "source", "target", key=f"task=demo {name}", reverse=task.reverse, limit=limit_of(task, name)
        )

    names = ("train", "validation", *TASKS["demo"].test_splits)
    return {name: SplitSource(f"{demo_corpus.fingerprint(sizes)}/{name}", partial(read, name)) for name in names}


SOURCES: dict[str, Callable[[TaskConfig, Path], dict[str, SplitSource]]] = {"files": _from_files, "demo": _from_demo}
