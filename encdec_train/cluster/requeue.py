"""Back into SLURM's queue: a job that was warned of its end asks for another life, unless its lives gain nothing.

So does one that is preempted: SLURM requeues it only if it is still there when its time of grace is over (seen with
22.05). What loses a node is requeued by SLURM itself.
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
    """Put this job back into the queue when what happens inside is ended by SIGUSR1 or preemption; rank 0, last of all.

    Args:
        noted: What this process was asked by, so far. A SIGTERM may come from `scancel`, which is to be obeyed.
    """
    ended = False
    try:
        yield
        ended = True
    except StoppedError as why:
        ended = True
        _answer(noted())
        if why.step is not None:
            distributed.barrier()  # a rank that ends before rank 0 has it killed, by srun or by Lightning
        raise
    finally:
        if not ended:
            _answer(noted())  # another rank left first, and this one failed without it


def _answer(noted: signal.Signals | None) -> None:
    job = distributed.allocation()
    if job is None or distributed.rank() > 0 or noted not in {signal.SIGUSR1, signal.SIGTERM}:
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it answers a requeue at once, and the exit status is to be 143
    if noted is signal.SIGTERM and not _is_preempted(job.job):
        return
    status, said = _scontrol("requeue", job.job)
    if status:
        console.warn(f"`scontrol requeue {job.job}`: {said}. Submit the same job again: it goes on from there.")
    else:
        console.say(f"job {job.job} is back in the queue, and goes on from there")


def _is_preempted(job: str) -> bool:
    """Tell preemption from `scancel`, after which the job counts as completing, and from a signal of somebody else."""
    status, said = _scontrol("-o", "show", "job", job)
    words = dict(word.partition("=")[::2] for word in said.split())
    return not status and words.get("JobState") == "RUNNING" and words.get("PreemptTime", "None") != "None"


def _scontrol(*words: str) -> tuple[int, str]:
    try:
        done = subprocess.run(
            ["scontrol", *words], capture_output=True, text=True, timeout=SCONTROL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, (done.stdout or done.stderr).strip()


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
