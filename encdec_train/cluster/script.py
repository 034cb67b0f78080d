"""The batch script of a job: what SLURM is asked for, and the one `srun` that starts a task a device.

`slurm/train.sbatch` and `slurm/array.sbatch` are the same text for people; a test keeps them equal.
"""

import shlex
from collections.abc import Mapping, Sequence

from encdec_train.config_cluster import ClusterConfig

BODY = """\
# srun does not take the number of CPUs over by itself (SLURM 22.05 and later)
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"
"""
TASKS = '--ntasks="$((SLURM_JOB_NUM_NODES * SLURM_NTASKS_PER_NODE))"'  # as SLURM_NTASKS, but after a change of nodes
LAUNCH = f"srun --export=ALL {TASKS} --distribution=block --kill-on-bad-exit=1"
SIZE = 'trainer.devices="$SLURM_NTASKS_PER_NODE" trainer.num_nodes="$SLURM_JOB_NUM_NODES"'


def options(cluster: ClusterConfig, tasks_per_node: int, name: str, log: str) -> list[str]:
    """List the options of sbatch.

    Args:
        cluster: The section of the config.
        tasks_per_node: Ranks of the run on each node.
        name: Of the job.
        log: The file of its output, in which SLURM fills `%j` in.
    """
    asked = {
        "job-name": name, "output": log, "open-mode": "append", "partition": cluster.partition,
        "account": cluster.account, "qos": cluster.qos, "constraint": cluster.constraint, "nodes": cluster.nodes,
        "ntasks-per-node": tasks_per_node, "gpus-per-node": cluster.gpus_per_node or None,
        "cpus-per-task": cluster.cpus_per_task, "mem": cluster.memory, "time": cluster.time,
        "signal": f"USR1@{cluster.stop_seconds}",
    }  # fmt: skip
    named = [f"--{key}={shlex.quote(str(value))}" for key, value in asked.items() if value is not None]
    return [*named, "--requeue", *cluster.options]


def script(
    cluster: ClusterConfig, asked: Sequence[str], program: str, jobs: Mapping[int, Sequence[str]], *, array: bool
) -> str:
    """Write the script.

    Args:
        cluster: The section of the config.
        asked: The options of sbatch.
        program: The command line up to the verb and its flags.
        jobs: The overrides of each job by its number in the array; without an array there is one.
        array: Whether it is one, of however many jobs.
    """
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in asked), "set -eo pipefail", *cluster.setup]
    common = [one for one in next(iter(jobs.values())) if all(one in overrides for overrides in jobs.values())]
    if array:
        own = {number: [one for one in overrides if one not in common] for number, overrides in jobs.items()}
        cases = [f"  {number}) overrides=({shlex.join(overrides)}) ;;" for number, overrides in own.items()]
        lines += ['case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac"]
    words = [LAUNCH, cluster.container, program, shlex.join(common), '"${overrides[@]}"' if array else "", SIZE]
    return "\n".join([*lines, BODY + " ".join(word for word in words if word)]) + "\n"
