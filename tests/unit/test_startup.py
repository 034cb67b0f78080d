"""The parts of a start follow one another without a gap, and end with the first step."""

import subprocess
import sys

import pytest

from encdec_train import startup


def test_each_part_is_what_came_since_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 103.0, 103.01, 107.5])
    monkeypatch.setattr(startup, "_marks", [])
    monkeypatch.setattr(startup, "_process_started", lambda: 90.0)
    monkeypatch.setattr(startup.time, "monotonic", lambda: next(clock))
    assert not startup.mark("nothing has begun")
    startup.begin()
    assert all(startup.mark(part) for part in ("torch", "rows", "tokens", "first step"))
    assert not startup.mark("what comes later")
    assert startup.seconds() == {"torch": 10.0, "rows": 3.0, "tokens": 0.01, "first step": 4.49}
    assert startup.line() == "first step after 17.5 s: torch 10.0, rows 3.0, first step 4.5"


def test_a_second_run_of_a_process_counts_from_its_own_start(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([5.0, 7.0, 8.0])
    monkeypatch.setattr(startup, "_marks", [("", 0.0), ("first step", 1.0)])
    monkeypatch.setattr(startup.time, "monotonic", lambda: next(clock))
    startup.begin()
    startup.mark("model")
    startup.mark("first step")
    assert startup.seconds() == {"model": 2.0, "first step": 1.0}


def test_what_follows_a_run_without_a_step_is_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "_marks", [("", 0.0), ("model", 1.0)])
    startup.end()
    assert not startup.mark("first step")
    assert startup.seconds() == {}
    monkeypatch.setattr(startup, "_marks", [("", 0.0), ("first step", 1.0)])
    startup.end()
    assert startup.seconds() == {"first step": 1.0}


def test_the_clock_counts_from_the_start_of_the_process() -> None:
    code = (
        "import time; time.sleep(0.5);"
        "from encdec_train import startup; print(time.monotonic() - startup._process_started())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.5 <= float(done.stdout) < 600
