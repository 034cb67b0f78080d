"""The verb `submit`: write a job's script, have SLURM check it, and put it into the queue."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from encdec_train import atomic, console
from encdec_train.cluster import script
from encdec_train.config_cluster import SubmitConfig
from encdec_train.errors import ClusterError, ConfigError, fault
from encdec_train.fingerprint import json_sha256
from encdec_train.folder import JOB_FOLDER, RunFolder

SLURM_SECONDS = 60
SCRIPT = "job.sbatch"
QUEUED = "job.json"


@dataclass(frozen=True)
class Job:
    """One run to be made."""

    overrides: Sequence[str]  # train's
    folder: RunFolder  # where it will be


def submit(config: SubmitConfig, jobs: Sequence[Job], flags: Sequence[str], *, array: bool) -> None:
    """Submit what is neither finished nor in the queue; print the job's id, and say where to look.

    Args:
        config: Of the first job; its cluster section is that of all.
        jobs: In an order that stays the same: a job's place is its number in the array.
        flags: Of the command line, for each job.
        array: Whether it is a sweep: one array of jobs.

    Raises:
        ConfigError: SLURM refuses the script, or there is no SLURM.
        ClusterError: SLURM does not answer.
    """
    todo = [number for number, job in enumerate(jobs) if not _is_done(job)]
    if not todo:
        console.say("nothing is left to submit")
        return
    place = _place(config, jobs, array)
    log = place / ("%A_%a.log" if array else "%j.log")
    name = place.name if array else jobs[0].folder.path.name
    tasks = config.cluster.gpus_per_node or config.trainer.devices
    asked = script.options(config.cluster, tasks, name, str(log))
    if array:
        asked.append(f"--array={','.join(map(str, todo))}")
    numbered = {number: job.overrides for number, job in enumerate(jobs)}
    text = script.script(config.cluster, asked, _program(config, flags), numbered, array=array)
    if config.submit.dry_run:
        console.out(text.rstrip("\n"))
        return
    _sbatch("--test-only", text=text)
    file = place / SCRIPT
    atomic.write(file, text.encode())
    job = _sbatch("--parsable", str(file)).partition(";")[0]
    for number in todo:
        queued = {"job": f"{job}_{number}" if array else job}
        atomic.write_json(jobs[number].folder.path / JOB_FOLDER / QUEUED, queued)
    console.out(job)
    shown = str(log).replace("%A", job).replace("%a", str(todo[0])).replace("%j", job)
    _say_where(job, [jobs[number] for number in todo], file, shown)


def _say_where(job: str, jobs: Sequence[Job], file: Path, log: str) -> None:
    console.say(f"submitted as job {job}: {len(jobs)} run{'s' * (len(jobs) > 1)}, {file}")
    for one in jobs:
        console.say(f"  {one.folder.path}")
    console.say(f"watch it:  squeue -j {job}\nits log:   tail -F {shlex.quote(log)}\nend it:    scancel {job}")
    console.say("The same command later submits what is missing or has failed.")


def _program(config: SubmitConfig, flags: Sequence[str]) -> str:
    """Name this program for another machine: by its path, unless the job sets up an environment of its own."""
    own = config.cluster.setup or config.cluster.container
    return shlex.join([*(["encdec"] if own else [sys.executable, "-m", "encdec_train"]), "train", *flags])


def _place(config: SubmitConfig, jobs: Sequence[Job], array: bool) -> Path:
    if not array:
        return jobs[0].folder.path / JOB_FOLDER
    names = [job.folder.path.name for job in jobs]
    return Path(config.run.output_dir) / JOB_FOLDER / f"sweep-{json_sha256(names)[:6]}"


def _is_done(job: Job) -> bool:
    """Say what there is no need to submit, and why."""
    job.folder.check_identity()
    if job.folder.is_finished():
        console.say(f"{job.folder.path} is finished")
        return True
    file = job.folder.path / JOB_FOLDER / QUEUED
    queued: Mapping[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not queued or shutil.which("squeue") is None:
        return False
    done = _slurm("squeue", "--noheader", "--format=%T", f"--jobs={queued['job']}")  # an unknown job: status 1
    state = done.stdout.strip() if done.returncode == 0 else ""
    if state:
        console.say(f"{job.folder.path} is in the queue: job {queued['job']} is {state}")
    return bool(state)


def _sbatch(*arguments: str, text: str = "") -> str:
    if shutil.which("sbatch") is None:
        remedy = "Type this on a login node; submit.dry_run=true prints the script anywhere"
        raise ConfigError(fault("sbatch", "a machine with SLURM", None, "there is no such command here", remedy))
    done = _slurm("sbatch", *arguments, text=text)
    if done.returncode:
        reason = " ".join(done.stderr.replace("sbatch: ", "").split())
        raise ConfigError(fault("cluster", "a job that SLURM accepts", None, f"sbatch says: {reason}"))
    return done.stdout.strip()


def _slurm(*command: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=SLURM_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ClusterError(fault(command[0], f"an answer within {SLURM_SECONDS} s", None, "SLURM is silent")) from error
