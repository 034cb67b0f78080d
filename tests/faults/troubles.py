"""Faults besides a kill, each real and at an exact step: stops, hangs, errors, NaN, full disks, clocks that jump.

`server.py` calls `on_<name>(step)` in the child that is to suffer it.
"""

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from server import Clock, after, before, die, die_at, note_fault

DAY_SECONDS = 86_400.0


def once_in_step(step: int, act: Callable[[], None]) -> None:
    """Act once, while a step computes its loss."""
    from encdec_train.training import module

    left = [act]

    def acted(*_: Any, **__: Any) -> None:
        if left and Clock.step == step:
            note_fault()
            left.pop()()

    before(module, "loss_sum", acted)


def on_sigstop(step: int) -> None:
    once_in_step(step, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def on_sigstop_in_decoding(number: int) -> None:
    """Stop before such a line of the journal."""
    from encdec_train.decoding.journal import Journal

    lines: list[int] = []

    def act(*_: Any, **__: Any) -> None:
        lines.append(number)
        if len(lines) == number:
            note_fault()
            os.kill(os.getpid(), signal.SIGSTOP)

    before(Journal, "append", act)


def on_sleep(step: int) -> None:
    once_in_step(step, lambda: time.sleep(1000))


def on_short_sleep(step: int) -> None:
    once_in_step(step, lambda: time.sleep(3))


def on_sleep_in_collate(step: int) -> None:
    from encdec_train.data.datamodule import StepDataset

    def act(_dataset: Any, index: int) -> None:
        if index + 1 == step:
            note_fault()
            time.sleep(1000)

    before(StepDataset, "__getitem__", act)


def on_error(step: int) -> None:
    def fail() -> None:
        raise ValueError("an example that nobody expected")

    once_in_step(step, fail)


def on_out_of_memory(step: int) -> None:
    def fail() -> None:
        import torch

        raise torch.OutOfMemoryError("tried to allocate 80.00 GiB")

    once_in_step(step, fail)


def on_error_before_ranks_meet(_step: int) -> None:
    from encdec_train import run

    def fail(*_: Any) -> None:
        note_fault()
        raise ValueError("a disk that only this rank has")

    before(run, "planned", fail)


def _poison(is_due: Callable[[], bool]) -> None:
    from encdec_train.training import module

    original = module.loss_sum

    def poisoned(*arguments: Any, **named: Any) -> Any:
        found = original(*arguments, **named)
        return found * float("nan") if is_due() else found

    module.loss_sum = poisoned


def on_nan(step: int) -> None:
    _poison(lambda: Clock.step == step)


def on_nan_from_then_on(step: int) -> None:
    _poison(lambda: Clock.step >= step)


def on_nan_and_kill(step: int) -> None:
    """NaN in step 3; killed at the end of `step`."""
    from encdec_train.training.callbacks import EveryStep

    on_nan(3)
    after(EveryStep, "on_train_batch_end", lambda *_, **__: die() if Clock.step == step else None)


def on_full_disk(step: int) -> None:
    """Fill the disk of the run for good."""
    once_in_step(step, lambda: fill(Path(os.environ["FAULT_PLACE"])))


def on_disk_full_at_the_export(_step: int) -> None:
    """Fill the disk of the run when the model is to be written for good."""
    from encdec_train.modeling import export

    def act(*_: Any, **__: Any) -> None:
        note_fault()
        fill(Path(os.environ["FAULT_PLACE"]))

    before(export, "separate_state", act)


def on_little_memory(step: int) -> None:
    """From a step on the process may have hardly more address space than it has, as under `ulimit -v`."""

    def act() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used, used))
        bytearray(64 << 20)

    once_in_step(step, act)


def on_tiny_shm(_step: int) -> None:
    """Give this process, and the workers to come, a `/dev/shm` of one page, as some containers do."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000) != 0:  # CLONE_NEWNS
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS)")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", "/dev/shm"], check=True)


def fill(place: Path) -> None:
    """Write until nothing more goes in."""
    with suppress(OSError), (place / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def on_read_only_disk(step: int) -> None:
    def act() -> None:
        place = os.environ["FAULT_PLACE"]
        subprocess.run(["mount", "--bind", place, place], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)

    once_in_step(step, act)


def on_vanished_folder(step: int) -> None:
    once_in_step(step, lambda: shutil.rmtree(os.environ["FAULT_PLACE"]))


def on_clock_back(step: int) -> None:
    """From a step on it is yesterday; what measures time must not look at this clock."""
    now = time.time
    once_in_step(step, lambda: setattr(time, "time", lambda: now() - DAY_SECONDS))


def on_dead_worker(step: int) -> None:
    once_in_step(step, lambda: multiprocessing.active_children()[0].kill())


def on_kill_within_the_cache(_step: int) -> None:
    """Die with half of the tokens written."""
    from encdec_train import atomic

    before(atomic, "install", lambda *_, **__: die())


def on_no_network(_step: int) -> None:
    """Leave the network: a namespace of its own, in which not even the loopback is up."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")


def _signal_before(owner: Any, name: str, step: int) -> None:
    told: list[int] = []

    def act(*_: Any, **__: Any) -> None:
        if not told and Clock.step >= step:
            told.append(step)
            note_fault()
            os.kill(os.getpid(), signal.SIGTERM)

    before(owner, name, act)


def on_sigterm_in_backward(step: int) -> None:
    from encdec_train.training.module import Seq2SeqModule

    _signal_before(Seq2SeqModule, "manual_backward", step)


def on_sigterm_while_waiting_for_data(step: int) -> None:
    from encdec_train.data.datamodule import StepDataset

    _signal_before(StepDataset, "__getitem__", step)


def on_sigterm_within_a_checkpoint(step: int) -> None:
    """At the rank that writes while it writes, at the other while it waits."""
    from encdec_train import distributed
    from encdec_train.training import checkpoint

    owner, name = (checkpoint, "write") if os.environ.get("RANK", "0") == "0" else (distributed, "barrier")
    _signal_before(owner, name, step)


def on_usr1(step: int) -> None:
    once_in_step(step, lambda: os.kill(os.getpid(), signal.SIGUSR1))


def on_sigterm_twice(step: int) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2.1)  # so much later it is another wish
        os.kill(os.getpid(), signal.SIGTERM)

    once_in_step(step, twice)


def on_measured(_step: int) -> None:
    """No fault: memory and open files of this process every ten steps, beside its stderr."""
    from encdec_train.training.callbacks import EveryStep

    def write(*_: Any, **__: Any) -> None:
        if Clock.step % 10 == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
            with Path(os.environ["FAULT_TIME"]).with_suffix(".measured").open("a", encoding="utf-8") as file:
                file.write(f"{Clock.step} {pages * os.sysconf('SC_PAGESIZE') // 1024} {files}\n")

    after(EveryStep, "on_train_batch_end", write)


def on_barrier(step: int) -> None:
    """Where the ranks that do not write wait for the one that does."""
    from encdec_train import distributed

    before(distributed, "barrier", die_at(step))


def on_predictions(step: int) -> None:
    from encdec_train.decoding.journal import Journal

    before(Journal, "finish", die_at(step))


def on_report(step: int) -> None:
    from encdec_train.report import html

    before(html, "write_report", die_at(step))
