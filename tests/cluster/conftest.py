"""A SLURM for all tests of this folder, a place with data for its jobs, and `encdec submit` as a user types it."""

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.jobs import WARM, Place
from cluster.lab import Lab, wait_for, why_not

IMPORT_SECONDS = 180  # on a busy machine


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
        lab = Lab(Path(folder), cpus=4)
        lab.start()
        try:
            yield lab
        finally:
            lab.stop()


@pytest.fixture(scope="session")
def place(
    lab: Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path
) -> Iterator[Place]:
    write_pairs = next(p.write_pairs for p in request.config.pluginmanager.get_plugins() if hasattr(p, "write_pairs"))
    place = Place(lab, tmp_path_factory.mktemp("place"), lab.folder / "warm")  # the path of a socket must be short
    for name, numbers in (("train", range(33)), ("validation", range(100, 106)), ("test", range(200, 206))):
        write_pairs(place.path / f"{name}.jsonl", numbers)
    (place.path / "bert").symlink_to(tiny_bert)
    for name, command in (("bin", [sys.executable, "-m", "encdec_train"]), ("warm", place.warm)):
        encdec = place.path / name / "encdec"  # as an installation has it
        encdec.parent.mkdir()
        encdec.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        encdec.chmod(0o755)
    server = subprocess.Popen([sys.executable, WARM, "serve", place.socket], stdin=subprocess.PIPE,
                              env=place.environment({}), start_new_session=True)  # fmt: skip
    try:
        assert wait_for(place.socket.exists, IMPORT_SECONDS)
        yield place
    finally:
        server.kill()
        server.communicate()


@pytest.fixture
def run_and_end(place: Place) -> Iterator[Callable[..., str]]:
    """Submit runs that are ended with the test, whatever becomes of it."""
    jobs: list[str] = []

    def submit(*arguments: Any, **named: Any) -> str:
        jobs.append(place.submit(*arguments, **named))
        return jobs[-1]

    yield submit
    for job in jobs:
        place.lab.end(job)
