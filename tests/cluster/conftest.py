"""A SLURM for all tests of this folder, a place with data for its jobs, and `encdec submit` as a user types it."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.jobs import Place
from cluster.lab import Lab, why_not


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
