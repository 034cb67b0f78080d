from pathlib import Path

import pytest

from encdec_train.config import TrackerName
from encdec_train.tracking import TRACKERS, Outcome, Tracker, start
from encdec_train.tracking.tracker import Guarded


class Failing(Tracker):
    """Fails from its second call on, and counts its calls."""

    def __init__(self, error):
        self.error, self.calls = error, 0

    def log(self, step, values):
        self.calls += 1
        if self.calls > 1:
            raise self.error

    def log_examples(self, step, name, rows):
        self.log(step, {})

    def log_export(self, folder, scores):
        self.log(0, {})

    def finish(self, summary, outcome):
        self.log(0, {})


def test_every_name_but_auto_has_a_builder():
    assert set(TRACKERS) == set(TrackerName) - {TrackerName.auto}


def test_none_tells_nobody(settings, tmp_path, capsys):
    tracker = start(TrackerName.none, settings, tmp_path / "run", "r", {})
    tracker.log(1, {"a": 1.0})
    tracker.log_examples(1, "a", [{"b": "c"}])
    tracker.finish({"a": 1.0}, Outcome.failed)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_auto_on_a_machine_without_settings_is_none(bare_machine, settings, tmp_path):
    assert type(start(TrackerName.auto, settings, tmp_path, "r", {})) is Tracker


@pytest.mark.parametrize("act", ["log", "log_examples", "log_export", "finish"])
def test_a_failure_is_one_warning_and_the_end_of_tracking(act, capsys):
    inner = Failing(ConnectionResetError("lost https://user:secret@host/x\nsecond line"))
    guarded = Guarded(inner, "W", (OSError,), "Do this.")
    guarded.log(1, {})
    {
        "log": lambda: guarded.log(2, {}),
        "log_export": lambda: guarded.log_export(Path("export"), {}),
        "log_examples": lambda: guarded.log_examples(2, "x", []),
        "finish": lambda: guarded.finish({}, Outcome.finished),
    }[act]()
    for step in range(3, 6):
        guarded.log(step, {})
    guarded.log_examples(6, "x", [])
    guarded.finish({}, Outcome.finished)
    assert inner.calls == 2
    assert capsys.readouterr().err == (
        "warning: W tracking stops here (ConnectionResetError: lost https://***@host/x); the run goes on, "
        "metrics.jsonl has everything. Do this.\n"
    )


def test_what_is_not_a_known_failure_is_raised():
    guarded = Guarded(Failing(KeyError("x")), "W", (OSError,))
    guarded.log(1, {})
    with pytest.raises(KeyError, match="x"):
        guarded.log(2, {})
