"""Where jobs are submitted from, and the run that they make: as in `faults/runs.py`, without dropout, on CPUs."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.lab import Lab
from faults.runs import BASE

ROOT = Path(__file__).resolve().parents[2]

SMALL = (
    *BASE, "model.dropout=0", "model.attention_dropout=0", "cluster.gpus_per_node=0", "cluster.cpus_per_task=1",
    "cluster.memory=1000", "cluster.time=60",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A folder with data and a checkpoint, from which jobs are submitted."""

    lab: Lab
    path: Path

    def run(self, name: str) -> Path:
        return self.path / "outputs" / name

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        ours = {
            "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT),
            "PATH": f"{self.path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        return {**self.lab.environment, **ours, **more}

    def encdec(self, *words: str, status: int = 0, **more: str) -> tuple[str, str]:
        """Type a command; returns what it printed to stdout and stderr."""
        done = subprocess.run([sys.executable, "-m", "encdec_train", *words], cwd=self.path, text=True, timeout=240,
                              env=self.environment(more), capture_output=True, check=False)  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout.strip(), done.stderr

    def submit(self, name: str, *overrides: str, **more: str) -> str:
        """Submit a run of the small kind and return the job's id."""
        return self.encdec("submit", *SMALL, f"run.name={name}", *overrides, **more)[0]

    def log(self, name: str, job: str) -> str:
        return (self.run(name) / "slurm" / f"{job}.log").read_text(encoding="utf-8")

    def steps(self, name: str) -> int:
        """Return the step of the newest checkpoint."""
        found = self.run(name).glob("checkpoints/step_*")
        return max((int(path.name.removeprefix("step_")) for path in found), default=0)
