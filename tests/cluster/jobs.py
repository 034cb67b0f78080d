"""Where jobs are submitted from, and the run that they make: as in `faults/runs.py`, without dropout, on CPUs."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.lab import Lab, wait_for
from faults.runs import BASE

ROOT = Path(__file__).resolve().parents[2]
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
WARM = Path(__file__).with_name("warm.py")

SMALL = (
    *BASE, "model.dropout=0", "model.attention_dropout=0", "cluster.gpus_per_node=0", "cluster.cpus_per_task=1",
    "cluster.memory=1000", "cluster.time=60",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A folder with data and a checkpoint, from which jobs are submitted, and the socket of the server of `warm.py`."""

    lab: Lab
    path: Path
    socket: Path

    @property
    def warm(self) -> list[str]:
        """The command that is `encdec`, but for the time in which it starts."""
        return [sys.executable, "-I", "-S", str(WARM), str(self.socket)]

    def run(self, name: str) -> Path:
        return self.path / "outputs" / name

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        ours = {
            "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT),
            "PATH": f"{self.path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's allocator would start a thread on import
        }  # fmt: skip
        return {**self.lab.environment, **ours, **more}

    def type(self, *words: str, seconds: float = 240, **more: str) -> "subprocess.CompletedProcess[str]":
        """Type a command."""
        return subprocess.run(words, cwd=self.path, text=True, timeout=seconds, env=self.environment(more),
                              capture_output=True, check=False)  # fmt: skip

    def encdec(self, *words: str, status: int = 0, **more: str) -> tuple[str, str]:
        """Type `encdec`; returns what it printed to stdout and stderr."""
        done = self.type(*self.warm, *words, **more)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout.strip(), done.stderr

    def submit(self, name: str, *overrides: str, cold: bool = False, **more: str) -> str:
        """Submit a run of the small kind and return the job's id.

        Args:
            name: The run's.
            overrides: More of them.
            cold: Whether its processes are started as a user's are, and import for seconds.
            more: Of the environment.
        """
        setup = [] if cold else [f"cluster.setup=['PATH={self.path}/warm:$PATH']"]
        return self.encdec("submit", *SMALL, f"run.name={name}", *setup, *overrides, **more)[0]

    def completed(self, name: str, job: str) -> Mapping[str, str]:
        """Wait for a job's end, which must be a good one, and return what SLURM says of it."""
        end = self.lab.wait(job, *OVER, seconds=300)
        tails = [self.log(name, job)[-4000:], *(path.read_text()[-1500:] for path in self.lab.logs())]
        assert end["JobState"] == "COMPLETED", "\n".join([str(dict(end)), *tails])
        return end

    def log(self, name: str, job: str) -> str:
        return (self.run(name) / "slurm" / f"{job}.log").read_text(encoding="utf-8")

    def reach(self, name: str, step: int) -> None:
        """Wait until there is a checkpoint of such a step."""
        assert wait_for(lambda: self.steps(name) >= step, 120), f"{name} does not come to step {step}"

    def steps(self, name: str) -> int:
        """Return the step of the newest checkpoint."""
        found = self.run(name).glob("checkpoints/step_*")
        return max((int(path.name.removeprefix("step_")) for path in found), default=0)
