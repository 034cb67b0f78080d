"""A SLURM for all tests of this folder, a place with data for its jobs, and `encdec submit` as a user types it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster.jobs import SMALL
from cluster.lab import Lab, why_not

ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Two idle nodes; skips where SLURM is not installed."""
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        lab.start()
        try:
            yield lab
        finally:
            lab.stop()


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
        done = subprocess.run([sys.executable, "-m", "encdec_train", *words], cwd=self.path, text=True, timeout=120,
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


@pytest.fixture(scope="session")
def place(lab: Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Place:
    write_pairs = next(p.write_pairs for p in request.config.pluginmanager.get_plugins() if hasattr(p, "write_pairs"))
    folder = tmp_path_factory.mktemp("place")
    for name, numbers in (("train", range(33)), ("validation", range(100, 106)), ("test", range(200, 206))):
        write_pairs(folder / f"{name}.jsonl", numbers)
    (folder / "bert").symlink_to(tiny_bert)
    (folder / "bin").mkdir()
    encdec = folder / "bin" / "encdec"  # as an installation has it
    encdec.write_text(f'#!/bin/sh\nexec {sys.executable} -m encdec_train "$@"\n')
    encdec.chmod(0o755)
    return Place(lab, folder)


@pytest.fixture
def run_and_end(place: Place) -> Iterator[Callable[..., str]]:
    """Submit runs that are ended with the test, whatever becomes of it."""
    jobs: list[str] = []

    def submit(*arguments: Any, **named: Any) -> str:
        jobs.append(place.submit(*arguments, **named))
        return jobs[-1]

    yield submit
    for job in jobs:
        subprocess.run(["scancel", "--full", job], env=place.lab.environment, check=False)
