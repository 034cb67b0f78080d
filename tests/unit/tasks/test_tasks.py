"""What a task's own keys may be, and the page about the tasks."""

import re
from pathlib import Path

import pytest

from encdec_train.compose import compose
from encdec_train.errors import ConfigError
from encdec_train.tasks import TASKS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "tasks.md"
NOT_READ = "does not read it"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=xsum", "task.subset=sport"], rf"^task.subset: expected null, got 'sport'; task=xsum {NOT_READ}\.$"),
        (["task=discofuse", "task.wmt_year=2014"], rf"^task.wmt_year: expected null, got 2014; task=\w+ {NOT_READ}"),
        (["task=files", "task.train_file=x", "task.subset=en-de"], rf"got 'en-de'; task=files {NOT_READ}"),
        (["task=discofuse", "task.subset=null"], r"^task.subset: expected a value, got 'null'\.$"),
        (["task=wmt14_en_de", "task.wmt_year=null", "task.subset=null"], r"task.subset: .*\n?task.wmt_year"),
        (["task=wmt14_en_de", "task.subset=english"], r"such as en-de, got 'english'"),
        (["task=wmt14_en_de", "task.subset=en-en"], r"such as en-de, got 'en-en'"),
        (["task=wmt14_en_de", "task.wmt_year=1999"], r"^task.wmt_year: expected 2014..2019, got 1999\.$"),
        (["task=discofuse", "task.subset=balanced"], r"^task.subset: .*the full sets only.*task.train_file"),
        (["task=discofuse", "task.subset=all"], r"expected one of wikipedia, sport, balanced, got 'all'"),
        (["task=xsum", "task.train_fraction=0"], r"^task.train_fraction: expected 1e-06..1, got 0\.0"),
        (["task=wikisplit", "task.revision=v1"], r"got 'v1'; task=wikisplit reads nothing from the Hub"),
        (["task=xsum", "task.train_file=x", "task.revision=v1"], r"with files of your own it reads nothing"),
        (["task=xsum", "task.train_file=x", "trainer.best_metric=rougeLsum"], r"there is no task.validation_file"),
    ],
)  # fmt: skip
def test_a_contradiction_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose("train", [*overrides, "model.encoder=bert"])


def test_what_is_fine() -> None:
    files = ["task.train_file=a/train_balanced.tsv", "task.test_file=a/test_balanced.tsv"]
    assert compose("train", ["task=discofuse", "task.subset=balanced", *files]).task.files
    assert compose("train", ["task=discofuse", "task.train_fraction=0.01"]).task.train_fraction == 0.01
    assert compose("train", ["task=xsum", "trainer.best_metric=rougeLsum"]).trainer.best_metric == "rougeLsum"
    assert not compose("train", ["task=xsum", "task.revision=v1"]).task.files


def table() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells if row[0].strip("`") in TASKS}


def test_the_page_lists_every_task_and_no_other() -> None:
    assert list(table()) == [name for name in TASKS if name not in {"files", "demo"}]


@pytest.mark.parametrize("name", [name for name in TASKS if name not in {"files", "demo"}])
def test_the_page_says_what_the_specs_say(name: str) -> None:
    where, columns, rows, limits, metrics, command = table()[name]
    spec, config = TASKS[name], compose("train", [f"task={name}"])
    places = spec.on_hub(config.task) if spec.on_hub else {}
    expected = {place.dataset for place in places.values()} | set(spec.urls.values())
    expected |= {place.branch for place in places.values() if place.branch}
    assert expected <= set(re.findall(r"`([^`]+)`", where))
    assert set(re.findall(r"`([^`]+)`", columns)) == set(spec.columns(config.task))
    assert limits == f"{config.task.max_source_tokens} / {config.task.max_target_tokens}"
    assert re.findall(r"`([^`]+)`", metrics) == config.task.metrics
    assert re.fullmatch(r"[\d,]+ / [\d,]+ / [\d,]+(; `\w+` [\d,]+)*", rows)
    [typed] = re.findall(r"`([^`]+)`", command)
    words = typed.split()
    assert words[:3] == ["encdec", "train", f"task={name}"]
    assert compose("train", words[2:]).task.name == name


def test_the_commands_of_the_page_can_be_typed() -> None:
    lines = re.findall(r"^encdec train (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == 3
    assert [compose("train", line.split()).task.files for line in lines] == [True] * 3
