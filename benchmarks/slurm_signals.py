"""Signals at random moments to jobs on a real SLURM: is each answered, and how soon?

    python -m benchmarks.slurm_signals [signals [jobs]]     as root, with slurm-wlm and munge; 50 signals to 5 jobs

Every job is two ranks on two nodes of this machine that train a tiny model without an end, with a checkpoint every 100
steps and a validation with decoding every 50. Each life of a job is signalled once (SIGUSR1, to every process, as SLURM
does before a time limit): by turns at a random moment of its first seconds, in which a process imports and loads, and
at a random moment of its training. What must be: a life more for every signal, and no step lost or made twice. Prints
the tables of docs/results/slurm.md.
"""

import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOADING_SECONDS = 8.0  # from the first moment at which all ranks listen; a machine with other work loads for longer
TRAINING_SECONDS = 3.0  # from the first step of a life
RUN = (
    "task=files", "task.train_file=train.jsonl", "task.validation_file=validation.jsonl", "task.max_source_tokens=16",
    "task.max_target_tokens=16", "model.encoder=bert", "run.cache_dir=cache", "tracking=none",
    "trainer.accelerator=cpu", "trainer.max_steps=1000000", "trainer.validate_every_steps=50",
    "trainer.checkpoint_every_steps=100", "trainer.log_every_steps=1", "data.batch_examples=8",
    "data.max_micro_tokens=64", "decoding.num_beams=1", "decoding.max_new_tokens=8", "cluster.nodes=2",
    "cluster.gpus_per_node=0", "cluster.cpus_per_task=1", "cluster.memory=1000", "cluster.time=600",
)  # fmt: skip


def module(path: Path) -> Any:  # noqa: ANN401
    """Import a file of the tests."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def submit(lab: Any, place: Path, seed: int) -> str:  # noqa: ANN401
    """Submit one job and return its id."""
    command = [sys.executable, "-m", "encdec_train", "submit", *RUN, f"seed={seed}", f"run.name=run{seed}"]
    environment = {**lab.environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=place, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def steps(place: Path, seed: int) -> list[int]:
    """Return the steps of a run's curve."""
    file = place / "outputs" / f"run{seed}" / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [int(line.split(":")[1].split(",")[0]) for line in lines if "train/loss" in line]


def torment(lab: Any, place: Path, seed: int, signals: int) -> list[dict[str, Any]]:  # noqa: ANN401
    """Signal one job so many times; a row a signal."""
    job, moments, rows = submit(lab, place, seed), random.Random(seed), []
    for number in range(signals):
        lab.wait(job, "RUNNING", seconds=300)
        lab.listening(job, 2, seconds=300)
        before, deadline = len(steps(place, seed)), time.monotonic() + 300
        while number % 2 and len(steps(place, seed)) <= before and time.monotonic() < deadline:
            time.sleep(0.1)
        moment = moments.uniform(0, TRAINING_SECONDS if number % 2 else LOADING_SECONDS)
        time.sleep(moment)
        requeued, gone = lab.cut(job, seconds=300)
        gained = len(steps(place, seed)) - before
        rows.append({"job": job, "moment": moment, "requeued": requeued, "gone": gone, "steps": gained})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    lab.command("scancel", job)
    return rows


def num_faults(place: Path, seed: int) -> int:
    """Count the places at which a run's curve does not go on by one step."""
    found = steps(place, seed)
    return sum(a + 1 != b for a, b in zip([0, *found], found, strict=False))


def main() -> None:
    """Start a SLURM, torment jobs, two at a time, and print what came out."""
    signals, jobs = map(int, [*sys.argv[1:], *("50", "5")[len(sys.argv) - 1 :]])
    tests = ROOT / "tests"
    lab_module, data = module(tests / "cluster" / "lab.py"), module(tests / "conftest.py")
    if reason := lab_module.why_not():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder:
        place, lab = Path(folder), lab_module.Lab(Path(folder) / "slurm")
        (place / "slurm").mkdir()
        place.chmod(0o755)
        data.make_bert(place / "bert", 1)
        for name, numbers in (("train", range(33)), ("validation", range(100, 106))):
            data.write_pairs(place / f"{name}.jsonl", numbers)
        lab.start()
        try:
            with ThreadPoolExecutor(2) as pool:
                share = [signals // jobs] * jobs
                found = pool.map(lambda seed: torment(lab, place, seed, share[seed]), range(jobs))
                rows = [row for one in found for row in one]
            faults = sum(num_faults(place, seed) for seed in range(jobs))
        finally:
            lab.stop()
    report(rows, sum(share), faults)


def report(rows: list[dict[str, Any]], sent: int, faults: int) -> None:
    """Print the tables."""
    print(f"{sent} signals to {len({row['job'] for row in rows})} jobs of two ranks, load {os.getloadavg()[0]:.1f}: "
          f"{len(rows)} answered, steps missing or doubled in the curves: {faults}\n")  # fmt: skip
    print("| seconds from the signal until | signals | median | 90% | largest |\n|---|---|---|---|---|")
    loading = [row for row in rows if not row["steps"]]
    training = [row for row in rows if row["steps"]]
    back = "SLURM has the job back in its queue, ranks were"
    for key, name, some in (
        ("requeued", f"{back} loading", loading),
        ("requeued", f"{back} training", training),
        ("gone", "the last process has ended", rows),
    ):
        values = sorted(row[key] for row in some) or [float("nan")]
        ninth = values[int(0.9 * (len(values) - 1))]
        print(f"| {name} | {len(some)} | {statistics.median(values):.2f} | {ninth:.2f} | {values[-1]:.2f} |")


if __name__ == "__main__":
    main()
