"""Back into SLURM's queue: a job that was warned of its end asks for another life, unless its lives gain nothing.

SLURM itself requeues what it preempts and what loses a node; that comes with SIGTERM or with nothing.
"""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from encdec_train import atomic, console, distributed
from encdec_train.errors import ClusterError, StoppedError, fault

SCONTROL_SECONDS = 60
LIVES_WITHOUT_A_STEP = 3  # starts of a job in a row that find the same last step; not studied
FILE_NAME = "slurm/starts.json"  # below `folder.JOB_FOLDER`


@contextmanager
def answering(noted: Callable[[], signal.Signals | None]) -> Iterator[None]:
    """Put this job back into the queue when what happens inside is ended by SIGUSR1; rank 0 does it, last of all.

    Args:
        noted: What this process was asked by, so far: a SIGTERM after SIGUSR1 means no other life.
    """
    ended = False
    try:
        yield
        ended = True
    except StoppedError as why:
        ended = True
        if noted() is signal.SIGUSR1 and distributed.rank() == 0:
            requeue()
        if why.step is not None:
            distributed.barrier()  # a rank that ends before rank 0 has it killed, by srun or by Lightning
        raise
    finally:
        if not ended and noted() is signal.SIGUSR1 and distributed.rank() == 0:
            requeue()  # another rank left first, and this one failed without it


def requeue() -> None:
    """Tell SLURM to start this job again, which it answers with SIGTERM to all of it; outside a job do nothing."""
    job = distributed.allocation()
    if job is None:
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it comes within milliseconds, and the exit status is to be 143
    command = ["scontrol", "requeue", job.job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SCONTROL_SECONDS, check=False)
        failure = (done.stderr or done.stdout).strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    if failure:
        console.warn(f"`{' '.join(command)}`: {failure}. Submit the same job again: it goes on from there.")
    else:
        console.say(f"job {job.job} is back in the queue, and goes on from there")


def check_progress(folder: Path, last_step: int) -> None:
    """Note that a job starts again, and refuse when its last lives have not brought the run a step further.

    Args:
        folder: The run's.
        last_step: Of the newest checkpoint, 0 without one.

    Raises:
        ClusterError: The third start in a row finds the same step.
    """
    job = distributed.allocation()
    if job is None or not job.num_restarts:
        return
    file = folder / FILE_NAME
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    steps = [*before.get(job.job, []), last_step][-LIVES_WITHOUT_A_STEP:]
    atomic.write_json(file, {job.job: steps})
    if len(steps) == LIVES_WITHOUT_A_STEP and len(set(steps)) == 1:
        reason = f"{LIVES_WITHOUT_A_STEP} starts of job {job.job} in a row found step {last_step}"
        remedy = "Its log says how each life ended; raise cluster.time or lower trainer.checkpoint_every_steps"
        raise ClusterError(fault("requeue", "a step gained between two starts", None, reason, remedy))
