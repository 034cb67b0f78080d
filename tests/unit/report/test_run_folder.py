import json

import pytest

from encdec_train.errors import DataError
from encdec_train.report.run_folder import curve, read_run


def test_everything_is_read(run_folder):
    run = read_run(run_folder)
    assert run.name == "demo-bert2bert-3fa9c1"
    assert list(run.scores) == ["test", "test_unseen"]
    assert run.scores["test"]["exact_match"]["ci95"] == [3.1, 5.3]
    assert run.baselines["copy"]["test"]["sacrebleu"]["value"] == 12.75
    assert curve(run.rows, "validation/loss") == [(50.0, 3.25), (100.0, 2.125)]
    assert curve(run.random_rows, "validation/loss") == [(50.0, 6.5)]
    assert run.predictions == {"test": run_folder / "predictions" / "test.jsonl"}


def test_what_is_missing_is_empty(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    run = read_run(tmp_path)
    assert (run.config, run.manifest, run.rows, run.scores, run.baselines, run.predictions) == ("", {}, [], {}, {}, {})


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"runs: expected a run folder, got .*it has none of config\.yaml"):
        read_run(tmp_path)


@pytest.mark.parametrize("line", ["{broken", "[1, 2]"])
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: expected a JSON object"):
        read_run(tmp_path)


def test_a_damaged_file_is_named(run_folder):
    (run_folder / "metrics.json").write_text('{"test": ', encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics\.json: expected a JSON object; it is damaged: Expecting value"):
        read_run(run_folder)


def test_a_metric_without_a_value_is_left_out(run_folder):
    scores = {
        "test": {"a": {"value": None}, "b": {"value": 1}},
        "baselines": {"copy": {"test": {"a": {"value": None}}}},
    }
    (run_folder / "metrics.json").write_text(json.dumps(scores), encoding="utf-8")
    run = read_run(run_folder)
    assert run.scores == {"test": {"b": {"value": 1}}}
    assert run.baselines == {"copy": {"test": {}}}


def test_a_curve_skips_null_and_text(tmp_path):
    rows = [{"step": 1, "a": None}, {"step": 2, "a": 1}, {"step": 3}, {"a": 2.0}, {"step": 4, "a": "x"}]
    assert curve(rows, "a") == [(2.0, 1.0)]
