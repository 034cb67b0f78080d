import json

import pytest

SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"


def entry(value, low, high):
    return {"value": value, "signature": SIGNATURE, "ci95": [low, high]}


@pytest.fixture
def run_folder(tmp_path):
    """Give a run folder with two test splits, two baselines, curves and twelve predictions."""
    folder = tmp_path / "demo-bert2bert-3fa9c1"
    (folder / "predictions").mkdir(parents=True)
    (folder / "baseline_random").mkdir()
    rows = [{"step": step, "train/loss": 4.0 - step / 50, "optim/lr": step * 1e-6} for step in range(1, 101)]
    rows.insert(50, {"step": 50, "validation/loss": 3.25, "validation/exact_match": 41.0})
    rows.append({"step": 100, "validation/loss": 2.125, "validation/exact_match": 62.5})
    write_lines(folder / "metrics.jsonl", rows)
    write_lines(folder / "baseline_random" / "metrics.jsonl", [{"step": 50, "validation/loss": 6.5}])
    metrics = {
        "test": {"sacrebleu": entry(31.2345, 30.4, 32.03), "exact_match": entry(4.2, 3.1, 5.3)},
        "test_unseen": {"sacrebleu": entry(25.5, 24.0, 27.0)},
        "baselines": {"copy": {"test": {"sacrebleu": entry(12.75, 12.0, 13.0)}}, "random": {"test": {}}},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    predictions = [
        {"id": f"row{i}", "source": f"source {i}", "prediction": f"same {i} ours", "references": [f"same {i} theirs"]}
        for i in range(12)
    ]
    write_lines(folder / "predictions" / "test.jsonl", predictions)
    (folder / "config.yaml").write_text("seed: 7\ntask:\n  name: demo\n", encoding="utf-8")
    manifest = {
        "started_utc": "2026-01-02T03:04:05+00:00",
        "git": {"commit": "0123456789abcdef", "dirty": True},
        "versions": {"torch": "2.13.0"},
        "hardware": {"gpus": ["A", "B"]},
        "parameters": {"distinct": 1234567},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
