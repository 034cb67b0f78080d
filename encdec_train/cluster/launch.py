"""How the processes of a run find one another: by srun, by torchrun, or alone. What cannot work is refused at once.

Neither the job's name nor how the tasks were asked for matters here; Lightning 2.6 does not recognise a job called
`bash` and starts a run in every task of it.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys

from encdec_train import distributed
from encdec_train.config import TrainerConfig
from encdec_train.distributed import Allocation
from encdec_train.errors import ConfigError, fault

SCONTROL_SECONDS = 10


def join(trainer: TrainerConfig) -> None:
    """Let the tasks of an srun step be the ranks of one run; check that there are as many as the config says.

    Raises:
        ConfigError: Too many, too few, or in an order that is none; srun was forgotten; a node's name leads nowhere.
    """
    wanted, job = trainer.devices * trainer.num_nodes, distributed.allocation()
    started = distributed.launched_tasks()
    if started is not None:
        if started != wanted:
            _refuse(trainer, f"{started} processes", "they are what torchrun started, one a device")
    elif distributed.is_child():
        return
    elif job is not None and (job.step_tasks or 1) > 1:
        _check_step(job, trainer)
        join_step()
    elif trainer.num_nodes > 1 or (job is not None and job.step_tasks is None and job.num_tasks > 1):
        got = f"{job.num_tasks} tasks and no srun" if job is not None else "one process"
        _refuse(trainer, got, "the ranks of several nodes are started by srun or torchrun")


def join_step() -> None:
    """Let the tasks of an srun step work together, however many they are."""
    job = distributed.allocation()
    if distributed.launched_tasks() is None and job is not None and (job.step_tasks or 1) > 1:
        distributed.join(job, os.environ.get("MASTER_ADDR") or address_of(job.first_node))


def _check_step(step: Allocation, trainer: TrainerConfig) -> None:
    rank, node, local = step.place
    if step.step_tasks != trainer.devices * trainer.num_nodes or step.num_nodes != trainer.num_nodes:
        _refuse(trainer, f"{step.step_tasks} tasks on {step.num_nodes} nodes", "srun starts a task for each device")
    if rank != node * trainer.devices + local:
        place = f"task {rank} as number {local} of node {node}"
        _refuse(trainer, place, "the tasks of a node are to follow one another, as many on each node")


def _refuse(trainer: TrainerConfig, got: str, reason: str) -> None:
    tasks = f"{trainer.num_nodes} x {trainer.devices} tasks (trainer.num_nodes x trainer.devices)"
    size = f"--nodes={trainer.num_nodes} --ntasks-per-node={trainer.devices}"
    command = f"srun {size} --distribution=block --kill-on-bad-exit=1 encdec {shlex.join(sys.argv[1:])}"
    remedy = f"Set both to what there is, or type `{command}`"
    raise ConfigError(f"launcher: expected {tasks}, got {got}; {reason}. {remedy}.")


def address_of(node: str) -> str:
    """Return what a node can be reached by: its name, or SLURM's own address of it where the name leads nowhere.

    Raises:
        ConfigError: When there is neither; torch would look for it until the job's time is over.
    """
    for address in (node, _slurms_address(node)):
        try:
            socket.getaddrinfo(address, None)
        except OSError:
            continue
        return address
    reason = f"the name of the job's first node, {node}, cannot be resolved on {os.uname().nodename}"
    remedy = "Add `export MASTER_ADDR=...`, an address of that node, to the job's script before srun"
    raise ConfigError(fault("MASTER_ADDR", "an address that every node can reach", None, reason, remedy))


def _slurms_address(node: str) -> str:
    if shutil.which("scontrol") is None:
        return node
    command = ["scontrol", "-o", "show", "node", node]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=SCONTROL_SECONDS, check=False).stdout
    except subprocess.TimeoutExpired:
        return node
    return next((word.partition("=")[2] for word in found.split() if word.startswith("NodeAddr=")), node)
