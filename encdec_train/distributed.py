"""Ranks: who this process is, and the few things that ranks say to one another.

The only reader of `torch.distributed` and of `SLURM_*`. Without a process group every function answers for one rank.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from encdec_train.errors import ConfigError, fault

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")
Move = tuple[int, str | None, bool]  # how many so far, with what this rank is busy, whether it waits for others
_moves: list[Move] = [(0, None, False)]


@dataclass(frozen=True)
class Allocation:
    """What SLURM has given to the job that this process belongs to; see `allocation`."""

    job: str  # as `scontrol` takes it: `12`, or `12_3` for the task 3 of an array
    num_tasks: int  # that the job asked for
    num_restarts: int  # how often SLURM has started this job anew
    step_tasks: int | None  # of this srun step; None outside one
    nodes: str  # of the step, in SLURM's notation: `node[1-2]`
    num_nodes: int  # of the step
    place: tuple[int, int, int]  # of this task: its rank, its node's number, its number on that node
    port: int  # for this step to meet at; steps and jobs that run at the same time have different ones

    @property
    def first_node(self) -> str:
        """The name of the step's first node, where rank 0 is."""
        name = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", self.nodes)
        return name.partition(",")[0]


def allocation() -> Allocation | None:
    """Read what SLURM says in the environment; None outside a job."""
    found = os.environ
    if "SLURM_JOB_ID" not in found:
        return None

    def number(name: str, default: int = 0) -> int:
        return int(found.get(name, default))

    job, step, in_array = number("SLURM_JOB_ID"), number("SLURM_STEP_ID"), "SLURM_ARRAY_TASK_ID" in found
    return Allocation(
        job=f"{found['SLURM_ARRAY_JOB_ID']}_{found['SLURM_ARRAY_TASK_ID']}" if in_array else str(job),
        num_tasks=number("SLURM_NTASKS", 1),
        num_restarts=number("SLURM_RESTART_COUNT"),
        step_tasks=number("SLURM_STEP_NUM_TASKS") if "SLURM_STEP_NUM_TASKS" in found else None,
        nodes=found.get("SLURM_STEP_NODELIST") or found.get("SLURM_JOB_NODELIST", ""),
        num_nodes=number("SLURM_STEP_NUM_NODES", 1),
        place=(number("SLURM_PROCID"), number("SLURM_NODEID"), number("SLURM_LOCALID")),
        port=20000 + (job * 7 + step) % 12000,  # below the ports that Linux gives to outgoing connections
    )


def launched_tasks() -> int | None:
    """Return how many processes torchrun or srun (see `join`) has started to work together; None where neither has."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else None


def is_child() -> bool:
    """Tell whether Lightning started this process as a further rank of this machine; the first has LOCAL_RANK=0."""
    return "RANK" not in os.environ and int(os.environ.get("LOCAL_RANK", "0")) > 0


def join(step: Allocation, address: str) -> None:
    """Say in torchrun's words who this task is, for torch and Lightning; what the user has set of it stays."""
    place = dict(zip(("RANK", "GROUP_RANK", "LOCAL_RANK"), map(str, step.place), strict=True))
    meeting = {"MASTER_ADDR": address, "MASTER_PORT": str(step.port)}
    os.environ |= {**meeting, **os.environ, **place, "WORLD_SIZE": str(step.step_tasks)}


def rank() -> int:
    """Return this process's rank; before the process group exists, from the launcher's environment."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return int(dist.get_rank())
    # LOCAL_RANK without RANK: Lightning started this process, perhaps within an allocation that set SLURM_PROCID.
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name])
    return 0


def world_size() -> int:
    """Return the number of ranks in the process group, 1 before there is one."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def joined(stall_seconds: int | None = None) -> Iterator[None]:
    """Let the processes that torchrun started work together; several of another launcher are a ConfigError.

    Args:
        stall_seconds: What the watchdog allows: a collective waits a minute longer, so that the watchdog speaks first.
            None: half an hour.
    """
    import torch
    import torch.distributed as dist

    ranks = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if ranks == 1 or dist.is_initialized():
        yield
        return
    if "MASTER_ADDR" not in os.environ:
        raise ConfigError(fault("launcher", "one process, or torchrun", f"{ranks} tasks", "each would do all the work"))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    # gloo: texts are gathered, never tensors of a GPU
    dist.init_process_group("gloo", timeout=timedelta(seconds=1800 if stall_seconds is None else stall_seconds + 60))
    try:
        yield
    finally:
        dist.destroy_process_group()


def moved(doing: str | None, *, waits: bool = False) -> None:
    """Note that this rank gets on, with what, and whether it waits for others now; None where that may take hours."""
    _moves[0] = (_moves[0][0] + 1, doing, waits)


def last_move() -> Move:
    """Return what was noted last, for the watchdog."""
    return _moves[0]


def start_sum(values: "torch.Tensor") -> Callable[[], object]:
    """Start to add a tensor over all ranks, in place; every rank must call it.

    Returns:
        What waits until the sum is there.
    """
    import torch.distributed as dist

    work = dist.all_reduce(values, async_op=True) if world_size() > 1 else None
    return work.wait if work is not None else lambda: None


def all_sum(values: "torch.Tensor") -> "torch.Tensor":
    """Add a tensor over all ranks, in place; every rank must call it."""
    start_sum(values)()
    return values


def gather_ordered(mine: Sequence[tuple[int, T]]) -> list[T]:
    """Collect numbered items from all ranks, in the order of their numbers; every rank must call it.

    Args:
        mine: This rank's `(index, item)` pairs; indices are distinct over all ranks.

    Returns:
        The items of all ranks by index, the same list on every rank.
    """
    import torch.distributed as dist

    parts: list[Sequence[tuple[int, T]] | None] = [list(mine)]
    if world_size() > 1:
        parts = [None] * world_size()
        dist.all_gather_object(parts, list(mine))
    pairs = [pair for part in parts if part is not None for pair in part]
    return [item for _, item in sorted(pairs, key=lambda pair: pair[0])]


def shard(units: "Sequence[nn.Module]", device: "torch.device") -> None:
    """Lay the parameters of each module in parts over all ranks (FSDP2), but those that an earlier one of the list has.

    From then on each of their forward and backward passes is a collective.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world_size(),))  # the group that is there, with its patience
    for unit in units:
        fully_shard(unit, mesh=mesh)


def whole(value: "torch.Tensor") -> "torch.Tensor":
    """Gather a tensor that lies in parts over the ranks, which all call it; another one is returned as it is."""
    from torch.distributed.tensor import DTensor

    found: torch.Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return found.detach()


def laid_out(value: "torch.Tensor", like: "torch.Tensor") -> "torch.Tensor":
    """Copy a whole tensor to where another one is; where that lies in parts, this rank's part of it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(like.device, copy=not isinstance(like, DTensor))
    if not isinstance(like, DTensor) or value.ndim == 0:
        return value
    part = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return part.clone()  # it is a view of the whole


def barrier() -> None:
    """Wait for every rank."""
    import torch.distributed as dist

    if world_size() > 1:
        dist.barrier()
