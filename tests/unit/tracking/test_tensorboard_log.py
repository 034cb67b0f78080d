import sys

import pytest

from encdec_train.config import TrackerName
from encdec_train.tracking import Outcome, Tracker, start
from encdec_train.tracking.tensorboard_log import FOLDER_NAME


@pytest.fixture
def begin(settings, tmp_path):
    return lambda: start(TrackerName.tensorboard, settings, tmp_path, "r", {"seed": 1, "x": {"api_key": "abc"}})


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / FOLDER_NAME))
    events.Reload()
    return events


def test_scalars_texts_and_summary_are_read_back(begin, tmp_path):
    tracker = begin()
    tracker.log(1, {"train/loss": 2.5, "optim/lr": 0.25})
    tracker.log(2, {"train/loss": 1.5})
    tracker.log_examples(2, "samples", [{"source": "a|b\nc", "prediction": "d"}, {"extra": "e"}])
    tracker.finish({"test/sacrebleu": 31.25}, Outcome.finished)
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 2.5), (2, 1.5)]
    assert [(e.step, e.value) for e in events.Scalars("optim/lr")] == [(1, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("test/sacrebleu")] == [(2, 31.25)]
    table = events.Tensors("samples/text_summary")[0].tensor_proto.string_val[0].decode()
    assert table == ("| source | prediction | extra |\n| --- | --- | --- |\n| a\\|b c | d |  |\n|  |  | e |")
    config = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"seed": 1' in config
    assert '"api_key": "***"' in config


def test_a_resumed_run_hides_the_steps_that_it_computes_again(begin, tmp_path):
    first = begin()
    for step in (1, 2, 3, 4):
        first.log(step, {"loss": float(step)})
    first.finish({}, Outcome.failed)
    second = begin()
    second.log(3, {"loss": 30.0})
    second.finish({}, Outcome.finished)
    assert [(e.step, e.value) for e in read(tmp_path).Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_without_the_library_the_run_goes_on(begin, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert type(begin()) is Tracker
    assert "pip install tensorboard" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_a_warning(begin, tmp_path, capsys):
    (tmp_path / FOLDER_NAME).write_text("", encoding="utf-8")
    tracker = begin()
    tracker.log(1, {"a": 1.0})
    tracker.log(2, {"a": 1.0})
    tracker.finish({}, Outcome.finished)
    assert capsys.readouterr().err.count("warning: TensorBoard tracking stops here") == 1
