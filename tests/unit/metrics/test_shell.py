import json
import os
import subprocess
import sys

import evaluate
import pytest

from encdec_train.errors import ConfigError, DataError
from encdec_train.metrics import METRICS
from encdec_train.metrics.score import score
from encdec_train.metrics.shell import as_evaluate_metric

PREDICTIONS = ["the cat sat on the mat .", "a dog"]
REFERENCES = [["the cat is on the mat ."], ["A dog", "a dog", "dogs"]]
SOURCES = ["the cat was sitting on the mat .", "a big dog"]

OFFLINE = """
import json, pathlib
from encdec_train.metrics.shell import as_evaluate_metric
metric = as_evaluate_metric("rougeLsum")
print(json.dumps(metric.compute(predictions=["one two"], references=[["one three"]])))
"""


def columns(name):
    own = {"predictions": PREDICTIONS, "references": REFERENCES}
    return own | {"sources": SOURCES} if METRICS[name].needs_source else own


@pytest.mark.parametrize("name", [name for name in METRICS if name != "sacrebleu_ja"])  # a package of its own
def test_the_shell_gives_what_score_gives(name):
    metric = as_evaluate_metric(name)
    expected = score(PREDICTIONS, REFERENCES, SOURCES, [name], seed=5, num_resamples=1)[name]
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(**columns(name), seed=5, num_resamples=1) == {
        name: expected["value"], "signature": expected["signature"], "ci95": expected["ci95"],
    }  # fmt: skip


def test_rows_may_come_in_batches_and_one_by_one():
    metric = as_evaluate_metric("sari")
    metric.add_batch(predictions=PREDICTIONS[:1], references=REFERENCES[:1], sources=SOURCES[:1])
    metric.add(prediction=PREDICTIONS[1], reference=REFERENCES[1], sources=SOURCES[1])
    assert metric.compute()["sari"] == score(PREDICTIONS, REFERENCES, SOURCES, ["sari"])["sari"]["value"]


def test_it_can_be_used_again():
    metric = as_evaluate_metric("chrf")
    first = metric.compute(predictions=["a b"], references=[["a b"]])
    assert metric.compute(predictions=["x"], references=[["a b"]])["chrf"] == 0
    assert first["chrf"] == pytest.approx(100)


def test_sources_are_no_fault_where_they_are_not_needed():
    found = as_evaluate_metric("chrf").compute(predictions=["a b"], references=[["a b"]], sources=["c"])
    assert found["chrf"] == pytest.approx(100)


@pytest.mark.parametrize("name", ["rouge", "bleu"])
def test_a_name_that_is_not_one_metric_is_refused(name):
    with pytest.raises(ConfigError, match=f"name: expected one of sacrebleu, .*got '{name}'"):
        as_evaluate_metric(name)


def test_nothing_to_score_is_refused():
    with pytest.raises(DataError, match="predictions: expected 1 or more before compute.., got 0"):
        as_evaluate_metric("chrf").compute()
    with pytest.raises(DataError, match="predictions: expected 1 or more, got 0"):
        as_evaluate_metric("chrf").compute(predictions=[], references=[])


def test_metrics_can_be_combined():
    both = evaluate.combine([as_evaluate_metric("chrf"), as_evaluate_metric("rougeL")])
    found = both.compute(predictions=["a b"], references=[["a b"]])
    assert found["chrf"] == pytest.approx(100)
    assert found["rougeL"] == 100
    assert found["rougeL_signature"] == METRICS["rougeL"].signature([["a b"]])


@pytest.mark.slow
def test_s5_it_works_offline_without_home_and_leaves_no_files(tmp_path):
    nowhere = "/proc/nowhere"  # cannot be created, by root either
    away = {"HF_HUB_OFFLINE": "1", "HF_HOME": nowhere, "HOME": nowhere, "XDG_CACHE_HOME": nowhere}
    done = subprocess.run(
        [sys.executable, "-B", "-c", OFFLINE],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path), **away},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["rougeLsum"] == 50
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []  # torch makes an empty folder at import
