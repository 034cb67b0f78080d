"""SOURCES: where a task's rows come from. Nothing is read before a split's `load` is called."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from encdec_train import console
from encdec_train.config import BadRecords, TaskConfig
from encdec_train.data import demo_corpus, download, hub_data, hub_files, store
from encdec_train.data.demo import DemoSizes
from encdec_train.data.formats import reader_of
from encdec_train.data.load import CACHED_FROM_BYTES, ROWS, Rows, Sides, load_file, open_file
from encdec_train.errors import ConfigError, fault
from encdec_train.fingerprint import file_sha256, json_sha256
from encdec_train.tasks import TASKS

PREPARED = 1  # part of the fingerprint of rows that a task makes of others: raise it when they change


@dataclass(frozen=True)
class SplitSource:
    """One split that has not been read yet."""

    fingerprint: str  # changes when its rows do
    load: Callable[[], Rows]  # fetches, reads and checks them
    origin: Mapping[str, str] = field(default_factory=dict)  # data set and commit, or address, for the manifest


def splits_of(task: TaskConfig, cache_dir: Path) -> dict[str, SplitSource]:
    """Find a task's splits by name: `train`, `validation`, `test` and further test splits, where they exist.

    Where the task names files, they are all there is, and nothing is fetched.

    Raises:
        ConfigError: When a split is another one's twin.
        DataError: When a file is missing, or a data set cannot be had.
    """
    splits = SOURCES["files" if task.files else TASKS[task.name].source](task, cache_dir)
    train = splits.get("train")
    for name, split in splits.items():
        if train is not None and name != "train" and split.fingerprint == train.fingerprint:
            key, reason = f"{name}_file", "the two have the same content, and scores on training data say nothing"
            raise ConfigError(fault(f"task.{key}", "other rows than task.train_file", getattr(task, key), reason))
    if train is not None and task.train_fraction < 1:
        key = json_sha256([train.fingerprint, task.train_fraction, task.fraction_seed])
        splits["train"] = replace(train, fingerprint=key, load=partial(_part, train.load, task))
    return splits


def limit_of(task: TaskConfig, split: str) -> int | None:
    """Return how many rows of a split are used, None for all."""
    train = task.num_train_examples if task.train_fraction == 1 else None  # a fraction is of all rows
    limits = {"train": train, "validation": task.num_validation_examples}
    return limits.get(split, task.num_test_examples)


def _part(load: Callable[[], Rows], task: TaskConfig) -> Rows:
    rows = load()
    chosen = hub_data.part(len(rows), task.train_fraction, task.fraction_seed)
    return hub_data.taken(rows, chosen[: task.num_train_examples])


def _from_files(task: TaskConfig, cache_dir: Path) -> dict[str, SplitSource]:
    splits = {}
    for name in ("train", "validation", "test"):
        given = getattr(task, f"{name}_file")
        if given is None:
            continue
        columns, key, path = (task.source_column, task.target_column), f"task.{name}_file", Path(given)
        if TASKS[task.name].prepare is not None and not hub_data.is_plain(path, key, columns):
            splits[name] = _original(task, name, path, {}, cache_dir)
            continue
        sides = Sides(*columns, task.reverse)
        skip = task.bad_records is BadRecords.skip and name != "test"  # a score is of every row that was named
        if skip:
            reader_of(path, key)
        else:
            load_file(path, sides, key=key, limit=1)  # a missing file or column is said at once
        load = partial(open_file, cache_dir, path, sides, key=key, limit=limit_of(task, name), skip=skip)
        splits[name] = SplitSource(file_sha256(path), partial(_said, name, load))
    return splits


def _said(name: str, load: Callable[[], Rows]) -> Rows:
    rows = load()
    if aside := rows.set_aside:
        first = f"{aside[0]['file']}:{aside[0]['reason']}"
        console.warn(f"{name}: {len(aside)} bad records set aside (task.bad_records=skip), the first: {first}")
    return rows


def _original(task: TaskConfig, name: str, path: Path, origin: Mapping[str, str], cache_dir: Path) -> SplitSource:
    """Read a file in the form in which the task's own rows are."""
    spec, key = TASKS[task.name], f"task.{name}_file"
    columns = spec.columns(task)

    def read() -> Rows:
        tables = hub_data.tables_of_file(path, key, spec, columns)
        return hub_data.rows_of(tables, spec, task, name, str(path), limit_of(task, name))

    fingerprint = json_sha256([PREPARED, file_sha256(path), task.subset])
    return SplitSource(fingerprint, partial(_kept, cache_dir, [fingerprint, *_asked(task, name)], [path], read), origin)


def _asked(task: TaskConfig, name: str) -> list[object]:
    return [task.name, name, task.reverse, limit_of(task, name)]


def _kept(cache_dir: Path, key: object, files: Sequence[Path], read: Callable[[], Rows]) -> Rows:
    """Read rows, or map them from the cache where their files are large: one process has read them then."""
    if sum(file.stat().st_size for file in files) < CACHED_FROM_BYTES:
        return read()

    def build(folder: Path) -> store.Facts:
        rows = read()
        with store.writing(folder):
            rows.write(folder / ROWS)
        return {"rows": len(rows)}

    folder = cache_dir / "rows" / json_sha256(key)
    store.obtain(folder, build)
    return Rows.mapped(folder / ROWS)


def _from_urls(task: TaskConfig, cache_dir: Path) -> dict[str, SplitSource]:
    spec, splits = TASKS[task.name], {}
    for name, file in spec.urls.items():
        path, origin = download.fetch_url(spec.base_url + file, f"task.{name}_file", cache_dir)
        splits[name] = _original(task, name, path, origin, cache_dir)
    return splits


def _from_hub(task: TaskConfig, cache_dir: Path) -> dict[str, SplitSource]:
    spec, splits, known = TASKS[task.name], {}, dict[str, hub_files.Listing]()
    for name, place in (spec.on_hub(task) if spec.on_hub else {}).items():
        revision = (task.revision if place.pinned else None) or place.branch
        found = known.get(place.dataset) or hub_files.listing(place.dataset, revision)
        known[place.dataset] = found
        files, columns = hub_files.files_of(found, place), spec.columns(task)
        contents = [found.files[file][1] for file in files]
        key = json_sha256([PREPARED, name, contents, *columns, task.subset])
        origin = {"dataset": found.dataset, "revision": found.commit}
        splits[name] = SplitSource(key, partial(_read_hub, task, name, found, files, cache_dir / key), origin)
    return splits


def _read_hub(task: TaskConfig, name: str, found: hub_files.Listing, files: list[str], cache: Path) -> Rows:
    spec, paths = TASKS[task.name], [hub_files.fetch(found, file) for file in files]

    def read() -> Rows:
        tables = hub_data.tables_of(paths, spec.columns(task), str(found))
        return hub_data.rows_of(tables, spec, task, name, str(found), limit_of(task, name))

    return _kept(cache.parent, [cache.name, *_asked(task, name)], paths, read)


def _from_demo(task: TaskConfig, cache_dir: Path) -> dict[str, SplitSource]:
    sizes = DemoSizes()

    def read(name: str) -> Rows:
        path = demo_corpus.write_corpus(cache_dir / "demo", sizes)[name]
        return load_file(
            path, Sides("source", "target", task.reverse), key=f"task=demo {name}", limit=limit_of(task, name)
        )

    names = ("train", "validation", *TASKS["demo"].test_splits)
    return {name: SplitSource(f"{demo_corpus.fingerprint(sizes)}/{name}", partial(read, name)) for name in names}


SOURCES: dict[str, Callable[[TaskConfig, Path], dict[str, SplitSource]]] = {
    "files": _from_files,
    "demo": _from_demo,
    "hub": _from_hub,
    "urls": _from_urls,
}
