"""A task's splits: found without being read, cut to their limits, never the training data twice."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from encdec_train.config import BadRecords, Overlong, TaskConfig
from encdec_train.data import sources
from encdec_train.data.hub_data import part, taken
from encdec_train.data.load import Rows
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
        bad_records=BadRecords.refuse,
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
    for fraction in (1.0, 0.5):
        with pytest.raises(ConfigError, match=message):
            splits_of(replace(task, **{f"{name}_file": twin}, train_fraction=fraction), tmp_path)


def test_what_is_missing_is_said_before_anything_is_read(task: TaskConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task.test_file: .*nothing.jsonl"):
        splits_of(replace(task, test_file=str(tmp_path / "nothing.jsonl")), tmp_path)
    with pytest.raises(DataError, match=r"task.target_column: .*task.train_file.*got 'summary'"):
        splits_of(replace(task, target_column="summary"), tmp_path)


def test_the_demo_has_two_test_splits(task: TaskConfig, tmp_path: Path) -> None:
    demo = replace(task, name="demo", train_file=None, validation_file=None, test_file=None)
    demo = replace(demo, num_train_examples=7, num_validation_examples=4, num_test_examples=3)
    splits = splits_of(demo, tmp_path)
    assert list(splits) == ["train", "validation", "test", "test_unseen_words"]
    assert len({split.fingerprint for split in splits.values()}) == 4
    assert [len(split.load()) for split in splits.values()] == [7, 4, 3, 3]


def test_a_fraction_of_the_training_rows_is_another_training_split(task: TaskConfig, tmp_path: Path) -> None:
    whole, third, other, few = (
        splits_of(replace(task, **changes), tmp_path)
        for changes in (
            {},
            {"train_fraction": 0.5},
            {"train_fraction": 0.5, "fraction_seed": 1},
            {"train_fraction": 0.5, "num_train_examples": 2},
        )
    )
    assert len({splits["train"].fingerprint for splits in (whole, third, other)}) == 3
    assert third["test"].fingerprint == whole["test"].fingerprint
    expected = [f"row{index}" for index in part(12, 0.5, 0)]
    assert third["train"].load().ids == expected
    assert other["train"].load().ids != expected
    assert few["train"].load().ids == expected[:2]


def test_files_in_a_tasks_stead_are_all_there_is(task: TaskConfig, tmp_path: Path) -> None:
    wiki = tmp_path / "test.tsv"
    wiki.write_text("A , b .\tA . <::::> B .\n" * 3)
    stead = replace(task, name="wikisplit", train_file=None, test_file=str(wiki), num_test_examples=2)
    splits = splits_of(stead, tmp_path)
    assert list(splits) == ["validation", "test"]
    assert splits["validation"].load().ids[0] == "row20"  # pairs as they stand
    assert splits["test"].load().targets == ["A . B ."] * 2
    assert splits["test"].fingerprint != splits["validation"].fingerprint
    assert splits_of(replace(stead, name="files", test_file=None), tmp_path)["validation"].load().ids[0] == "row20"


def test_the_pair_of_a_task_is_part_of_the_fingerprint(task: TaskConfig, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"translation": {"en": "a", "de": "b"}}\n')
    there, back = (
        splits_of(
            replace(task, name="wmt14_en_de", train_file=str(file), validation_file=None, test_file=None, **pair),
            tmp_path,
        )["train"]
        for pair in ({"subset": "en-de"}, {"subset": "de-en"})
    )
    assert there.fingerprint != back.fingerprint
    assert (there.load().sources, back.load().sources) == (["a"], ["b"])


def test_large_originals_are_read_once_and_mapped_then(
    task: TaskConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "train.tsv"
    file.write_text("".join(f"a {n} and b .\ta {n} . <::::> b .\n" for n in range(9)), encoding="utf-8")
    large = replace(task, name="wikisplit", train_file=str(file), validation_file=None, test_file=None,
                    num_train_examples=7)  # fmt: skip
    plain = splits_of(large, tmp_path / "cache")["train"].load()
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(sources, "CACHED_FROM_BYTES", 1)
    reads = []
    tables_of_file = sources.hub_data.tables_of_file
    monkeypatch.setattr(sources.hub_data, "tables_of_file", lambda *given: reads.append(1) or tables_of_file(*given))
    for _ in range(2):
        kept = splits_of(large, tmp_path / "cache")["train"].load()
        for name in ("ids", "sources", "targets", "references"):
            assert list(getattr(kept, name)) == list(getattr(plain, name))
        assert len(kept) == 7
    assert len(reads) == 1
    turned = splits_of(replace(large, reverse=True), tmp_path / "cache")["train"].load()
    assert (turned.sources[0], turned.targets[0]) == (plain.targets[0], plain.sources[0])
    assert len(reads) == 2


def test_rows_are_written_and_read_as_they_are(tmp_path: Path) -> None:
    rows = Rows(["b", "ü"], ["x\ny", "ß"], ["1", "2"], [["1", "one"], ["2"]])
    rows.write(tmp_path / "rows.arrow")
    found = Rows.mapped(tmp_path / "rows.arrow")
    for name in ("ids", "sources", "targets", "references"):
        assert list(getattr(found, name)) == list(getattr(rows, name))
    chosen = taken(found, np.array([1]))
    assert (list(chosen.ids), list(chosen.references)) == (["ü"], [["2"]])


def test_bad_records_of_test_files_are_refused_whatever_the_policy(task: TaskConfig, tmp_path: Path) -> None:
    good = '{"source": "a %d", "target": "b"}\n'
    for name in ("train", "validation", "test"):
        lines = [good % n for n in range(120)]
        lines[7 if name == "train" else 0] = "{}x\n"
        (tmp_path / f"{name}.jsonl").write_text("".join(lines) + good % len(name), encoding="utf-8")
    skipping = replace(task, bad_records=BadRecords.skip)
    with pytest.raises(DataError, match=r"task.test_file: .*test.jsonl:line 1: expected a JSON object"):
        splits_of(skipping, tmp_path)
    splits = splits_of(replace(skipping, test_file=None, train_fraction=0.5), tmp_path)
    found = {name: split.load() for name, split in splits.items()}
    assert {name: [one["line"] for one in rows.set_aside] for name, rows in found.items()} == {
        "train": [8],
        "validation": [1],
    }
    assert len(found["train"]) == 60
    copied = Rows.of_table(found["train"].table())
    assert copied == found["train"]
    with pytest.raises(DataError, match=r"task.train_file: expected a file, got .*; there is no such file"):
        splits_of(replace(skipping, train_file="none.jsonl"), tmp_path)
