"""Training checkpoints: a folder that is either whole or not there.

`step_00000500/` holds `model.safetensors`, `optimizer.safetensors` (state by parameter name, one copy of what is
shared), `state.json`, and `MANIFEST.json` with sizes and SHA-256, written last. All is written beside the target,
flushed to disk and renamed; older checkpoints go only afterwards. Nothing is pickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from encdec_train import atomic, console, distributed
from encdec_train.errors import CheckpointError, fault

MANIFEST = "MANIFEST.json"


class DamagedError(CheckpointError):
    """A checkpoint that is not what was written, and will never be."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read back and verified."""

    step: int  # the last step it holds
    weights: dict[str, torch.Tensor]  # distinct parameters by name
    optimizer: dict[str, torch.Tensor]  # `<state>/<parameter>` tensors
    state: dict[str, Any]  # what the run keeps besides (plain JSON)


def folder_of(root: Path, step: int) -> Path:
    """Name the folder of a step."""
    return root / f"step_{step:08d}"


def write(
    root: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> Path:
    """Write one checkpoint into the run's `checkpoints` folder: distinct parameters, optimizer state, plain JSON.

    Every rank must call it; the first one writes, whole what lies in parts.

    Raises:
        CheckpointError: When it cannot be written whole; the checkpoints before it are untouched.
    """
    target = folder_of(root, step)
    beside = root / f".{target.name}.{os.getpid()}"
    names = {id(p): name for name, p in model.named_parameters()}
    tensors = {
        f"{key}/{names[id(p)]}": torch.as_tensor(value)
        for p, values in optimizer.state.items()
        for key, value in values.items()
    }
    weights, moments = _on_cpu(dict(model.named_parameters())), _on_cpu(tensors)
    if distributed.rank() > 0:
        return target
    files = {
        "model.safetensors": save(weights),
        "optimizer.safetensors": save(moments),
        "state.json": json.dumps({**state, "step": step}, indent=1).encode(),
    }
    manifest = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for name, data in {**files, MANIFEST: json.dumps(manifest, indent=1).encode()}.items():
            (beside / name).write_bytes(data)
        atomic.install(beside, target, replace=True)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        size = sum(map(len, files.values()))
        expected = f"room and rights for {size:,} bytes"
        remedy = "Earlier checkpoints are untouched; make room and run the same command again"
        raise CheckpointError(fault(str(target), expected, _free(root), str(error), remedy)) from error
    return target


def _free(folder: Path) -> str | None:
    """Say how much room there is, where the disk still answers."""
    try:
        return f"{shutil.disk_usage(folder).free:,} bytes free"
    except OSError:
        return None


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint and verify every byte.

    Raises:
        DamagedError: When a file is missing or differs from the manifest.
        CheckpointError: When it cannot be read, which may pass.
    """
    try:
        manifest: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        data = {name: (folder / name).read_bytes() for name in manifest}
        damaged = [name for name in manifest if hashlib.sha256(data[name]).hexdigest() != manifest[name]["sha256"]]
        if damaged:
            reason = "its SHA-256 differs from MANIFEST.json"
            raise DamagedError(fault(str(folder / damaged[0]), "the bytes that were written", None, reason))
        state = json.loads(data["state.json"])
        return Checkpoint(state["step"], load(data["model.safetensors"]), load(data["optimizer.safetensors"]), state)
    except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DamagedError(fault(str(folder), "a whole checkpoint", None, reason)) from error
    except OSError as error:
        raise CheckpointError(fault(str(folder), "a folder that can be read", None, str(error))) from error


def steps(root: Path) -> list[int]:
    """List the steps of which there is a checkpoint, ascending; half-written ones have no manifest and do not count."""
    found = [path.parent.name.removeprefix("step_") for path in root.glob(f"step_*/{MANIFEST}")]
    return sorted(int(name) for name in found if name.isdigit())


def newest(root: Path) -> Checkpoint | None:
    """Read the newest checkpoint that is whole; a damaged one is said, and the one before it is taken.

    Raises:
        CheckpointError: When there are some and all of them are damaged.
    """
    found = steps(root)
    for step in reversed(found):
        try:
            return read(folder_of(root, step))
        except DamagedError as error:
            console.warn(f"{error} Trying the one before it.")
    if found:
        reason, remedy = f"all {len(found)} are damaged", "Remove the run folder to start again"
        raise CheckpointError(fault(str(root), "one whole checkpoint", None, reason, remedy))
    return None


def restore_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's weights into a model.

    Raises:
        CheckpointError: When the parameters differ in name or shape.
    """
    parameters = dict(model.named_parameters())
    differing = sorted(parameters.keys() ^ checkpoint.weights.keys()) or [
        name for name, p in parameters.items() if p.shape != checkpoint.weights[name].shape
    ]
    if differing:
        raise CheckpointError(fault("checkpoint", "the parameters of this model", None, f"{differing[0]} differs"))
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(checkpoint.weights[name])


def restore_mean(model: torch.nn.Module, folders: Sequence[Path]) -> None:
    """Copy the mean of several checkpoints' weights into a model, summed in float64 (as Vaswani et al. 2017, 6.1).

    Raises:
        CheckpointError: When one is missing or damaged; the model is as it was.
    """
    sums: dict[str, torch.Tensor] = {}
    for folder in folders:
        one = read(folder)
        for name, value in one.weights.items():
            sums[name] = value.double() if name not in sums else sums[name].add_(value)
    restore_weights(model, replace(one, weights={name: total / len(folders) for name, total in sums.items()}))


def restore_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's optimizer state back, by parameter name."""
    parameters = dict(model.named_parameters())
    for key, value in checkpoint.optimizer.items():
        state, name = key.split("/", 1)
        p = parameters[name]  # the count of steps is on its device too: the optimizer is the fused one
        optimizer.state[p][state] = distributed.laid_out(value, p)


def prune(root: Path, keep: set[int]) -> None:
    """Remove the checkpoints of all steps but `keep`, and what killed processes left half-written."""
    for step in steps(root):
        if step not in keep:
            shutil.rmtree(folder_of(root, step), ignore_errors=True)
    for leftover in root.glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy tensors, whole ones of those that lie in parts over the ranks: all take part, rank 0 keeps them."""
    ordered = sorted(tensors.items())  # what safetensors has read comes in another order on each rank
    whole = ((name, distributed.whole(value)) for name, value in ordered)
    return {name: value.cpu().contiguous() for name, value in whole if distributed.rank() == 0}
