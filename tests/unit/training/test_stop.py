"""What a signal does to a run, by real signals to this process."""

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from encdec_train.errors import StoppedError
from encdec_train.training import stop
from encdec_train.training.stop import SIGNALS, StopWish, agreed, held


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """See that every test leaves the handlers as they were."""
    before = [signal.getsignal(one) for one in SIGNALS]
    yield
    assert [signal.getsignal(one) for one in SIGNALS] == before


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        signal.pthread_kill(threading.main_thread().ident or 0, number)  # other tests' threads block nothing


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_outside_training_the_run_ends_at_once(number: signal.Signals) -> None:
    wish = StopWish()
    message = f"^stopped by {number.name}; the same command goes on from the last checkpoint.$"
    with pytest.raises(StoppedError, match=message) as why, wish:
        send(number)
    assert (why.value.exit_status, why.value.step, wish.noted) == (143, None, number)


@pytest.mark.parametrize("number", SIGNALS)
def test_what_was_put_off_is_obeyed_afterwards(number: signal.Signals) -> None:
    with StopWish() as wish:
        wish.obey()  # nothing was asked
        with wish.patiently():
            send(number)
        with pytest.raises(StoppedError, match=f"^stopped by {number.name}"):
            wish.obey()


def test_what_came_before_anything_listened_is_obeyed_by_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        stop.listen_early()
        send(signal.SIGUSR1)
        with StopWish() as wish:
            if rank == "1":
                wish.obey()
                continue
            with pytest.raises(StoppedError, match="^stopped by SIGUSR1"):
                wish.obey()
    signal.signal(signal.SIGUSR1, before)


def test_other_ranks_of_a_job_wait_for_what_rank_0_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that leaves first has rank 0 ended by srun, before it has asked for another life."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with StopWish() as wish:
        send(signal.SIGUSR1)
        assert wish.noted is signal.SIGUSR1
        send(signal.SIGTERM)
        assert wish.noted is signal.SIGTERM
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(StoppedError, match="^stopped by SIGTERM"), StopWish():
        send(signal.SIGTERM)


def test_what_comes_while_the_run_is_left_does_not_disturb_that() -> None:
    tidied = []

    def leave(wish: StopWish) -> None:
        with wish:
            try:
                send(signal.SIGUSR1)
            finally:
                send(signal.SIGTERM)
                tidied.append(wish.noted)

    with pytest.raises(StoppedError, match="^stopped by SIGUSR1"):
        leave(StopWish())
    assert tidied == [signal.SIGTERM]


def test_outside_training_ctrl_c_is_pythons() -> None:
    with pytest.raises(KeyboardInterrupt), StopWish():
        send(signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_rank_that_lightning_started_notes_and_stays(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning kills rank 0 when another one has ended; rank 0 itself has a LOCAL_RANK of 0 then."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    clock = iter(range(100, 200, 10))
    monkeypatch.setattr(stop.time, "monotonic", lambda: next(clock))
    before = {one: signal.getsignal(one) for one in SIGNALS}
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # as it is born
    send(number)
    with StopWish() as wish:
        assert wish.noted is number
        send(number)  # so much later it is another wish
        wish.obey()
    send(number)  # on its way out
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    for one, handler in before.items():
        signal.signal(one, handler)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises((StoppedError, KeyboardInterrupt)), StopWish():
        send(number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_a_library_swallows_still_ends_the_run(number: signal.Signals) -> None:
    with StopWish() as wish:
        with suppress(BaseException):
            send(number)
        assert wish.counts() == [float(one is number) for one in SIGNALS]
        with pytest.raises(StoppedError, match=f"^stopped by {number.name}"):
            wish.obey()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_within_an_import_waits_for_its_end(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What importlib calls back swallows it, and torch's C++ aborts the process."""
    name = f"interrupted_by_{number.name}"
    (tmp_path / f"{name}.py").write_text(f"import os\nos.kill(os.getpid(), {number})\nwhole = True\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    steps = []

    def load() -> None:
        steps.append(importlib.import_module(name).whole)
        threading.Event().wait(30)
        steps.append("not reached")

    with pytest.raises((StoppedError, KeyboardInterrupt)), StopWish():
        load()
    assert steps == [True]
    del sys.modules[name]
    wish = StopWish()
    with wish, wish.patiently():
        importlib.import_module(name)
    assert wish.noted is number


def test_a_signal_that_a_library_turns_into_an_error_of_its_own_is_told_from_one() -> None:
    def load(interrupted: bool) -> None:
        try:
            if interrupted:
                send(signal.SIGINT)
        finally:
            raise ImportError("a library cannot be loaded")

    with pytest.raises(StoppedError, match="^stopped by SIGINT"), StopWish():
        load(True)
    with pytest.raises(ImportError, match="a library"), StopWish():
        load(False)


def test_a_signal_that_is_held_comes_right_after() -> None:
    steps = []

    def hold() -> None:
        with held():
            send(signal.SIGTERM)
            steps.append("within")
        steps.append("after")

    with pytest.raises(StoppedError, match="^stopped by SIGTERM"), StopWish():
        hold()
    assert steps == ["within"]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


ORPHAN = """
import os, signal, subprocess, sys, time

if sys.argv[1:] == ["rank 1"]:
    from encdec_train.training.stop import listen_early
    listen_early()
    print("listens", flush=True)
    time.sleep(60)
os.environ["LOCAL_RANK"] = "1"
subprocess.Popen([sys.executable, __file__, "rank 1"], stdout=subprocess.PIPE).stdout.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process that its parent has ended")
def test_a_rank_that_lightning_started_ends_with_rank_0(tmp_path: object) -> None:
    script = f"{tmp_path}/orphan.py"
    with open(script, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(ORPHAN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # stderr is closed when the last of the two has ended
    done = subprocess.run([sys.executable, script], env=environment, timeout=50, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, b"")


@pytest.mark.parametrize(
    ("numbers", "noted"),
    [
        ([signal.SIGTERM], signal.SIGTERM),
        ([signal.SIGINT, signal.SIGINT], signal.SIGINT),  # at once: a launcher passes on what the group has had
        ([signal.SIGUSR1], signal.SIGUSR1),
        ([signal.SIGUSR1, signal.SIGUSR1], signal.SIGUSR1),
        ([signal.SIGUSR1, signal.SIGTERM], signal.SIGTERM),  # preempted meanwhile, or cancelled: not to be requeued
        ([signal.SIGTERM, signal.SIGUSR1], signal.SIGTERM),
    ],
)
@pytest.mark.parametrize("seconds_between", [0.0, 10.0])
def test_within_training_it_is_noted(
    numbers: list[signal.Signals], noted: signal.Signals, seconds_between: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seconds_between and numbers[0] is numbers[-1] is signal.SIGINT:
        pytest.skip("a second Ctrl-C later on ends the process")
    clock = iter(range(100))
    monkeypatch.setattr(stop.time, "monotonic", lambda: next(clock) * seconds_between + 100)
    wish = StopWish()
    with wish, wish.patiently():
        send(*numbers)
        assert wish.noted is noted
    assert wish.counts() == [float(one is noted) for one in SIGNALS]


def test_training_listens_by_itself_where_nobody_does() -> None:
    wish = StopWish()
    for _ in range(2):  # the run's training, and its baseline's
        wish.noted = None
        with wish.patiently():
            send(signal.SIGUSR1)
        assert wish.noted is signal.SIGUSR1


def test_a_signal_that_came_before_anybody_listened_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    stop.listen_early()
    try:
        send(signal.SIGUSR1)
        with StopWish() as wish:
            assert wish.noted is signal.SIGUSR1
        with StopWish() as wish:
            assert wish.noted is None
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_the_process_was_started_to_ignore_stays_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        stop.listen_early()
        with StopWish() as wish:
            send(signal.SIGUSR1)
            assert wish.noted is None
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_ranks_agree_on_the_gravest() -> None:
    assert agreed([0.0, 0.0, 0.0]) is None
    assert agreed([0.0, 0.0, 2.0]) is signal.SIGUSR1
    assert agreed([0.0, 1.0, 2.0]) is signal.SIGINT
    assert agreed([1.0, 1.0, 2.0]) is signal.SIGTERM


FORKSERVER = """
import multiprocessing, os, signal, sys
from multiprocessing import forkserver

def work(connection):
    connection.send(signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN)

if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    if sys.argv[1] == "shielded":
        from encdec_train.training.stop import shield_workers
        shield_workers()
    else:
        forkserver.ensure_running()
    server = forkserver._forkserver._forkserver_pid
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(server, number)
    ended, _ = os.waitpid(server, 0 if sys.argv[1] != "shielded" else os.WNOHANG)
    if ended:
        sys.exit(3)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=work, args=(theirs,))
    process.start()
    sys.exit(0 if ours.recv() else 4)
"""


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="not on this platform")
@pytest.mark.parametrize(("kind", "status"), [("bare", 3), ("shielded", 0)])
def test_a_server_that_forks_workers_outlives_a_signal_to_all(kind: str, status: int, tmp_path: object) -> None:
    script = f"{tmp_path}/forks.py"
    with open(script, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(FORKSERVER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, script, kind], env=environment, timeout=60, capture_output=True, check=False)
    assert done.returncode == status, done.stderr.decode()


def test_without_such_a_server_there_is_nothing_to_shield() -> None:
    from multiprocessing import forkserver

    before = [signal.getsignal(one) for one in stop.SIGNALS]
    assert multiprocessing.get_start_method() != "forkserver"
    stop.shield_workers()
    assert [signal.getsignal(one) for one in stop.SIGNALS] == before
    assert forkserver._forkserver._forkserver_pid is None  # none was started
