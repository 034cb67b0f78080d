"""A long run that is disturbed all the time: what is lost, and what grows.

    python -m benchmarks.soak [--steps 2000] [--ranks 1] [--seed 0] [--validate-every 250] [--folder FOLDER]

A tiny run is killed, asked to stop, left without disk or robbed of its newest checkpoint every so often, at steps drawn
from the seed, and started again by the same command each time. In the end its weights, optimizer state, predictions and
curve are compared to the bit with those of a run that nobody disturbed, which is kept in FOLDER for the next time. A
full disk needs a tmpfs of its own, so root.
"""

import argparse
import itertools
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import make_bert, write_pairs
from faults.conftest import Run, Server
from faults.runs import BASE, DROPOUT, read, tensors

GAP_STEPS = (8, 30)  # between two faults
KILLS = ("step_end", "update", "half_file", "checkpoint_rename", "log_line")
STOPS = ("sigterm", "ctrl_c")
DAMAGE = ("truncated", "bit_flipped")
EVERY = 5  # steps, between checkpoints
SECONDS = 3000  # for one start


def main() -> int:
    """Make both runs, print the figure, and return 0 where they are equal."""
    parser = argparse.ArgumentParser()
    for name, value in (("steps", 2000), ("ranks", 1), ("seed", 0), ("validate-every", 250)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, disk(Path(name)) as (place, is_own):
        server = Server(Path(name) / "server.log", own_group=False)  # so that stopping this stops all of it
        try:
            return soak(options, options.folder or Path(name), place, is_own, server)
        finally:
            server.close()


@contextmanager
def disk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """A place for the disturbed run; its own disk where one can be mounted."""
    place = folder / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(place)]
    is_own = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield place, is_own
    finally:
        if is_own:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def soak(options: argparse.Namespace, folder: Path, place: Path, is_own: bool, server: Server) -> int:
    """Disturb a run until it is done."""
    if not (folder / "bert").is_dir():
        make_bert(folder / "bert", seed=1)
    for split, numbers in (("train", range(330)), ("validation", range(1000, 1006)), ("test", range(2000, 2006))):
        write_pairs(folder / f"{split}.jsonl", numbers)
    often = f"trainer.checkpoint_every_steps={EVERY}", f"trainer.validate_every_steps={options.validate_every}"
    changed = f"trainer.max_steps={options.steps}", *often, "trainer.keep_last=2", "optim.lr=1e-3"
    overrides = (*BASE, *DROPOUT, *changed)
    (folder / "calm").mkdir(exist_ok=True)
    calm = Run(server, folder, folder / "calm", overrides)
    started = time.monotonic()
    grown = calm.start(options.ranks, "measured", 0, range(options.ranks), seconds=SECONDS)
    if any(grown.statuses):
        print("\n".join(grown.err))
        return 1
    print(f"undisturbed: at the end after {time.monotonic() - started:.0f} s", flush=True)
    print(measured(Path(f"{calm.folder}/start1.err.measured")), flush=True)
    run, started = Run(server, folder, place, overrides), time.monotonic()
    seen = disturb(run, options, is_own)
    print(f"disturbed: {run.starts} starts in {time.monotonic() - started:.0f} s")
    return verdict(run, calm, options, seen)


@dataclass
class Seen:
    """What came of the faults.

    Attributes:
        counts: How many there were of each kind.
        sizes: After each: bytes and files of the run's folder, but for the curve, which grows a row a step.
        peaks: Of each start, the most memory its process had, in bytes.
        odd: Ends that were not expected, and what was said.
    """

    counts: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)


def disturb(run: Run, options: argparse.Namespace, is_own: bool) -> Seen:
    """Start again and again, until the run is done."""
    draw, seen = random.Random(options.seed), Seen()
    kinds = [*KILLS, *STOPS, *DAMAGE, *(["full_disk"] if is_own else [])]
    for number in itertools.count(1):
        kind, step = draw.choice(kinds), last_step(run) + draw.randint(*GAP_STEPS)
        step += -step % EVERY if kind in {"half_file", "checkpoint_rename"} else 0
        if step >= options.steps:
            end = run.start(options.ranks, seconds=SECONDS)
            seen.peaks.append(max(end.peak_bytes))
            seen.odd += [] if not any(end.statuses) else [f"last start: {end.statuses} {end.err}"]
            return seen
        point, victim = "step_end" if kind in DAMAGE else kind, [draw.randrange(options.ranks)]
        environment = {"FAULT_PLACE": str(run.folder)}
        end = run.start(options.ranks, point, step, victim, environment=environment, seconds=SECONDS)
        expected = {"sigterm": 143, "ctrl_c": 130, "full_disk": 1}.get(kind, -9)
        if expected not in end.statuses or end.ended_by_us or 0 in end.statuses:
            seen.odd.append(f"{kind} at {step}: {list(end.statuses)}, ended by us: {list(end.ended_by_us)}: {end.err}")
        seen.counts[kind] += 1
        seen.peaks.append(max(end.peak_bytes))
        (run.folder / "filler").unlink(missing_ok=True)
        if kind in DAMAGE:
            spoil(sorted((run.path / "checkpoints").glob("step_*")), kind, draw)
        files = [path for path in run.path.rglob("*") if path.is_file() and path.name != "metrics.jsonl"]
        seen.sizes.append((sum(path.stat().st_size for path in files), len(files)))
        print(f"{number}: {kind} at step {step}, {list(end.statuses)}", flush=True)
    raise AssertionError("the loop ends by return")


def last_step(run: Run) -> int:
    """Find the newest checkpoint's step."""
    found = [int(path.name.removeprefix("step_")) for path in (run.path / "checkpoints").glob("step_*")]
    return max(found, default=0)


def spoil(folders: list[Path], kind: str, draw: random.Random) -> None:
    """Damage a file of the newest checkpoint, where an older one is left."""
    if len(folders) < 2:
        return
    file = draw.choice(sorted(folders[-1].iterdir()))
    data = bytearray(file.read_bytes())
    if kind == "truncated":
        del data[-min(100, len(data) // 2) :]
    else:
        data[draw.randrange(len(data))] ^= 1
    file.write_bytes(data)


def measured(path: Path) -> str:
    """Say how memory and open files of the undisturbed run went from a tenth of it to the end."""
    rows = [tuple(map(int, line.split())) for line in path.read_text(encoding="utf-8").splitlines()]
    first, last = rows[len(rows) // 10], rows[-1]
    memory = f"memory at step {first[0]}: {first[1] / 1024:.1f} MB, at step {last[0]}: {last[1] / 1024:.1f} MB"
    return f"{memory}; open files {first[2]} and {last[2]}"


def verdict(run: Run, calm: Run, options: argparse.Namespace, seen: Seen) -> int:
    """Print the figure."""
    ours, theirs = tensors(run.path), tensors(calm.path)
    differing = [name for name in theirs if ours.get(name) != theirs[name]]
    curve = read(run.path / "metrics.jsonl") == read(calm.path / "metrics.jsonl")
    predictions = [(one.path / "predictions" / "test.jsonl").read_bytes() for one in (run, calm)]
    total = seen.counts.total()
    print(f"faults injected: {total} ({', '.join(f'{kind} {count}' for kind, count in sorted(seen.counts.items()))})")
    print(f"survived: {total - len(seen.odd)}; ends that were not expected: {len(seen.odd)}")
    print(f"steps made twice: {run.num_finished_steps() - options.steps} of {options.steps}")
    print(f"tensors that differ: {len(differing)} of {len(theirs)}; curve equal: {curve}; predictions equal: "
          f"{predictions[0] == predictions[1]}")  # fmt: skip
    for name, values, unit in (
        ("size of the run's folder", [size for size, _ in seen.sizes], 1e6),
        ("files in it", [count for _, count in seen.sizes], 1),
        ("memory of a start", seen.peaks, 1e6),
    ):
        quarter = max(1, len(values) // 4)
        first, last = max(values[:quarter]) / unit, max(values[-quarter:]) / unit
        print(f"{name}, largest in the first quarter of the starts: {first:.2f}, in the last: {last:.2f}"
              f"{' MB' if unit > 1 else ''}")  # fmt: skip
    left = [path.name for path in run.path.rglob(".*") if path.name != ".lock"]
    print(f"left behind: {left}")
    for line in seen.odd:
        print(line[:2000])
    return int(bool(differing or seen.odd or left or not curve or predictions[0] != predictions[1]))


if __name__ == "__main__":
    sys.exit(main())
