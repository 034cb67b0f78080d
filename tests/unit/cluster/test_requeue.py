"""When a job is put back into the queue, by a `scontrol` that notes what it is told."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from encdec_train.cluster import requeue
from encdec_train.errors import ClusterError, StoppedError

USR1, TERM = signal.SIGUSR1, signal.SIGTERM


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The calls of a stand-in, a line each; it fails where a file `fails` lies beside."""
    told = tmp_path / "told"
    program = tmp_path / "scontrol"
    state, fails = tmp_path / "state", f"[ ! -e {tmp_path}/fails ] || {{ echo disabled >&2; exit 1; }}"
    program.write_text(f'#!/bin/sh\necho "$@" >> {told}\n[ ! -e {state} ] || cat {state}\n{fails}\n')
    program.chmod(0o755)
    told.touch()
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith("SLURM_")] + ["RANK", "LOCAL_RANK"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    before = signal.getsignal(TERM)
    yield told
    signal.signal(TERM, before)


def end(noted: signal.Signals | None, error: BaseException) -> None:
    """End a run by an error, within `answering`."""
    with requeue.answering(lambda: noted):
        raise error


@pytest.mark.parametrize("step", [None, 7])
def test_usr1_puts_the_job_back(step: int | None, scontrol: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StoppedError):
        end(USR1, StoppedError(USR1, step))
    assert scontrol.read_text() == "requeue 12\n"
    assert capsys.readouterr().err == "job 12 is back in the queue, and goes on from there\n"
    assert signal.getsignal(TERM) is signal.SIG_IGN  # SLURM's answer must not change the exit status


def test_another_rank_may_have_left_first(scontrol: Path) -> None:
    with pytest.raises(RuntimeError, match="connection reset"):
        end(USR1, RuntimeError("connection reset"))
    assert scontrol.read_text() == "requeue 12\n"


def test_a_task_of_an_array_is_named_as_slurm_wants(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with pytest.raises(StoppedError):
        end(USR1, StoppedError(USR1))
    assert scontrol.read_text() == "requeue 11_3\n"


@pytest.mark.parametrize(
    ("state", "calls"),
    [
        ("JobId=12 JobState=RUNNING Reason=None PreemptTime=2026-01-01T00:00:00", ["-o show job 12", "requeue 12"]),
        ("JobId=12 JobState=RUNNING Reason=None PreemptTime=None", ["-o show job 12"]),  # somebody's `kill`
        ("JobId=12 JobState=COMPLETING Reason=None PreemptTime=None", ["-o show job 12"]),  # scancel
        ("JobId=12 JobState=RUNNING", ["-o show job 12"]),
    ],
)
def test_sigterm_puts_back_what_is_preempted_and_not_what_is_cancelled(
    state: str, calls: list[str], scontrol: Path
) -> None:
    scontrol.with_name("state").write_text(f"{state}\n")
    with pytest.raises(StoppedError):
        end(TERM, StoppedError(USR1, 7))  # it came after a warning, or alone: the last word counts
    assert scontrol.read_text().splitlines() == calls


@pytest.mark.parametrize(
    ("noted", "error", "environment"),
    [
        (None, RuntimeError("a bug"), {}),
        (None, KeyboardInterrupt(), {}),
        (USR1, StoppedError(USR1, 7), {"SLURM_PROCID": "1"}),
    ],
)
def test_otherwise_it_is_left_alone(
    noted: signal.Signals | None, error: BaseException, environment: dict[str, str], scontrol: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(type(error)):
        end(noted, error)
    assert scontrol.read_text() == ""


def test_a_run_that_ends_well_is_not_made_again(scontrol: Path) -> None:
    with requeue.answering(lambda: USR1):
        pass
    assert scontrol.read_text() == ""


def test_outside_a_job_there_is_no_queue(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(StoppedError):
        end(USR1, StoppedError(USR1))
    assert scontrol.read_text() == ""


def test_a_refusal_is_said_with_what_to_do(scontrol: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scontrol.with_name("fails").touch()
    with pytest.raises(StoppedError):
        end(USR1, StoppedError(USR1))
    assert capsys.readouterr().err == (
        "warning: `scontrol requeue 12`: disabled. Submit the same job again: it goes on from there.\n"
    )


def test_a_machine_without_scontrol(scontrol: Path, monkeypatch: pytest.MonkeyPatch,
                                    capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StoppedError):
        end(USR1, StoppedError(USR1))
    assert "No such file or directory: 'scontrol'. Submit the same job again" in capsys.readouterr().err


def test_lives_that_gain_nothing_come_to_an_end(
    scontrol: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    requeue.check_progress(folder, 5)  # the first life
    for restart, step in enumerate([5, 8, 8, 9, 9], start=1):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        requeue.check_progress(folder, step)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "6")
    message = (
        "^requeue: expected a step gained between two starts; 3 starts of job 12 in a row found step 9. Its log says"
    )
    with pytest.raises(ClusterError, match=message):
        requeue.check_progress(folder, 9)
    monkeypatch.setenv("SLURM_JOB_ID", "13")  # submitted by somebody who has read the message
    requeue.check_progress(folder, 9)
    assert json.loads((folder / "slurm" / "starts.json").read_text()) == {"13": [9]}
