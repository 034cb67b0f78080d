"""A task's splits: found without being read, cut to their limits, never the training data twice."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from encdec_train.config import Overlong, TaskConfig
from encdec_train.data.sources import limit_of, splits_of
from encdec_train.errors import ConfigError, DataError


@pytest.fixture
def task(new_pairs: Callable[[str, range], Path]) -> TaskConfig:
    """A task of three files."""
    return TaskConfig(
        name="files",
        train_file=str(new_pairs("train.jsonl", range(12))),
        validation_file=str(new_pairs("validation.jsonl", range(20, 25))),
        test_file=str(new_pairs("test.jsonl", range(30, 36))),
        source_column="source",
        target_column="target",
        reverse=False,
        metrics=["exact_match"],
        max_source_tokens=16,
        max_target_tokens=16,
        overlong=Overlong.refuse,
        revision=None,
        num_train_examples=None,
        num_validation_examples=None,
        num_test_examples=None,
        train_fraction=1.0,
        fraction_seed=0,
        subset=None,
        wmt_year=None,
        language_pair=None,
    )


def test_files_become_splits(task: TaskConfig, tmp_path: Path) -> None:
    splits = splits_of(task, tmp_path)
    assert {name: len(split.load()) for name, split in splits.items()} == {"train": 12, "validation": 5, "test": 6}
    assert splits["test"].load().ids == [f"row{i}" for i in range(30, 36)]


def test_a_file_that_is_not_given_is_no_split(task: TaskConfig, tmp_path: Path) -> None:
    assert list(splits_of(replace(task, train_file=None, validation_file=None), tmp_path)) == ["test"]


def test_each_split_has_its_own_limit(task: TaskConfig, tmp_path: Path) -> None:
    limited = replace(task, num_train_examples=3, num_validation_examples=2, num_test_examples=1)
    assert [limit_of(limited, name) for name in ("train", "validation", "test", "test_unseen_words")] == [3, 2, 1, 1]
    splits = splits_of(limited, tmp_path)
    assert [len(splits[name].load()) for name in ("train", "validation", "test")] == [3, 2, 1]
    assert splits["train"].load().ids == ["row0", "row1", "row2"]


def test_source_and_target_can_be_swapped(task: TaskConfig, tmp_path: Path) -> None:
    there, back = (splits_of(replace(task, reverse=reverse), tmp_path)["test"].load() for reverse in (False, True))
    assert (back.sources, back.targets) == (there.targets, there.sources)


def test_the_fingerprint_is_of_the_content(
    task: TaskConfig, new_pairs: Callable[[str, range], Path], tmp_path: Path
) -> None:
    first = splits_of(task, tmp_path)["test"].fingerprint
    moved = replace(task, test_file=str(new_pairs("elsewhere.jsonl", range(30, 36))))
    assert splits_of(moved, tmp_path)["test"].fingerprint == first
    new_pairs("test.jsonl", range(30, 37))
    assert splits_of(task, tmp_path)["test"].fingerprint != first


@pytest.mark.parametrize("name", ["validation", "test"])
def test_training_data_under_another_name_is_refused(
    name: str, task: TaskConfig, new_pairs: Callable[[str, range], Path], tmp_path: Path
) -> None:
    twin = str(new_pairs("twin.jsonl", range(12)))
    message = rf"task.{name}_file: expected other rows than task.train_file, got '.*twin.jsonl'; the two have the same"
    with pytest.raises(ConfigError, match=message):
        splits_of(replace(task, **{f"{name}_file": twin}), tmp_path)


def test_what_is_missing_is_said_before_anything_is_read(task: TaskConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task.test_file: .*nothing.jsonl"):
        splits_of(replace(task, test_file=str(tmp_path / "nothing.jsonl")), tmp_path)
    with pytest.raises(DataError, match=r"task.target_column: .*task.train_file.*got 'summary'"):
        splits_of(replace(task, target_column="summary"), tmp_path)


def test_the_demo_has_two_test_splits(task: TaskConfig, tmp_path: Path) -> None:
    demo = replace(task, name="demo", num_train_examples=7, num_validation_examples=4, num_test_examples=3)
    splits = splits_of(demo, tmp_path)
    assert list(splits) == ["train", "validation", "test", "test_unseen_words"]
    assert len({split.fingerprint for split in splits.values()}) == 4
    assert [len(split.load()) for split in splits.values()] == [7, 4, 3, 3]
