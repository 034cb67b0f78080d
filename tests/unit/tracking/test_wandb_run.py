import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb_server

from encdec_train.config import TrackerName
from encdec_train.tracking import Outcome, Tracker, start, wandb_run

KEY = "a" * 40


@pytest.fixture
def begin(settings, tmp_path, bare_machine, monkeypatch):
    """Start a run named `my-run`; afterwards end wandb's service process."""
    import wandb

    for name in ("WANDB_ERROR_REPORTING", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "")  # so that what `start` sets is undone
        monkeypatch.delenv(name)
    config = {"seed": 1, "task": {"name": "files", "max_source_tokens": 64}, "hub": {"api_key": "open sesame"}}
    yield lambda: start(TrackerName.wandb, settings, tmp_path / "run folder", "my-run", config)
    wandb.teardown()


def run_files(tmp_path):
    return sorted((tmp_path / "run folder" / "wandb").glob("offline-run-*/run-my-run.wandb"))


def inspect(path, *options):
    """Read a run file with wandb's own command line, which needs no network."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(path)]
    return subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout


def history_of(path):
    records = [json.loads(line) for line in inspect(path).splitlines()]
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [{name: value for name, value in row.items() if name not in {"_runtime", "_timestamp"}} for row in rows]


def test_without_a_key_a_run_is_offline_at_once_and_is_read_back(begin, bare_machine, tmp_path, capsys):
    started = time.monotonic()
    tracker = begin()
    assert time.monotonic() - started < 10
    tracker.log(1, {"train/loss": 2.5})
    tracker.log(2, {"train/loss": 1.5})
    tracker.log(2, {"validation/loss": 1.25})
    tracker.log_examples(2, "samples", [{"source": "é", "prediction": "b"}, {"source": "c"}])
    tracker.finish({"test/sacrebleu": 31.25}, Outcome.finished)
    (path,) = run_files(tmp_path)

    history = history_of(path)
    table = {name: history[1].pop(name) for name in list(history[1]) if name.startswith("samples.")}
    assert history == [
        {"_step": 1, "train/loss": 2.5},
        {"_step": 2, "train/loss": 1.5, "validation/loss": 1.25},
    ]
    texts = json.loads((path.parent / "files" / table["samples.path"]).read_text(encoding="utf-8"))
    assert texts == {"columns": ["source", "prediction"], "data": [["é", "b"], ["c", ""]]}
    run = json.loads(inspect(path, "--summary"))
    assert run["summary"]["test/sacrebleu"] == 31.25
    assert run["config"] == {
        "seed": 1,
        "task": {"name": "files", "max_source_tokens": 64},
        "hub": {"api_key": "***"},
    }
    assert (run["run_id"], run["project"], run["tags"], run["exit_code"]) == ("my-run", "tests", ["unit"], 0)
    assert not (bare_machine / ".local").exists()  # where wandb stages tables when nothing else is said
    assert capsys.readouterr() == (
        "",
        "wandb: offline (no key for api.forge.coreweave.com: set WANDB_API_KEY or run `wandb login`).\n"
        f"wandb was offline. To upload it: wandb sync '{path.parent}'\n",
    )


def test_what_is_kept_names_no_code_no_command_line_and_no_key(begin, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sys, "argv", ["encdec", "--password=told-by-argv"])
    tracker = begin()
    tracker.log(1, {"a": 1.0})
    tracker.finish({}, Outcome.failed)
    (path,) = run_files(tmp_path)
    kept = {file.name: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}
    assert set(kept) <= {"debug-core.log", "debug-internal.log", "debug.log", "run-my-run.wandb"}
    for text in (KEY, "told-by-argv", "open sesame"):
        assert not [name for name, content in kept.items() if text.encode() in content]
    assert json.loads(inspect(path, "--summary"))["exit_code"] == 1


def test_a_server_that_cannot_be_reached_costs_less_than_4_s(begin, tmp_path, monkeypatch, capsys):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    started = time.monotonic()
    tracker = begin()
    assert time.monotonic() - started < 4
    tracker.log(1, {"a": 1.0})
    tracker.finish({}, Outcome.finished)
    assert history_of(run_files(tmp_path)[0]) == [{"_step": 1, "a": 1.0}]
    assert "wandb: offline (127.0.0.1 cannot be reached: [Errno 111]" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["short", "not a key \n" + "b" * 40])
def test_a_key_of_the_wrong_form_falls_back_to_offline(begin, tmp_path, monkeypatch, capsys, key):
    with wandb_server.serve() as (state, _):
        monkeypatch.setenv("WANDB_API_KEY", key)
        monkeypatch.setenv("WANDB_BASE_URL", state.url)
        begin().finish({}, Outcome.finished)
    shown = capsys.readouterr().err
    assert "wandb: offline (WANDB_API_KEY invalid" in shown
    assert key not in shown
    assert len(run_files(tmp_path)) == 1


def test_a_service_that_dies_ends_tracking_and_not_the_run(begin, capsys):
    tracker = begin()
    tracker.log(1, {"a": 1.0})
    for pid in service_processes():
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    started = time.monotonic()
    for step in range(2, 50):
        tracker.log(step, {"a": 1.0})
    tracker.log_examples(50, "x", [{"a": "b"}])
    tracker.finish({"a": 1.0}, Outcome.finished)
    assert time.monotonic() - started < 2
    shown = capsys.readouterr().err
    assert shown.count("warning: wandb tracking stops here") == 1
    assert "wandb sync '" in shown


def test_no_service_is_left_when_a_run_has_ended(begin):
    """SLURM signals every process of a job: a service that lives on is ended first, and wandb prints that at exit."""
    tracker = begin()
    tracker.log(1, {"a": 1.0})
    assert len(service_processes()) == 1
    tracker.finish({}, Outcome.stopped)
    assert service_processes() == []


def service_processes():
    """Give the ids of this process's own children that are wandb's service."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    return [pid for pid in pids if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_each_offline_start_has_the_whole_run_and_the_earlier_one_is_set_aside(begin, tmp_path):
    for step in (1, 2):
        with (tmp_path / "metrics").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "a": float(step)}) + "\n")
        tracker = begin()
        shutil.copy(tmp_path / "metrics", tmp_path / "run folder" / "metrics.jsonl")
        tracker.log(step, {"a": float(step)})
        tracker.finish({}, Outcome.finished)
        time.sleep(1.1)  # wandb names its folders by the second
    (path,) = run_files(tmp_path)
    assert history_of(path) == [{"_step": 1, "a": 1.0}, {"_step": 2, "a": 2.0}]
    (earlier,) = (tmp_path / "run folder" / "wandb").glob("earlier-offline-run-*-my-run/run-my-run.wandb")
    assert history_of(earlier) == [{"_step": 1, "a": 1.0}]


def test_the_export_is_kept_offline_without_a_copy(begin, tmp_path):
    export = tmp_path / "export"
    export.mkdir()
    (export / "weights").write_bytes(b"\x00" * 1000)
    tracker = begin()
    tracker.log_export(export, {"test": {"sari": {"value": 40.0, "ci95": [39.0, 41.0]}}})
    tracker.finish({}, Outcome.finished)
    (path,) = run_files(tmp_path)
    (record,) = [one for one in map(json.loads, inspect(path).splitlines()) if one["type"] == "artifact"]
    assert "my-run-export" in json.dumps(record)
    assert "39.0" in json.dumps(record)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file() and file.read_bytes() == b"\x00" * 1000] == [
        "weights"
    ]


def test_disabled_is_respected(begin, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert type(begin()) is Tracker


def test_without_the_library_the_run_goes_on(begin, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert type(begin()) is Tracker
    assert "pip install wandb" in capsys.readouterr().err


def test_auto_takes_wandb_where_a_mode_is_set(bare_machine, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert type(start(TrackerName.auto, settings, tmp_path, "r", {})) is Tracker
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("encdec_train.tracking.TRACKERS", {TrackerName.wandb: lambda *arguments: arguments})
    assert start(TrackerName.auto, settings, tmp_path, "r", {"password": "x"}) == (
        settings,
        tmp_path,
        "r",
        {"password": "***"},
    )
    assert wandb_run.is_configured()
