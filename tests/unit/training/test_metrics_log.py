"""`metrics.jsonl` holds each step once, whatever happened in between."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from encdec_train.jsonl import read_rows
from encdec_train.training.metrics_log import MetricsLog


def test_rows_written_out(tmp_path: Path, heard_of: Callable[..., Any]) -> None:
    path, heard = tmp_path / "run" / "metrics.jsonl", heard_of()
    log = MetricsLog(path, heard, 0)
    log.log(1, {"train/loss": 2.5, "train/epoch": 0})
    log.log(2, {"validation/loss": float("nan"), "validation/sacrebleu": float("inf")})
    log.log_examples(2, "validation", [{"source": "a"}, {"source": "b"}])
    assert path.read_text() == (
        '{"step": 1, "train/loss": 2.5, "train/epoch": 0}\n'
        '{"step": 2, "validation/loss": null, "validation/sacrebleu": null}\n'
    )
    assert [step for step, _ in heard.rows] == [1, 2]
    assert heard.rows[0][1] == {"train/loss": 2.5, "train/epoch": 0}
    assert heard.examples == [(2, "validation", 2)]


def test_going_on_cuts_what_is_about_to_be_made_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, None, 0)
    for step in (1, 2, 2, 3, 4):
        log.log(step, {"x": step / 2})
    MetricsLog(path, None, 2).log(3, {"x": 9.0})
    assert list(read_rows(path)) == [
        {"step": 1, "x": 0.5},
        {"step": 2, "x": 1.0},
        {"step": 2, "x": 1.0},
        {"step": 3, "x": 9.0},
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_half_a_line_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "x": 1.0}\n{"step": 2, "x"')
    assert list(read_rows(path)) == [{"step": 1, "x": 1.0}]
    MetricsLog(path, None, 5).log(3, {"x": 3.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]


def test_starting_again_from_nothing_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, None, 0).log(1, {"x": 1.0})
    MetricsLog(path, None, 0)
    assert list(read_rows(path)) == []


def test_without_a_path_only_the_tracker_is_told(tmp_path: Path, heard_of: Callable[..., Any]) -> None:
    heard = heard_of()
    MetricsLog(None, heard, 0).log(1, {"x": 1.0})
    assert heard.rows == [(1, {"x": 1.0})]
    assert list(read_rows(tmp_path / "metrics.jsonl")) == []
    MetricsLog(None, None, 0).log_examples(1, "validation", [])
