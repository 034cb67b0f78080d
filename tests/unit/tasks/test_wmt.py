"""WMT: any year and pair, one column with both languages."""

import pyarrow as pa
import pytest

from encdec_train.compose import compose
from encdec_train.tasks.wmt import columns, on_hub, prepare


@pytest.mark.parametrize(("task", "pair"), [("wmt14_en_de", ("a", "b")), ("wmt14_de_en", ("b", "a"))])
def test_the_pair_says_which_language_is_read(task: str, pair: tuple[str, str]) -> None:
    config = compose("train", [f"task={task}"]).task
    table = pa.table({"translation": [{"de": "b", "en": "a"}, {"de": None, "en": "„c“"}, None]})
    found = prepare(table, config).to_pylist()
    assert (found[0]["source"], found[0]["target"]) == pair
    assert {found[1]["source"], found[1]["target"]} == {None, "„c“"}
    assert found[2] == {"source": None, "target": None}
    assert columns(config) == {"translation": tuple(task.split("_")[1:])}


@pytest.mark.parametrize(
    ("year", "pair", "dataset", "second"),
    [(2014, "en-de", "wmt/wmt14", True), (2016, "ro-en", "wmt/wmt16", False), (2014, "fr-en", "wmt/wmt14", False),
     (2019, "en-cs", "wmt/wmt19", True), (2017, "zh-en", "wmt/wmt17", False),
     (2017, "en-de", "wmt/wmt17", False), (2018, "en-de", "wmt/wmt18", True)],  # of 2017 it is the validation split
)  # fmt: skip
def test_a_year_and_a_pair_are_places(year: int, pair: str, dataset: str, second: bool) -> None:
    config = compose("train", ["task=wmt14_en_de", f"task.wmt_year={year}", f"task.subset={pair}"]).task
    places = on_hub(config)
    back = "-".join(reversed(pair.split("-")))
    assert {places[name].dataset for name in ("train", "validation")} == {dataset}
    assert ("test" in places) is (year != 2019)  # that data set has none
    assert {place.folders for place in places.values()} == {(pair, back)}
    assert ("newstest2016" in places) is second
    if second:
        place = places["newstest2016"]
        assert (place.dataset, place.split, place.pinned) == ("wmt/wmt16", "test", False)
