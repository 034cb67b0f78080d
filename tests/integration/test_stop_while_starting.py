"""Ctrl-C and SIGTERM while `trainer.devices=2` starts: one clear end, whatever the moment."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

PLANTED = Path(__file__).parents[1] / "planted"
COMMAND = (sys.executable, "-m", "encdec_train", "train")
TWO = ("trainer.devices=2", "trainer.max_steps=300", "trainer.validate_every_steps=null", "trainer.decoded_examples=0")
LIMIT_SECONDS = 150
AFTER_STEP_1 = "encdec train: stopped after step 1 by {}; the same command goes on from there."
AT_ONCE = "stopped by Ctrl-C; the same command goes on from the last checkpoint"
LAUNCHER = "pytorch_lightning.strategies.launchers.subprocess_script"
POINTS = {  # the rank that signals, the module, the call, the signal, to the whole group, more keys, what is said
    "rank 1 is not yet Python": (0, LAUNCHER, "_launch_process_observer", "SIGINT", True, (), AFTER_STEP_1),
    "rank 1 reads its command": (1, "hydra", "", "SIGINT", True, (), AFTER_STEP_1),
    "rank 1 imports torch": (1, "torch", "", "SIGTERM", False, (), AFTER_STEP_1),
    "rank 1 imports Lightning": (1, "pytorch_lightning", "", "SIGINT", True, (), AFTER_STEP_1),
    "the ranks meet": (1, "torch.distributed", "init_process_group", "SIGTERM", True, (), AFTER_STEP_1),
    "the test is decoded": (
        0, "encdec_train.evaluation", "text_baseline", "SIGINT", True,
        ("trainer.max_steps=1", "task.test_file=test.jsonl"), AT_ONCE,
    ),
}  # fmt: skip


def left_of(group: int) -> list[str]:
    """Return the processes of a group that have not ended."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append((process / "cmdline").read_text(encoding="utf-8"))
        except OSError:  # it has ended meanwhile
            continue
    return found


def start(name: str, base: tuple[str, ...]) -> tuple[int, str, list[str]]:
    """Start a run that is signalled at a point; returns its status, its stderr and what lives on."""
    *point, number, group, more, _ = POINTS[name]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(PLANTED), *(path for path in sys.path if path)]),
        "PLANTED": json.dumps([*point, signal.Signals[number], group]),
    }
    command = [*COMMAND, *base, *TWO, *more, f"run.name={name.replace(' ', '_')}"]
    run = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        said = run.communicate(timeout=LIMIT_SECONDS)[1]
        deadline = time.monotonic() + 5
        while (left := left_of(run.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        if left_of(run.pid):
            os.killpg(run.pid, signal.SIGKILL)
    return run.returncode, said, left


@pytest.mark.slow
def test_a_signal_while_ranks_start_ends_them_all_and_is_said_once(here: Path, shared: ModuleType) -> None:
    with ThreadPoolExecutor(4) as pool:
        ends = dict(zip(POINTS, pool.map(lambda name: start(name, shared.BASE), POINTS), strict=True))
    for name, (_, _, _, number, _, _, said) in POINTS.items():
        status, err, left = ends[name]
        assert status == 128 + signal.Signals[number], f"{name}: {err}"
        assert err.splitlines()[-1] == said.format(number), f"{name}: {err}"
        assert err.count("stopped") == 1, err
        assert "Traceback" not in err, err
        assert left == [], name
