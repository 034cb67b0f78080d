"""What `encdec submit` reads besides the keys of `train`, and which of its values cannot stand."""

import re
from dataclasses import dataclass

from encdec_train.config import Accelerator, TrainConfig, within
from encdec_train.errors import fault

NODES = re.compile(r"[1-9]\d*(-[1-9]\d*)?")


@dataclass(kw_only=True)
class ClusterConfig:
    """What a job asks SLURM for. Null leaves a choice to the cluster."""

    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    nodes: int | str  # or a range, `2-4`, of which SLURM chooses
    gpus_per_node: int = within(0)  # a task each; 0: `trainer.devices` tasks a node, on CPUs
    cpus_per_task: int = within(1)
    memory: int | str  # of a node, as SLURM takes it: `32G`
    time: int | str  # of one life of the job, as SLURM takes it: minutes, `04:00:00`, `2-00:00:00`
    stop_seconds: int = within(1)  # before its end a job is warned: for a step, a checkpoint and a running validation
    setup: list[str]  # lines of shell before the run: modules, environments
    container: str | None  # a command that runs another one: `apptainer exec --nv image.sif`
    options: list[str]  # further options of sbatch: `--mail-type=FAIL`


@dataclass(kw_only=True)
class SubmitOptions:
    """What is done with the script."""

    dry_run: bool  # it is printed and nothing else


@dataclass(kw_only=True)
class SubmitConfig(TrainConfig):
    """Everything `encdec submit` reads."""

    cluster: ClusterConfig
    submit: SubmitOptions


def check_submit(config: SubmitConfig) -> list[str]:
    """Collect every contradiction between what a job asks for and what it does."""
    cluster, trainer, faults = config.cluster, config.trainer, []
    if not NODES.fullmatch(str(cluster.nodes)):
        faults.append(fault("cluster.nodes", "1 or more, or a range such as 2-4", cluster.nodes))
    if trainer.num_nodes != 1:
        faults.append(fault("trainer.num_nodes", "1", trainer.num_nodes, "cluster.nodes says it to a job"))
    gpus, devices = cluster.gpus_per_node, trainer.devices
    if gpus and devices not in {1, gpus}:
        faults.append(
            fault("trainer.devices", f"cluster.gpus_per_node={gpus}", devices, "", "Leave trainer.devices out")
        )
    if trainer.accelerator is not Accelerator.auto and (trainer.accelerator is Accelerator.gpu) != (gpus > 0):
        expected, got = ("0", gpus) if gpus else ("1 or more", gpus)
        faults.append(fault("cluster.gpus_per_node", expected, got, f"trainer.accelerator={trainer.accelerator.value}"))
    lines = [cluster.container or "", *cluster.setup, *cluster.options]
    if any("\n" in line for line in lines):
        faults.append(fault("cluster.setup", "one line an item", None, "it becomes lines of a script"))
    return faults
