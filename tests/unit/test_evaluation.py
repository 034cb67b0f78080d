import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from encdec_train import evaluation
from encdec_train.compose import compose
from encdec_train.config import Baseline
from encdec_train.data.load import Rows
from encdec_train.errors import ConfigError, DataError
from encdec_train.metrics.score import score as score_texts

REFERENCES = [["the cat sat", "a cat sat"], ["a dog ran"], ["the bird"]]
SOURCES = ["cat the sat", "a dog ran", "bird the"]
TEXTS = ["a cat sat", "a dog sat", "the bird"]


def session(*names: str) -> Any:
    rows = Rows(["0", "1", "2"], SOURCES, [several[0] for several in REFERENCES], REFERENCES)
    return SimpleNamespace(splits={name: SimpleNamespace(rows=rows) for name in names})


def test_the_test_splits_of_a_task_that_are_there() -> None:
    files, demo = compose("train", ["task=files", "task.train_file=x"]), compose("train")
    assert evaluation.test_splits(files, session("train", "validation", "test")) == ["test"]
    assert evaluation.test_splits(files, session("train", "validation")) == []
    assert evaluation.test_splits(demo, session("test_unseen_words", "test", "train")) == ["test", "test_unseen_words"]


def test_scores_carry_the_names_of_the_task() -> None:
    config = compose("score", ["predictions=x", "task.metrics=[rouge,exact_match]", "seed=3"])
    found = evaluation.scored(TEXTS, session("test").splits["test"].rows, config)
    assert list(found) == ["rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match"]
    assert found == score_texts(TEXTS, REFERENCES, SOURCES, list(found), seed=3)
    assert found["exact_match"]["value"] == pytest.approx(100 * 2 / 3)


def test_a_runs_seed_is_not_the_bootstraps() -> None:
    config = compose("train", ["task=files", "task.train_file=x", "task.metrics=[chrf]", "seed=3"])
    texts = [f"{'a ' * n}cat" for n in range(12)]
    references = [["a a a a a cat"] for _ in texts]
    rows = Rows([str(n) for n in range(12)], texts, texts, references)
    by_seed = [score_texts(texts, references, texts, ["chrf"], seed=seed) for seed in (0, 3)]
    assert by_seed[0] != by_seed[1]
    assert evaluation.scored(texts, rows, config) == by_seed[0]


def test_copying_is_scored_as_if_it_were_the_output() -> None:
    config = compose("train", ["task=files", "task.train_file=x", "task.metrics=[exact_match]"])
    found = evaluation.text_baseline(Baseline.copy, config, session("train", "test"))
    assert list(found) == ["test"]
    assert found["test"]["exact_match"]["value"] == pytest.approx(100 / 3)  # the dog ran


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("One. Two! Three? Four.", ["One.", "Two!", "Three?"]),
        ("One.\n\nTwo\n Three. Four", ["One.", "Two", "Three."]),
        ('He said "no." Then (so it went.) 3.5 left! Gone.', ['He said "no."', "Then (so it went.)", "3.5 left!"]),
        ("Mr. Smith ran. Off", ["Mr.", "Smith ran.", "Off"]),
        ("  no end at all  ", ["no end at all  "]),
        ("Ein Satz… noch einer?! Schluss", ["Ein Satz… noch einer?!", "Schluss"]),
    ],
)
def test_the_leading_sentences(text: str, lines: list[str]) -> None:
    assert evaluation.lead(text) == "\n".join(lines)


class Words:
    """A codec whose tokens are lower-case words, with an end token."""

    def encode_targets(self, texts: list[str]) -> list[list[str]]:
        return [[*text.lower().split(), "</s>"] for text in texts]

    def cut_target(self, ids: list[str], limit: int) -> list[str]:
        return ids if len(ids) <= limit else [*ids[: limit - 1], "</s>"]

    def decode(self, ids: list[str]) -> str:
        return " ".join(ids)


@pytest.mark.parametrize(
    ("overrides", "texts"),
    [
        ([], ["the cat sat", "a dog ran", "the bird"]),
        (["task.max_target_tokens=3"], ["the cat", "a dog", "the bird"]),
        (["decoding.max_new_tokens=3"], ["the cat", "a dog", "the bird"]),
    ],
)
def test_the_ceiling_is_the_first_reference_as_a_decoder_could_write_it(overrides: list[str], texts: list[str]) -> None:
    config = compose("train", ["task=files", "task.train_file=x", "task.metrics=[rouge1,exact_match]", *overrides])
    references = [["The cat  sat", "a cat sat"], ["a dog ran"], ["the bird"]]
    rows = Rows(["0", "1", "2"], SOURCES, ["another target"] * 3, references)
    loaded: Any = SimpleNamespace(splits={"test": SimpleNamespace(rows=rows)}, codec=Words())
    found = evaluation.text_baseline(Baseline.ceiling, config, loaded)
    assert found == {"test": score_texts(texts, references, SOURCES, ["rouge1", "exact_match"], seed=0)}


def test_lead_3_is_scored_too() -> None:
    config = compose("train", ["task=files", "task.train_file=x", "task.metrics=[rougeLsum]"])
    rows = Rows(["0"], ["A b. C d. E f. G h."], ["x"], [["a b.\nc d.\ne f."]])
    loaded: Any = SimpleNamespace(splits={"test": SimpleNamespace(rows=rows)})
    assert evaluation.text_baseline(Baseline.lead3, config, loaded)["test"]["rougeLsum"]["value"] == pytest.approx(100)


def entry(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "signature": "s", "ci95": [low, high]}


def test_the_table_of_scores() -> None:
    scores = {
        "test": {"sari": entry(31.239, 30, 32.5), "exact_match": entry(4, 3, 5)},
        "hard": {"sari": entry(2, 1, 3)},
    }
    copied = {"test": {"sari": entry(12, 0, 0), "exact_match": entry(0, 0, 0)}, "hard": {"sari": entry(1, 0, 0)}}
    assert evaluation.score_table(scores, {"copy": copied}).splitlines() == [
        "split  metric       score  95% interval     copy",
        "-----  -----------  -----  --------------  -----",
        "test   sari         31.24  30.00 to 32.50  12.00",
        "test   exact_match   4.00  3.00 to 5.00     0.00",
        "hard   sari          2.00  1.00 to 3.00     1.00",
    ]
    assert len(evaluation.score_table(scores).splitlines()) == 5


def predictions(path: Path, **changes: Any) -> Path:
    rows = [
        {"id": str(i), "source": s, "prediction": p, "references": r, **changes}
        for i, (s, p, r) in enumerate(zip(SOURCES, TEXTS, REFERENCES, strict=True))
    ]
    kept = [{key: value for key, value in row.items() if value is not None} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return path


def test_a_prediction_file_is_scored(tmp_path: Path) -> None:
    file = predictions(tmp_path / "predictions.jsonl")
    found = evaluation.score(compose("score", [f"predictions={file}", "task.metrics=[sari,sacrebleu]", "seed=4"]))
    assert found == score_texts(TEXTS, REFERENCES, SOURCES, ["sari", "sacrebleu"], seed=4)


def test_anybodys_prediction_file_may_have_no_sources(tmp_path: Path) -> None:
    file = predictions(tmp_path / "predictions.jsonl", source=None, id=None, references="the bird")
    found = evaluation.score(compose("score", [f"predictions={file}", "task.metrics=[exact_match]"]))
    assert found["exact_match"]["value"] == pytest.approx(100 / 3)
    with pytest.raises(
        DataError, match=r"/predictions\.jsonl: example '0': sources: expected one an example, got 'none'; sari comp"
    ):
        evaluation.score(compose("score", [f"predictions={file}"]))


def test_a_prediction_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="^predictions: expected a file, got .* there is no such"):
        evaluation.score(compose("score", [f"predictions={tmp_path}/none.jsonl"]))


def test_predictions_are_joined_to_the_rows_of_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = predictions(tmp_path / "ours.jsonl")
    expected = evaluation.score(compose("score", [f"predictions={ours}"]))
    rows = [{"id": str(i), "source": SOURCES[i], "target": "x", "references": REFERENCES[i]} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    theirs = predictions(tmp_path / "theirs.jsonl", source=None, references=None).read_text().splitlines(keepends=True)
    forms = {"a.jsonl": "".join(theirs), "b.jsonl": "".join(theirs[::-1]), "c.txt": "\n".join(TEXTS)}
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        for split in ("test", "validation"):
            given = [f"predictions={tmp_path}/{name}", f"task.{split}_file={tmp_path}/rows.jsonl", f"split={split}"]
            assert evaluation.score(compose("score", given)) == expected
    assert capsys.readouterr().err == ""


def test_empty_predictions_score_and_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = predictions(tmp_path / "predictions.jsonl", prediction=" ")
    found = evaluation.score(compose("score", [f"predictions={file}"]))
    assert {name: entry["value"] for name, entry in found.items() if "sari" not in name} == {
        "sacrebleu": 0, "rouge1": 0, "rouge2": 0, "rougeL": 0, "rougeLsum": 0, "exact_match": 0,
    }  # fmt: skip
    assert capsys.readouterr().err == "3 of 3 predictions are empty\n"


def test_the_split_of_a_prediction_file_must_be_there(tmp_path: Path, pairs_file: Path) -> None:
    file = predictions(tmp_path / "predictions.jsonl")
    with pytest.raises(ConfigError, match="^task.test_file: expected a file of pairs, got 'null'; split=test reads it"):
        evaluation.score(compose("score", [f"predictions={file}", f"task.validation_file={pairs_file}"]))


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["task=files"], "task.test_file: expected a file of pairs, got 'null'; split=test reads it."),
        (["task=files", "split=validation"],
         "task.validation_file: expected a file of pairs, got 'null'; split=validation reads it."),
        (["task=files", "split=tset"], "split: expected one of train, validation, test, got 'tset'."),
        (["task=files", "task.test_file=FILE", "split=dev"], "split: expected one of test, got 'dev'."),
        (["task=files", "task.test_file=FILE", "run.name=taken"],
         "run.name: expected a new name, got 'taken'; OUT/taken is a training run, whose scores this would replace."),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated(overrides: list[str], text: str, tmp_path: Path, pairs_file: Path) -> None:
    taken = tmp_path / "out" / "taken"
    taken.mkdir(parents=True)
    (taken / "manifest.json").write_text("{}", encoding="utf-8")
    given = [override.replace("FILE", str(pairs_file)) for override in overrides]
    with pytest.raises(ConfigError) as caught:
        evaluation.evaluate(compose("evaluate", ["checkpoint=x", f"run.output_dir={tmp_path}/out", *given]))
    assert str(caught.value) == text.replace("OUT", str(tmp_path / "out"))
    assert [path.name for path in taken.iterdir()] == ["manifest.json"]
