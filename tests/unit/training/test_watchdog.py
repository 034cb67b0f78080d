"""Ranks find out about one another without a word between them; each is a process of its own here."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from encdec_train import distributed
from encdec_train.errors import ClusterError, DataError, StoppedError
from encdec_train.training import watchdog
from encdec_train.training.stop import StopWish
from encdec_train.training.watchdog import Watch


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.05)
    monkeypatch.setenv("RANK", "0")


@pytest.fixture
def rank_1(tmp_path: Path) -> Callable[[Callable[[], None]], int]:
    """Be rank 1 in a child that does something under a watch; returns its process when it has shown itself."""

    def start(act: Callable[[], None]) -> int:
        child = os.fork()
        if child == 0:
            os.environ["RANK"] = "1"
            try:
                with Watch(tmp_path, 2, None):
                    distributed.moved("step 3")
                    time.sleep(0.3)
                    act()
            finally:
                os._exit(0)
        while not (tmp_path / ".ranks" / "1").exists():
            time.sleep(0.01)
        return child

    return start


def watched(run: Path, child: Callable[[], int], error: RuntimeError) -> None:
    """Be rank 0, whose connection breaks when rank 1 has ended."""
    with Watch(run, 2, None):
        os.waitpid(child(), 0)
        raise error


def fail() -> None:
    raise ValueError("a bad example")


def refuse() -> None:
    raise DataError("train.jsonl:line 2: expected a text.")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            fail,
            r"^rank 1 \(process \d+ on .*\) failed: ValueError: a bad example\. The same command goes on: there is no ",
        ),
        (refuse, r"^rank 1 \(process \d+ on .*\) failed: train\.jsonl:line 2: expected a text\."),
        (die, r"^rank 1 \(process \d+ on .*\) was lost, at step 3: killed, or its machine\. The same command goes on"),
    ],
)
def test_a_broken_connection_is_the_other_ranks_fault(
    act: Callable[[], None], message: str, tmp_path: Path, rank_1: Callable[[Callable[[], None]], int]
) -> None:
    with pytest.raises(ClusterError, match=message):
        watched(tmp_path, lambda: rank_1(act), RuntimeError("Connection closed by peer"))
    assert [path.name for path in (tmp_path / "errors").glob("*")] == (["rank1.error"] if act is fail else [])


def test_an_error_of_its_own_is_its_own(
    tmp_path: Path, rank_1: Callable[[Callable[[], None]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "VERDICT_SECONDS", 0.2)
    with pytest.raises(RuntimeError, match=r"^mine, hf_"):  # rank 1 ended well: that is no loss
        watched(tmp_path, lambda: rank_1(lambda: None), RuntimeError("mine, hf_AAAAAAAAAAAAAAAAAAAAAAAA"))
    sign = json.loads((tmp_path / ".ranks" / "0").read_text())
    assert sign["failed"] == "RuntimeError: mine, ***"
    text = (tmp_path / "errors" / "rank0.error").read_text()
    assert text.startswith("Traceback")
    assert "AAAA" not in text


def test_what_an_earlier_start_left_blames_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "VERDICT_SECONDS", 0.2)
    (tmp_path / ".ranks").mkdir()
    old = {"rank": 1, "host": "there", "pid": 1, "start": ["there", 1, None, None], "beat": 9, "count": 3,
           "doing": "step 3", "waits": False, "failed": "ValueError: long ago"}  # fmt: skip
    (tmp_path / ".ranks" / "1").write_text(json.dumps(old))
    with pytest.raises(RuntimeError, match="^mine$"), Watch(tmp_path, 2, None):
        raise RuntimeError("mine")


def test_nothing_is_left_of_a_run_that_went_well(tmp_path: Path) -> None:
    with Watch(tmp_path, 2, 5):
        assert (tmp_path / ".ranks" / "0").stat().st_size == watchdog.SIGN_BYTES
    assert list(tmp_path.iterdir()) == []


def test_ranks_of_an_earlier_start_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / ".ranks").mkdir()
    (tmp_path / ".ranks" / "3").write_text("{}")
    with Watch(tmp_path, 1, None):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_stands_still_ends(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    child = os.fork()
    if child == 0:
        with Watch(tmp_path, 1, 1):
            distributed.moved("step 4")
            time.sleep(60)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert "no rank got on for trainer.stall_seconds=1; silent: rank 0 (process " in capfd.readouterr().err
    assert "test_a_process_that_stands_still_ends" in (tmp_path / "errors" / "rank0.stacks").read_text()


def test_what_is_not_watched_may_take_as_long_as_it_likes(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with Watch(tmp_path, 1, 1):
            distributed.moved("step 4")
            distributed.moved(None)
            time.sleep(2.5)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_signal_does_not_overtake_what_a_hang_ends_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """srun signals those who are left when the first rank has ended; the job's status hung on who was faster."""
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.3)
    child = os.fork()
    if child == 0:
        watch = Watch(tmp_path, 2, None)
        watch._stalled = lambda now: "no rank got on"  # type: ignore[method-assign]  # ends the process 0.6 s later
        try:
            with StopWish(), watch:
                time.sleep(0.4)
                threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
                raise RuntimeError("Connection closed by peer")
        except StoppedError:
            os._exit(143)
        finally:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_a_signal_does_not_hide_whose_fault_it_was(tmp_path: Path) -> None:
    """Nor does it while a rank finds out: srun signals who is left, and 143 would read as a stop that was asked for."""
    child = os.fork()
    if child == 0:
        watch, known_at = Watch(tmp_path, 2, None), time.monotonic() + 0.6
        watch._culprit = lambda: "rank 1 failed" if time.monotonic() > known_at else None  # type: ignore[method-assign]
        try:
            with StopWish(), watch:
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
                raise RuntimeError("Connection closed by peer")
        except ClusterError as error:
            os._exit(1 if str(error).startswith("rank 1 failed. The same command goes on") else 2)
        except StoppedError:
            os._exit(143)
        finally:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
