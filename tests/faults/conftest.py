"""Real processes that are really killed: the server that forks them, and a run as they make it."""

import json
import os
import re
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faults.runs import BASE, DROPOUT

FAULTS_HEADER = "| # | fault, and what happened | seconds to stop | lost |\n|---|---|---|---|\n"
REFUSALS_HEADER = "| crafted | what happened |\n|---|---|\n"
# Of the tests that are numbered after the rows of docs/faults.md, those of every run; FAULTS=all is for the others too.
ALWAYS = (
    "test_01_02_a_killed_rank_is_named[1-1]", "test_03_04_", "test_04_a_second_ctrl_c", "test_05_",
    "test_06_a_disk_that_gets_full[2]", "test_07_a_disk_that_cannot", "test_08_a_damaged_checkpoint[truncated]",
    "test_09_a_checkpoint_that_holds_code[with_auto_map]", "test_09_a_training_checkpoint", "test_12_", "test_13_",
    "test_16_an_error_on_one_rank[1-error", "test_17_a_silent_rank_is_named[sigstop-1", "test_18_unusual",
    "test_18_bad_records_set_aside[2", "test_20_nan_on_one_rank_is_left_out_by_both[1]", "test_21_", "test_24_two",
)  # fmt: skip
SERVER = Path(__file__).with_name("server.py")
READY_SECONDS = 120  # imports on a busy machine
START_SECONDS = 60  # a start takes about two
PATIENCE_SECONDS = 15  # for the ranks that are left when one is killed


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out most of the numbered tests, unless all are asked for."""
    here = [item for item in items if item.path.parent == SERVER.parent and re.match(r"test_\d\d_", item.name)]
    others = {item for item in here if not item.name.startswith(ALWAYS)}
    if others and os.environ.get("FAULTS") != "all":
        config.hook.pytest_deselected(items=sorted(others, key=lambda item: item.name))
        items[:] = [item for item in items if item not in others]


@dataclass(frozen=True)
class End:
    """How the ranks of a start ended.

    Attributes:
        statuses: Exit status of each rank, -9 for a SIGKILL.
        ended: Seconds from the start to the end of each.
        ended_by_us: Ranks that had to be killed because they did not end.
        err: stderr of each rank.
        stopping: Seconds from the fault to the end of the last rank; None where there was none.
        peak_bytes: The most memory that each rank had.
    """

    statuses: Sequence[int]
    ended: Sequence[float]
    ended_by_us: Sequence[int]
    err: Sequence[str]
    stopping: float | None = None
    peak_bytes: Sequence[int] = ()


class Server:
    """Talks to `server.py`, which leads a process group of its own, or stays in this one."""

    def __init__(self, log: Path, *, own_group: bool = True) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "WANDB_"))}
        environment |= {
            "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
            "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's allocator would start a thread on import
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }  # fmt: skip
        self._log, self._own_group = log, own_group
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("wb"),
            env=environment,
            start_new_session=own_group,
        )
        self._answers = selectors.DefaultSelector()
        self._answers.register(self._process.stdout, selectors.EVENT_READ)
        self._answer(READY_SECONDS)

    def make(self, order: dict[str, Any]) -> dict[str, Any]:
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer(order["seconds"] + order["patience"] + 10)

    def close(self) -> None:
        """Kill the server and, where they are one process group, every child that may be left."""
        (os.killpg if self._own_group else os.kill)(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def _answer(self, seconds: float) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._answers.select(seconds) else b""
        if not line:
            pytest.fail(f"the server of processes gave no answer in {seconds} s:\n{self._log.read_text()}")
        return json.loads(line)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server") / "log")
    try:
        yield made
    finally:
        made.close()


@dataclass
class Run:
    """One run's folder, made by any number of starts.

    Attributes:
        overrides: The command line of every start.
        starts: How many there were.
    """

    server: Server
    place: Path
    folder: Path
    overrides: Sequence[str]
    starts: int = field(default=0)

    @property
    def path(self) -> Path:
        return self.folder / "run"

    def start(
        self, ranks: int, point: str | None = None, step: int = 0, victims: Sequence[int] = (), **more: Any
    ) -> End:
        """Give the command once; the same one every time, but for the number of ranks.

        Args:
            ranks: How many processes.
            point: Of `server.py`, where the victims are killed; None for nowhere.
            step: At which step.
            victims: Which ranks.
            more: Of the order: `overrides` besides those of every start, `environment`, `limits`, `seconds`, `argvs`.
        """
        self.starts += 1
        base = self.folder / f"start{self.starts}"
        argv = ["train", *self.overrides, f"run.output_dir={self.folder}", "run.name=run", f"trainer.devices={ranks}"]
        argv += more.pop("overrides", ())
        order = {
            "argv": argv, "cwd": str(self.place), "ranks": ranks, "stdout": f"{base}.out", "stderr": f"{base}.err",
            "trace": f"{base}.seen", "seconds": START_SECONDS, "patience": PATIENCE_SECONDS,
            "point": point, "step": step, "victims": list(victims), **more,
        }  # fmt: skip
        answer = self.server.make(order)
        err = [Path(f"{base}.err.{rank}").read_text(encoding="utf-8") for rank in range(ranks)]
        return End(**answer, err=err)

    def finish(self, ranks: int, **more: Any) -> End:
        """Start and let it end; it must."""
        end = self.start(ranks, **more)
        assert list(end.statuses) == [0] * ranks, "\n".join(end.err)
        return end

    def kill(self, ranks: int, point: str, step: int, victims: Sequence[int] = (0,)) -> End:
        """Start, and see the victims die where they were to, and the others end by themselves."""
        end = self.start(ranks, point, step, victims)
        said = "\n".join([f"{point} {step}: {end.statuses}, ended by us: {end.ended_by_us}", *end.err])
        assert {rank: end.statuses[rank] for rank in victims} == dict.fromkeys(victims, -signal.SIGKILL), said
        assert list(end.ended_by_us) == [], said
        return end

    def num_finished_steps(self) -> int:
        """Count the steps that all starts finished, the ones made again too."""
        starts = [self.folder.glob(f"start{number}.seen.*") for number in range(1, self.starts + 1)]
        return sum(max((len(path.read_bytes().splitlines()) for path in paths), default=0) for paths in starts)

    def seen(self) -> list[dict[int, list[int]]]:
        """Return, for each start, the examples of each step that it finished, those of all its ranks joined."""
        found = []
        for number in range(1, self.starts + 1):
            steps: dict[int, list[int]] = {}
            for rank in range(len(list(self.folder.glob(f"start{number}.err.*")))):
                for step, examples in self.seen_by(number, rank).items():
                    steps[step] = sorted(steps.get(step, []) + examples)
            found.append(steps)
        return found

    def seen_by(self, start: int, rank: int) -> dict[int, list[int]]:
        """Return the examples that one rank of a start, counted from 1, saw in each step that it finished."""
        path = self.folder / f"start{start}.seen.{rank}"
        return dict(map(json.loads, path.read_text(encoding="utf-8").splitlines())) if path.is_file() else {}


@pytest.fixture(scope="session")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A folder with data and a checkpoint, in which all runs are made."""
    write_pairs = next(p.write_pairs for p in request.config.pluginmanager.get_plugins() if hasattr(p, "write_pairs"))
    folder = tmp_path_factory.mktemp("place")
    for name, numbers in (("train", range(33)), ("validation", range(100, 106)), ("test", range(200, 206))):
        write_pairs(folder / f"{name}.jsonl", numbers)
    (folder / "bert").symlink_to(tiny_bert)
    return folder


@pytest.fixture(scope="session")
def undisturbed(new_run: Callable[..., Run]) -> Callable[..., Run]:
    """Make a run in one start, once for all tests: `undisturbed(ranks, *overrides)`."""
    made: dict[tuple[Any, ...], Run] = {}

    def run(ranks: int, *overrides: str) -> Run:
        key = (ranks, *(overrides or DROPOUT))
        if key not in made:
            made[key] = new_run(*BASE, *key[1:])
            made[key].finish(ranks)
        return made[key]

    return run


@pytest.fixture(scope="session")
def rows() -> Iterator[dict[str, list[str]]]:
    """Collect the lines of both tables by header; they are written where `FAULT_TABLE` says."""
    found: dict[str, list[str]] = {FAULTS_HEADER: [], REFUSALS_HEADER: []}
    yield found
    target = Path(os.environ.get("FAULT_TABLE", os.devnull))
    text = target.read_text(encoding="utf-8")
    for header, lines in found.items():
        before, there, rest = text.partition(header)
        after = rest.partition("\n\n")[2]
        lines.sort(key=lambda line: int(line.split()[1]) if line.split()[1].isdigit() else 0)
        text = f"{before}{header}{chr(10).join(lines)}\n\n{after}" if there else text
    target.write_text(text, encoding="utf-8")


@pytest.fixture
def note(rows: dict[str, list[str]]) -> Callable[..., None]:
    """Note a fault that was tried: `note(row, what happened, end or None, what was lost)`."""

    def add(row: int, happened: str, end: End | None, lost: str) -> None:
        seconds = "-" if end is None or end.stopping is None else f"{end.stopping:.1f}"
        rows[FAULTS_HEADER].append(f"| {row} | {happened} | {seconds} | {lost} |")

    return add


@pytest.fixture
def refusal(rows: dict[str, list[str]]) -> Callable[[str, str], None]:
    """Note what was crafted, and what became of it."""
    return lambda crafted, became: rows[REFUSALS_HEADER].append(f"| {crafted} | {became} |")


@pytest.fixture(scope="session")
def new_run(server: Server, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Make a run that has not started: `new_run(*overrides)`."""
    return lambda *overrides: Run(server, place, tmp_path_factory.mktemp("run"), overrides)
