import csv

import pytest

from encdec_train.config import TrackerName
from encdec_train.tracking import Outcome, start
from encdec_train.tracking.csv_table import FILE_NAME
from encdec_train.training.metrics_log import MetricsLog


@pytest.fixture
def begin(settings, tmp_path):
    """Begin a process that goes on after a step: its tracker, and the log that tells it."""

    def begun(done=0):
        tracker = start(TrackerName.csv, settings, tmp_path, "r", {})
        return tracker, MetricsLog(tmp_path / "metrics.jsonl", tracker, done)

    return begun


def rows_of(folder):
    with (folder / FILE_NAME).open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_columns_are_the_union_of_all_rows(begin, tmp_path):
    tracker, log = begin()
    log.log(1, {"train/loss": 2.5})
    log.log(2, {"train/loss": 2.25})
    log.log(2, {"validation/loss": 2.0, "train/loss": 1.0})
    log.log_examples(2, "texts", [{"a": "b"}])
    tracker.finish({"test/sacrebleu": 31.25}, Outcome.finished)
    assert rows_of(tmp_path) == [
        ["step", "train/loss", "validation/loss", "test/sacrebleu"],
        ["1", "2.5", "", ""],
        ["2", "2.25", "", ""],
        ["2", "1.0", "2.0", ""],
        ["2", "", "", "31.25"],
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE_NAME, "metrics.jsonl"]


def test_each_row_is_on_disk_at_once_and_known_columns_are_appended(begin, tmp_path):
    _, log = begin()
    log.log(1, {"a": 1.0})
    assert rows_of(tmp_path) == [["step", "a"], ["1", "1.0"]]
    inode = (tmp_path / FILE_NAME).stat().st_ino
    log.log(2, {"a": 2.0})
    assert rows_of(tmp_path) == [["step", "a"], ["1", "1.0"], ["2", "2.0"]]
    assert (tmp_path / FILE_NAME).stat().st_ino == inode


def test_a_resumed_run_replaces_the_rows_that_it_computes_again(begin, tmp_path):
    _, log = begin()
    for step in (1, 2, 3, 4):
        log.log(step, {"loss": float(step)})
    log.log(4, {"validation/loss": 9.0})
    with (tmp_path / FILE_NAME).open("a", encoding="utf-8") as file:
        file.write("2,9.0,7.")  # killed in the middle of a number
    _, resumed = begin(2)
    resumed.log(3, {"loss": 30.0})
    resumed.log(4, {"loss": 40.0, "speed": 1.0})
    assert rows_of(tmp_path) == [
        ["step", "loss", "speed"],
        ["1", "1.0", ""],
        ["2", "2.0", ""],
        ["3", "30.0", ""],
        ["4", "40.0", "1.0"],
    ]


def test_a_run_that_was_trained_before_keeps_its_rows_and_has_its_scores_once(begin, tmp_path):
    _, log = begin()
    log.log(1, {"loss": 1.0})
    for value in (2.0, 3.0):
        tracker, _ = begin(1)
        tracker.finish({"test/sari": value}, Outcome.finished)
    assert rows_of(tmp_path) == [["step", "loss", "test/sari"], ["1", "1.0", ""], ["1", "", "3.0"]]


def test_a_table_of_somebody_else_is_replaced(begin, tmp_path):
    (tmp_path / FILE_NAME).write_text("name,age,x\na,3\nb,4,5,6,7\n", encoding="utf-8")
    begin()[1].log(1, {"loss": 1.0})
    assert rows_of(tmp_path) == [["step", "loss"], ["1", "1.0"]]


def test_a_full_or_read_only_disk_does_not_stop_the_run(begin, tmp_path, capsys):
    tracker, log = begin()
    log.log(1, {"a": 1.0})
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / FILE_NAME).mkdir()
    log.log(2, {"a": 2.0})
    log.log(3, {"a": 3.0})
    tracker.finish({"a": 3.0}, Outcome.finished)
    assert capsys.readouterr().err.count("warning: csv tracking stops here (IsADirectoryError") == 1


def test_a_folder_that_cannot_be_made_is_a_warning(settings, tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    tracker = start(TrackerName.csv, settings, tmp_path / "file" / "run", "r", {})
    tracker.log(1, {"a": 1.0})
    assert "warning: csv tracking stops here (NotADirectoryError" in capsys.readouterr().err
