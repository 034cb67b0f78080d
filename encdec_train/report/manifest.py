"""`manifest.json`: what a result depends on besides its config. Commit, versions, hardware, command line and time."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from encdec_train import __version__, atomic
from encdec_train.redact import redact_command_line

FILE_NAME = "manifest.json"
PACKAGE = "encdec-train"
LIBRARIES = (
    "torch",
    "transformers",
    "pytorch-lightning",
    "datasets",
    "hydra-core",
    "wandb",
    "evaluate",
    "sacrebleu",
    "rouge-score",
    "tokenizers",
    "safetensors",
    "numpy",
)
_GIT_SECONDS = 10


def write_manifest(folder: Path, extra: Mapping[str, object]) -> dict[str, Any]:
    """Write `manifest.json` atomically.

    Args:
        folder: The run folder; created if it is missing.
        extra: What only the run knows: fingerprints, parameter counts. It wins over what is found here, so that an
            earlier manifest can be written again with something added.

    Returns:
        What was written.
    """
    found: dict[str, Any] = {
        **start(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "hardware": hardware(),
    }
    manifest = {**found, **extra}
    atomic.write_json(folder / FILE_NAME, manifest)
    return manifest


def start() -> dict[str, Any]:
    """Describe how this process was started: `started_utc`, `command_line` without secrets, `git` (of this code)."""
    program = Path(sys.argv[0]).name
    return {
        "started_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": redact_command_line(["encdec" if program == "__main__.py" else program, *sys.argv[1:]]),
        "git": git_state(Path(__file__).parent),
    }


def versions() -> dict[str, str | None]:
    """Look up the versions of this package and of what its results depend on; None where one is not installed.

    Imports none of them.
    """
    return {PACKAGE: __version__, **{name: _version(name) for name in LIBRARIES}}


def hardware() -> dict[str, Any]:
    """Describe processors, memory and GPUs.

    Returns:
        `cpu` (model), `cpus` (of the machine), `usable_cpus` (of this process), `memory_gib` (of the machine),
        `gpus` (a name each, those that torch sees).
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "usable_cpus": usable,
        "memory_gib": _memory_gib(),
        "gpus": _gpu_names(),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit that the code in a folder is from.

    Returns:
        `commit` and `dirty` (a tracked file differs from the commit), or None where the folder is not tracked by git:
        an installed package that happens to lie in somebody's checkout is not that checkout's code.
    """
    tracked = _git(folder, "ls-files", ".")
    commit = _git(folder, "rev-parse", "--verify", "HEAD") if tracked else None
    if not commit:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """Run git; None where it is missing, fails or takes too long."""
    # Inside a git hook, GIT_DIR would point at another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_SECONDS,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):  # not on this system
        return None


def _gpu_names() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
