import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encdec_train import comparison
from encdec_train.comparison import LOWER_IS_BETTER, compare
from encdec_train.compose import compose
from encdec_train.errors import ConfigError, DataError
from encdec_train.metrics import METRICS
from encdec_train.metrics.score import score
from encdec_train.metrics.significance import paired_tests

SOURCES = ["the cat sat on the mat", "a dog ran", "old bird flew", "it is red", "she sat"]
REFERENCES = [["a cat sat on a mat", "the cat sat"], ["the dog ran"], ["the old bird flew"], ["it is red"], ["she sat"]]
GOOD = ["a cat sat on a mat", "the dog ran", "old bird", "it is red", "he ran"]
BAD = ["a cat", "the dog ran", "the old bird flew", "red", "she sat down on the mat"]
METRIC_NAMES = ("sacrebleu", "chrf", "ter", "exact_match")


def rows_of(texts: Sequence[str]) -> list[dict[str, Any]]:
    columns = zip(SOURCES, texts, REFERENCES, strict=True)
    return [
        {"id": f"row{index}", "source": source, "prediction": text, "references": references}
        for index, (source, text, references) in enumerate(columns)
    ]


def write(path: Path, rows: Sequence[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_run(folder: Path, texts: Sequence[str], metrics: Sequence[str] = METRIC_NAMES, split: str = "test") -> str:
    """Write what a run leaves that `compare` reads."""
    write(folder / "predictions" / f"{split}.jsonl", rows_of(texts))
    scores = {split: score(texts, REFERENCES, SOURCES, metrics, num_resamples=1), "baselines": {}}
    (folder / "metrics.json").write_text(json.dumps(scores), encoding="utf-8")
    return str(folder)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with two runs, `good` and `bad`; the tests draw little."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comparison, "paired_tests", lambda a, b, seed: paired_tests(a, b, seed, 200, 50))
    write_run(Path("good"), GOOD)
    write_run(Path("bad"), BAD)
    return tmp_path


def compared(*overrides: str) -> dict[str, Any]:
    return compare(compose("compare", overrides))


def test_the_tests_are_those_of_the_statistics(place: Path) -> None:
    found = compared("a=good", "b=bad", "seed=3")
    tables = [
        {name: METRICS[name].statistics(texts, REFERENCES, SOURCES) for name in METRIC_NAMES} for texts in (GOOD, BAD)
    ]
    expected = paired_tests(tables[:1], tables[1:], 3, 200, 50)
    assert list(found["metrics"]) == list(METRIC_NAMES)
    for name, one in found["metrics"].items():
        assert {key: one[key] for key in ("a", "b", "difference", "ci95", "p")} == expected[name]
        assert one["signature"] == METRICS[name].signature(REFERENCES)
        assert one["lower_is_better"] == (name == "ter")
    assert found["metrics"]["exact_match"]["a"] == 60
    assert {key: found[key] for key in ("a", "b", "split", "num_examples", "signature")} == {
        "a": ["good"], "b": ["bad"], "split": "test", "num_examples": 5, "signature": "ar:10000|bs:1000|seed:3",
    }  # fmt: skip
    assert json.loads(json.dumps(found)) == found


def test_a_run_is_a_folder_or_its_file_and_rows_may_stand_in_any_order(place: Path) -> None:
    expected = compared("a=good", "b=bad", "task.metrics=[chrf]")["metrics"]
    alone = write(place / "alone.jsonl", rows_of(BAD)[::-1])
    for b in ("bad/predictions/test.jsonl", alone):
        found = compared("a=good", f"b={b}", "task.metrics=[chrf]")
        assert (found["b"], found["metrics"]) == ([b], expected)
    assert compared("a=good", f"b={alone}")["metrics"].keys() == set(METRIC_NAMES)  # those of a alone


def test_metrics_are_those_of_both_or_what_is_asked_for(place: Path) -> None:
    write_run(place / "less", GOOD, ["ter", "rouge1", "chrf"])
    assert list(compared("a=good", "b=less")["metrics"]) == ["chrf", "ter"]
    asked = compared("a=good", "b=less", "task.metrics=[rouge]")["metrics"]
    assert list(asked) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]


def test_another_split(place: Path) -> None:
    for name, texts in (("good", GOOD), ("bad", BAD)):
        write_run(place / name, texts, ["chrf"], "validation")
    assert list(compared("a=good", "b=bad", "split=validation")["metrics"]) == ["chrf"]


def test_several_runs_a_side(place: Path) -> None:
    write_run(place / "good2", [*GOOD[:4], "she sat"])
    found = compared("a=[good,good2]", "b=bad", "task.metrics=[exact_match]")
    assert (found["a"], found["b"]) == (["good", "good2"], ["bad"])
    assert found["metrics"]["exact_match"]["a"] == pytest.approx(70)
    example = found["examples"]["a_better"][0]
    assert (example["id"], example["a"], example["b"]) == ("row0", [GOOD[0], GOOD[0]], [BAD[0]])


def test_examples_are_those_that_changed_most(place: Path) -> None:
    examples = compared("a=good", "b=bad")["examples"]
    values = [
        [METRICS["chrf"].value(row) for row in METRICS["chrf"].statistics(texts, REFERENCES, None)]
        for texts in (GOOD, BAD)
    ]
    differences = np.subtract(*values)
    assert examples["metric"] == "chrf"  # BLEU has no value for so few words
    assert [one["id"] for one in examples["a_better"]] == ["row0", "row3"]
    assert [one["id"] for one in examples["b_better"]] == ["row2", "row4"]  # row1 is the same in both
    assert examples["a_better"][0] == {
        "id": "row0", "difference": differences[0], "source": SOURCES[0], "references": REFERENCES[0],
        "a": [GOOD[0]], "b": [BAD[0]],
    }  # fmt: skip
    assert [one["difference"] for one in examples["b_better"]] == [differences[2], differences[4]]


def test_so_many_are_shown(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, ids in ((1, ["row0", "row2"]), (0, [])):
        monkeypatch.setattr(comparison, "NUM_SHOWN", number)
        first = compared("a=good", "b=bad")["examples"]
        assert [one["id"] for one in (*first["a_better"], *first["b_better"])] == ids


def test_an_error_rate_is_better_where_it_is_lower(place: Path) -> None:
    examples = compared("a=good", "b=bad", "task.metrics=[ter]")["examples"]
    assert [one["id"] for one in examples["a_better"]] == ["row4", "row3", "row0"]
    assert all(one["difference"] < 0 for one in examples["a_better"])


def test_which_metrics_are_better_lower() -> None:
    references, sources = [["one two three"], ["four five six seven"]], ["x y z x", "u v w u v"]
    perfect, poor = [texts[0] for texts in references], ["", "q q q q q"]
    for name, metric in METRICS.items():
        if name == "sacrebleu_ja" and not find_spec("MeCab"):
            continue
        tables = [metric.statistics(texts, references, sources) for texts in (perfect, poor)]
        ours, theirs = (metric.value(table.sum(axis=0)) for table in tables)
        assert (name in LOWER_IS_BETTER) == (ours < theirs), name


def test_the_report(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared("a=good", "b=bad", "task.metrics=[exact_match,ter]")["metrics"]
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[:4] == ["a: good", "b: bad", "5 examples", ""]
    assert lines[4].split() == ["metric", "a", "b", "a", "-", "b", "95%", "interval", "p"]
    for line, name in zip(lines[6:8], ("exact_match", "ter (lower is better)"), strict=True):
        one = found[name.split()[0]]
        low, high = one["ci95"]
        cells = [f"{one['a']:.2f}", f"{one['b']:.2f}", f"{one['difference']:+.2f}", f"{low:+.2f}", "to", f"{high:+.2f}"]
        assert line.startswith(name)
        assert line.removeprefix(name).split() == [*cells, f"{one['p']:.4f}"]
    assert lines[8].startswith("p: two-sided, ")
    assert len(lines) == 9


def test_nothing_is_written(place: Path) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}

    before = files()
    compared("a=good", "b=bad")
    assert files() == before


MISTAKES = {
    "missing": (lambda rows: rows[:2] + rows[3:], "other.jsonl:id: expected each id of good/predictions/test.jsonl "
                "once; 1 missing, such as 'row2'."),
    "unknown": (lambda rows: [*rows, {**rows[0], "id": "new"}], "once; 1 unknown, such as 'new'."),
    "another": (lambda rows: [{**row, "id": f"x{row['id']}"} for row in rows],
                "once; 5 missing, such as 'row0'; 5 unknown, such as 'xrow0'."),
    "doubled": (lambda rows: [*rows, rows[1]],
                "other.jsonl:line 6:id: expected an id of its own, got 'row1'; other.jsonl:line 2 has the same."),
    "reference": (lambda rows: [*rows[:4], {**rows[4], "references": ["she ran"]}],
                  "other.jsonl:id 'row4': expected references and source of good/predictions/test.jsonl, "
                  "[['she sat'], 'she sat'], got [['she ran'], 'she sat']."),
    "source": (lambda rows: [*rows[:4], {**rows[4], "source": "x"}],
               "other.jsonl:id 'row4': expected references and source of good/predictions/test.jsonl, "
               "[['she sat'], 'she sat'], got [['she sat'], 'x']."),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_files_of_other_examples_are_refused(name: str, place: Path) -> None:
    change, text = MISTAKES[name]
    write(Path("other.jsonl"), change(rows_of(BAD)))
    with pytest.raises(DataError) as caught:
        compared("a=good", "b=[bad,other.jsonl]")
    assert str(caught.value).endswith(text)
    assert len(str(caught.value).splitlines()) == 1


def test_the_first_file_is_looked_at_too(place: Path) -> None:
    write(Path("other.jsonl"), [*rows_of(BAD), rows_of(BAD)[1]])
    with pytest.raises(DataError, match=r"^other.jsonl:line 6:id: expected an id of its own, got 'row"):
        compared("a=other.jsonl", "b=good")


def test_sources_may_lack_where_no_metric_asks_for_them(place: Path) -> None:
    bare = [{key: row[key] for key in ("id", "prediction", "references")} for row in rows_of(BAD)]
    write(Path("bare.jsonl"), bare)
    assert compared("a=good", "b=bare.jsonl")["metrics"] == compared("a=good", "b=bad")["metrics"]
    assert compared("a=bare.jsonl", "b=good", "task.metrics=[chrf]")["num_examples"] == 5
    with pytest.raises(DataError, match=r"^bare.jsonl:source: .*; sari compares with it. Leave these metrics out.$"):
        compared("a=bare.jsonl", "b=good", "task.metrics=[chrf,sari]")


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["a=good", "b=none"], "b: expected a run's folder or a file of predictions, got 'none'; "
         "there is no file none."),
        (["a=[good,none.jsonl]", "b=bad"], "a: expected a run's folder or a file of predictions, got 'none.jsonl'; "
         "there is no file none.jsonl."),
        (["a=good", "b=bad", "split=validation"], "a: expected a run's folder or a file of predictions, got 'good'; "
         "there is no file good/predictions/validation.jsonl."),
        (["a=[]", "b=bad"], "a: expected a run, or a list of different runs, got []."),
        (["a=[good,bad/../good]", "b=bad"], "a: expected a run, or a list of different runs, "
         "got ['good', 'bad/../good']."),
        (["a=good", "b=bad", "task.metrics=[chr]"], "task.metrics: expected names out of "),
        (["a=good", "b=[1]"], "b[0]: expected text, got 1. Quote it to make it text"),
        (["a=good", "b=3"], "b: expected text or a list, each text, got 3. Quote it to make it text: 'b=\"3\"'."),
        (["a=good", "b=bad", "seed=-1"], "seed: expected 0..4294967295, got -1."),
        (["a=good,bad", "b=bad"], "a: expected one value, got 'a=good,bad'. Write [a,list]."),
    ],
)  # fmt: skip
def test_mistakes_of_the_command(overrides: list[str], text: str, place: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        compared(*overrides)
    assert str(caught.value).startswith(text)


def test_no_metrics_are_known(place: Path) -> None:
    write_run(place / "other", BAD, ["rouge1"])
    write(Path("alone.jsonl"), rows_of(BAD))
    for a in ("good", "alone.jsonl"):
        with pytest.raises(
            ConfigError, match=r"^task.metrics: expected names of metrics; there is no metrics.json with"
        ):
            compared(f"a={a}", f"b={'other' if a == 'good' else a}")
    Path("other/metrics.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"^other/metrics.json: expected a JSON object; it is damaged: "):
        compared("a=good", "b=other")
