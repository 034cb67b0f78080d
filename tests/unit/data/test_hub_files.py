"""Which of a data set's files are a split, in the layouts that the Hub has."""

import pytest

from encdec_train.data.hub_files import Listing, files_of
from encdec_train.errors import ConfigError, DataError
from encdec_train.tasks.spec import OnHub


def listing(*names: str) -> Listing:
    return Listing("owner/name", None, "0123456789abcdef", {name: (1, name) for name in names})


@pytest.mark.parametrize(
    ("names", "folders", "expected"),
    [
        (["3.0.0/test-00000-of-00001.parquet", "1.0.0/test-00000-of-00001.parquet"], ("3.0.0",), [0]),
        (["data/test-00001-of-00002-ab12.parquet", "data/test-00000-of-00002-cd34.parquet"], ("data",), [1, 0]),
        (
            ["default/test/0001.parquet", "default/test/0000.parquet", "default/train/0000.parquet"],
            ("default",),
            [1, 0],
        ),
        (["test.parquet", "test_more.parquet", "data/test.parquet"], ("default", ""), [0]),
        (["default/test.parquet", "data/test.parquet"], ("default", "data"), [0]),
        (["de-en/test.parquet"], ("en-de", "de-en"), [0]),
    ],
)
def test_a_split_is_found(names: list[str], folders: tuple[str, ...], expected: list[int]) -> None:
    found = files_of(listing(*names), OnHub("owner/name", folders, "test"))
    assert found == [names[index] for index in expected]


@pytest.mark.parametrize("name", ["default/partial-test/0000.parquet", "default/test/0000.csv", "other/test.parquet"])
def test_what_looks_like_a_split_is_none(name: str) -> None:
    with pytest.raises(
        DataError, match=rf"^owner/name@0123456789ab: expected parquet files of the split test, got \['{name}"
    ):
        files_of(listing(name), OnHub("owner/name", ("default",), "test"))


def test_a_part_of_the_files_is_no_split() -> None:
    names = ["data/test-00000-of-00003.parquet", "data/test-00002-of-00003.parquet"]
    with pytest.raises(DataError, match=r"all files of the split test, got \['data/test-00000.*; got 2 of 3 files"):
        files_of(listing(*names), OnHub("owner/name", ("data",), "test"))


def test_a_key_that_chose_the_folder_is_named() -> None:
    place = OnHub("owner/name", ("cs-en", "en-cs"), "test", "task.subset")
    with pytest.raises(ConfigError, match=r"^task.subset: expected one that owner/name has: de-en, fr-en, got 'cs-en'"):
        files_of(listing("de-en/test.parquet", "fr-en/test.parquet"), place)
