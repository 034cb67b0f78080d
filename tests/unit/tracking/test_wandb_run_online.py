"""Against a server on the loopback interface: one run however often it starts, and a server that stops answering."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb_server

from encdec_train.config import TrackerName
from encdec_train.tracking import Outcome, start, wandb_run

KEY = "0123456789" * 4
SCORES = {"test": {"sacrebleu": {"value": 31.25, "ci95": [30.0, 32.5], "signature": "nrefs:1|case:mixed"}}}


@pytest.fixture
def served(monkeypatch, bare_machine):
    """Give the state of a server that this machine is set up for, and a way to break it."""
    for name in ("WANDB_ERROR_REPORTING", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with wandb_server.serve() as (state, server):
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", state.url)
        breaks = {
            "dies": lambda: (server.shutdown(), server.server_close()),
            "answers 500": lambda: setattr(state, "fails_with", 500),
            "refuses the key": lambda: setattr(state, "fails_with", 401),
            "is silent": state.silent.set,
        }
        yield state, lambda how: breaks[how]()


@pytest.fixture
def begin(settings, tmp_path, served):
    import wandb

    yield lambda name="my-run": start(TrackerName.wandb, settings, tmp_path / "run", name, {"seed": 1})
    wandb.teardown()


@pytest.fixture
def logged(tmp_path):
    """Write rows of `metrics.jsonl`."""

    def write(*rows):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return write


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "export"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "sub" / "weights").write_bytes(b"\x00" * 1000)
    return folder


def test_two_starts_are_one_run_and_each_step_is_there_once(begin, served):
    first = begin()
    for step in (1, 2, 3, 4):
        first.log(step, {"loss": float(step)})
    first.finish({}, Outcome.stopped)
    second = begin()
    for step in (3, 4, 5):
        second.log(step, {"loss": float(step)})
    second.finish({"test/sacrebleu": 31.25}, Outcome.finished)
    ((name, run),) = served[0].runs.items()
    assert name == "my-run"
    assert run.history == [{"_step": step, "loss": float(step)} for step in (1, 2, 3, 4, 5)]
    assert (run.exit_codes, run.preempting, run.summary["test/sacrebleu"]) == ([143, 0], True, 31.25)
    assert (run.fields["project"], run.fields["tags"], run.config) == ("tests", ["unit"], {"seed": 1})


@pytest.mark.parametrize(("outcome", "code"), [(Outcome.finished, 0), (Outcome.failed, 1)])
def test_only_a_stopped_run_is_preempted(begin, served, outcome, code):
    begin().finish({}, outcome)
    run = served[0].runs["my-run"]
    assert (run.exit_codes, run.preempting) == ([code], False)


def test_what_a_killed_start_did_not_send_is_made_good(begin, served, logged):
    first = begin()
    first.log(1, {"loss": 1.0})
    first.finish({}, Outcome.failed)
    rows = [{"step": step, "loss": float(step)} for step in (1, 2, 3)]
    logged(*rows, {"step": 3, "validation/loss": None, "validation/ter": 0.5}, {"step": 4, "loss": 4.0})
    second = begin()
    second.log(4, {"loss": 4.0})
    second.log(5, {"loss": 5.0})
    second.finish({}, Outcome.finished)
    assert served[0].runs["my-run"].history == [
        {"_step": 1, "loss": 1},
        {"_step": 2, "loss": 2},
        {"_step": 3, "loss": 3, "validation/ter": 0.5},
        {"_step": 4, "loss": 4},
        {"_step": 5, "loss": 5},
    ]


def test_a_start_that_trains_no_more_sends_the_curves_too(begin, served, logged):
    logged({"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0})
    begin().finish({}, Outcome.finished)
    assert served[0].runs["my-run"].history == [{"_step": 1, "loss": 1}, {"_step": 2, "loss": 2}]


def test_a_group_reaches_the_server(begin, served, settings):
    settings.group = "files-bert2bert"
    begin().finish({}, Outcome.finished)
    assert served[0].runs["my-run"].fields["groupName"] == "files-bert2bert"


def test_the_export_is_an_artifact_with_its_scores(begin, served, export, tmp_path):
    state, _ = served
    for _ in range(2):
        tracker = begin("r" * 200)
        tracker.log_export(export, SCORES)
        tracker.finish({}, Outcome.finished)
    first, second = state.artifacts
    assert first["digest"] == second["digest"]  # for W&B the same version
    assert (first["artifactTypeName"], first["committed"]) == ("model", True)
    assert first["artifactCollectionName"] == "r" * 120 + "-export"
    assert json.loads(first["metadata"]) == SCORES
    assert state.uploads["/put/artifact/config.json"] == b"{}"
    assert state.uploads["/put/artifact/sub/weights"] == b"\x00" * 1000
    assert sorted(path.name for path in export.rglob("*")) == ["config.json", "sub", "weights"]
    assert not [path for path in tmp_path.rglob("*") if path.name != "weights" and b"\x00" * 1000 in content(path)]


def test_each_table_is_uploaded_with_its_step(begin, served):
    tracker = begin()
    for step in (1, 2):
        tracker.log(step, {"loss": 1.0})
        tracker.log_examples(step, "validation", [{"source": "é", "prediction": f"p{step}"}])
    tracker.finish({}, Outcome.finished)
    state, _ = served
    tables = [json.loads(state.uploads[f"/put/my-run/{row['validation']['path']}"]) for row in table_rows(state)]
    assert tables == [{"columns": ["source", "prediction"], "data": [["é", f"p{step}"]]} for step in (1, 2)]
    assert [row["_step"] for row in table_rows(state)] == [1, 2]


def table_rows(state):
    return [row for row in state.runs["my-run"].history if "validation" in row]


@pytest.mark.parametrize("how", ["dies", "answers 500", "is silent"])
def test_a_server_that_breaks_in_mid_run_costs_seconds_and_a_table(
    begin, served, how, export, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(wandb_run, "FINISH_TIMEOUT_SECONDS", 1)
    monkeypatch.setattr(wandb_run, "GRACE_SECONDS", 1)
    tracker = begin()
    tracker.log(1, {"loss": 1.0})
    tracker.log_examples(1, "validation", [{"a": "b"}])
    served[1](how)
    started = time.monotonic()
    for step in range(2, 500):
        tracker.log(step, {"loss": 1.0})
    tracker.log_examples(499, "validation", [{"a": "b"}])
    tracker.log_export(export, SCORES)
    tracker.finish({"a": 1.0}, Outcome.finished)
    assert time.monotonic() - started < 18  # asked without a look first, table and artifact take 19 s each
    shown = capsys.readouterr().err
    assert "table validation of step 499 is left out." in shown
    assert "the export is left out." in shown
    assert "warning: wandb tracking stops here (TimeoutError: Timed out finishing run.)" in shown
    assert f"To upload it: wandb sync {tmp_path}/run/wandb/run-" in shown
    (path,) = (tmp_path / "run" / "wandb").glob("run-*-my-run/run-my-run.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    kept = subprocess.run(inspect, check=True, timeout=60, capture_output=True, text=True).stdout
    num_rows = sum(json.loads(line)["type"] == "history" for line in kept.splitlines())
    assert num_rows > 499 - 32 * 1024 / 250  # a service that hangs keeps 32 KiB to itself, at 250 bytes a row


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("dies", "127.0.0.1 cannot be reached: [Errno 111] Connection refused"),
        ("is silent", "127.0.0.1 cannot be reached: no answer within 2.5 s"),
        ("answers 500", "127.0.0.1 cannot be reached: HTTP Error 500: Internal Server Error"),
        ("refuses the key", "Failed to authenticate with"),
    ],
)
def test_a_server_that_is_broken_at_the_start_makes_the_run_offline(begin, served, how, reason, capsys, tmp_path):
    served[1](how)
    started = time.monotonic()
    tracker = begin()
    assert time.monotonic() - started < 9  # less than `init` would wait
    tracker.log(1, {"loss": 1.0})
    tracker.finish({}, Outcome.finished)
    shown = capsys.readouterr().err
    assert f"wandb: offline ({reason}" in shown
    assert KEY not in shown
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*-my-run"))) == 1


START = """
import os, signal, sys
from pathlib import Path
from encdec_train.config import TrackerName, TrackingConfig
from encdec_train.tracking import Outcome, start
settings = TrackingConfig(kind=TrackerName.wandb, project="tests", group=None, tags=[])
tracker = start(TrackerName.wandb, settings, Path(sys.argv[1]), "my-run", {})
for step in map(int, sys.argv[2].split(",")):
    tracker.log(step, {"loss": float(step)})
if sys.argv[3:]:
    os.kill(os.getpid(), signal.SIGKILL)
tracker.finish({}, Outcome.finished)
"""


def command(*arguments):
    return [sys.executable, "-c", START, *map(str, arguments)]


def test_an_offline_run_that_was_killed_is_whole_after_the_next_start(served, logged, tmp_path, monkeypatch):
    """What the killed start left is unreadable, and stays out of the way of `wandb sync`, which would fail at it."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert subprocess.run(command(tmp_path / "run", "1,2,3,4", "kill"), check=False, timeout=60).returncode == -9
    logged(*({"step": step, "loss": float(step)} for step in (1, 2, 3)))
    time.sleep(1.1)  # wandb names its folders by the second
    subprocess.run(command(tmp_path / "run", "3,4,5"), check=True, timeout=60)
    monkeypatch.delenv("WANDB_MODE")
    sync = [sys.executable, "-m", "wandb", "sync", "--yes"]
    done = subprocess.run(sync, check=True, timeout=60, cwd=tmp_path / "run", capture_output=True, text=True)
    assert "Syncing 1 run(s)" in done.stderr + done.stdout
    assert served[0].runs["my-run"].history == [{"_step": step, "loss": step} for step in (1, 2, 3, 4, 5)]
    assert len(list((tmp_path / "run" / "wandb").glob("earlier-offline-run-*"))) == 1


@pytest.mark.parametrize("found", ["nothing", "an empty key"])
def test_a_terminal_is_never_asked(served, bare_machine, found, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    if found != "nothing":  # a settings file that names a key and has none
        (bare_machine / ".config" / "wandb").mkdir(parents=True)
        (bare_machine / ".config" / "wandb" / "settings").write_text("[default]\napi_key =\n", encoding="utf-8")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command(tmp_path / "run", "1"), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = read_terminal(ours, 15)
    process.kill()
    assert process.wait() == 0, shown
    assert "wandb: offline (" in shown
    assert "choice" not in shown


def read_terminal(terminal, seconds):
    """Read until the other side closes it, or the time is up."""
    shown, deadline = b"", time.monotonic() + seconds
    while select.select([terminal], [], [], max(deadline - time.monotonic(), 0))[0]:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # it was closed
            break
    return shown.decode()


def content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""
