"""One rank, and several: what of the ideal is left, and where the rest goes.

    python -m benchmarks.scaling [workload,...] [steps] [repeats]
    python -m benchmarks.scaling expected        the arithmetic of docs/scaling.md, for more GPUs than were at hand

Ranks are CPU processes of one thread each, two of them; where torch sees several GPUs, one rank a GPU. One rank (alone)
and all (together) make the same optimizer steps on the same global batches (strong scaling), in turns, and as many
processes with their shares that exchange no gradients (apart): what it costs to share a machine. The first step is not
timed.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.tiny_pair import Setting
from benchmarks.tiny_pair import optim as optim_of
from benchmarks.workloads import CODEC, WORKLOADS, Examples
from encdec_train.batch import MicroBatch, StepBatch
from encdec_train.config import Accelerator, Precision, TrainerConfig
from encdec_train.data.datamodule import Seq2SeqDataModule
from encdec_train.jsonl import read_rows
from encdec_train.training.callbacks import EveryStep
from encdec_train.training.metrics_log import MetricsLog
from encdec_train.training.module import Seq2SeqModule
from encdec_train.training.trainer import fit

SEED = 7
MICRO_TOKENS = 4096
REPEATS_OF_A_SUM = 7
BUCKET_BYTES = 25 << 20  # DDP's own default
KINDS = ("alone", "together", "apart")


class Timed(Seq2SeqModule):
    """Ours, with a clock; `apart` exchanges no gradients."""

    apart: bool

    def watch(self, *, apart: bool) -> None:
        """Begin to write down."""
        self.apart = apart
        self.passes: list[float] = []  # seconds of forward and backward, a step
        self.whole: list[float] = []
        self.tokens: list[int] = []
        self.sum_seconds = 0.0

    def training_step(self, batch: StepBatch, batch_idx: int) -> dict[str, Any]:
        """Make the step, and look at the clock."""
        if batch.step == 1 and dist.is_initialized():
            self.sum_seconds = time_of_a_sum(self.model)
        start = clock()
        self.passes.append(0.0)
        outputs = super().training_step(batch, batch_idx)
        self.whole.append(clock() - start)
        self.tokens.append(batch.num_own_tokens)
        return outputs

    def add_gradient(self, micro: MicroBatch, scale: float, step: int, *, last: bool) -> torch.Tensor:
        """Add the time of both passes."""
        start = clock()
        found = super().add_gradient(micro, scale, step, last=last and not self.apart)
        self.passes[-1] += clock() - start
        return found


def clock() -> float:
    """Look at the clock when the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def work(kind: str, name: str, steps: int, folder: Path) -> dict[str, float]:
    """Train as one rank of those in the environment, and return this rank's figures; times are seconds of a step."""
    on_gpu = torch.cuda.is_available()
    torch.set_num_threads(1)
    workload, ranks = WORKLOADS[name], int(os.environ["WORLD_SIZE"])
    optim = optim_of(Setting(label_smoothing=0.0, max_grad_norm=1.0))
    module = Timed(workload.model(), optim, steps, SEED, Precision.bf16)
    module.watch(apart=kind == "apart")
    trainer = TrainerConfig(
        max_steps=steps, max_epochs=None, devices=ranks, num_nodes=1, precision=Precision.bf16,
        accelerator=Accelerator.auto if on_gpu else Accelerator.cpu, gradient_checkpointing=False, sharding=False,
        validate_every_steps=None, checkpoint_every_steps=None, log_every_steps=1, keep_last=1, best_metric="loss",
        patience_validations=None, decoded_examples=0, profile=False, stall_seconds=None,
    )  # fmt: skip
    examples, rank = Examples(workload, SEED), int(os.environ["RANK"])
    data = Seq2SeqDataModule(examples, CODEC, examples.plan, MICRO_TOKENS, (0, steps), 0)  # type: ignore[arg-type]
    log = MetricsLog(folder / f"metrics{rank}.jsonl", None, 0)
    every_step = EveryStep(trainer, folder / "checkpoints", log, None, (steps, ()), None)
    every_step._save = lambda *_, **__: None  # type: ignore[method-assign]
    fit(module, data, every_step, trainer)
    waits = [row["time/data_wait"] for row in read_rows(folder / f"metrics{rank}.jsonl")][1:]
    return {
        "step": statistics.median(module.whole[1:]),
        "passes": statistics.median(module.passes[1:]),
        "tokens": statistics.mean(module.tokens[1:]),
        "data_wait": statistics.mean(waits),
        "sum": module.sum_seconds,
        "bytes": 4.0 * sum(p.numel() for p in module.model.parameters() if p.requires_grad),
    }


def time_of_a_sum(model: torch.nn.Module) -> float:
    """Time a sum of all gradients over the ranks that nothing else goes on beside."""
    device = next(model.parameters()).device
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    buckets = [
        torch.zeros(min(BUCKET_BYTES // 4, size - at), device=device) for at in range(0, size, BUCKET_BYTES // 4)
    ]
    times = []
    for _ in range(REPEATS_OF_A_SUM):
        dist.barrier()
        start = time.perf_counter()
        for pending in [dist.all_reduce(bucket, async_op=True) for bucket in buckets]:
            pending.wait()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def start(kind: str, name: str, steps: int, ranks: int, folder: str) -> list[dict[str, float]]:
    """Run the ranks to their end; return what each measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.scaling", "--rank", kind, name, str(steps), folder]
    processes = []
    for rank in range(ranks):
        place = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
            "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "bench",
        }  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **place}
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    answers = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{kind}: a rank failed")
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


def measure(name: str, steps: int, repeats: int) -> None:
    """Measure one workload in turns, and print its table."""
    ranks = torch.cuda.device_count() if torch.cuda.device_count() > 1 else 2
    found: dict[str, list[list[dict[str, float]]]] = {kind: [] for kind in KINDS}
    for repeat in range(repeats):
        for kind in KINDS if repeat % 2 == 0 else KINDS[::-1]:
            with tempfile.TemporaryDirectory() as folder:
                found[kind].append(start(kind, name, steps, 1 if kind == "alone" else ranks, folder))
            print(f"{name} {kind}: {slowest(found[kind][-1])['step']:.3f} s a step", file=sys.stderr)
    alone, together, apart = ([slowest(one) for one in found[kind]] for kind in KINDS)
    ratios = [a["step"] / (ranks * t["step"]) for a, t in zip(alone, together, strict=True)]
    t1, tn, ta = (statistics.median(one["step"] for one in rows) for rows in (alone, together, apart))
    work_of_all = statistics.median(one["step"] - one["passes"] for one in alone)
    shares = [rank["tokens"] for rank in together[0]["ranks"]]
    uneven = max(shares) / statistics.mean(shares) - 1
    sums = statistics.median(one["sum"] for one in together)
    passes = (t1 - work_of_all) / ranks
    parts = {
        "an equal share of the passes": passes,
        f"shares that are not equal ({uneven:.1%})": passes * uneven,
        "clipping and optimizer, which every rank does for all weights": work_of_all,
        "the rest of a step apart: one machine's caches and memory": ta - passes * (1 + uneven) - work_of_all,
        "exchange of gradients that is not hidden: together less apart": tn - ta,
    }
    waits, bytes_ = statistics.median(one["data_wait"] for one in together), together[0]["bytes"]
    print(f"\n### {name}: {ranks} ranks\n")
    print(f"efficiency {statistics.median(ratios):.0%} ({min(ratios):.0%} to {max(ratios):.0%}): ", end="")
    print(f"{t1 * 1000:.0f} ms a step alone, {tn * 1000:.0f} ms together\n")
    print("| of a step together | ms |\n|---|---|")
    for what, seconds in parts.items():
        print(f"| {what} | {seconds * 1000:.0f} |")
    print(f"\nThe sum of {bytes_ / 1e6:.0f} MB over the ranks by itself takes {sums * 1000:.0f} ms", end=" ")
    print(f"({bytes_ / sums / 1e9:.2f} GB/s). Waiting for data: {waits:.1%} of the time.")


def slowest(ranks: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return the figures of the rank that the others wait for."""
    return {**max(ranks, key=lambda one: one["step"]), "ranks": ranks}


def main() -> None:
    """Measure what was asked for."""
    if sys.argv[1:2] == ["--rank"]:
        print(json.dumps(work(sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5]))))
        return
    if sys.argv[1:2] == ["expected"]:
        expected()
        return
    chosen, steps, repeats = [*sys.argv[1:4], *("wikisplit", "8", "3")[len(sys.argv) - 1 :]]
    for name in chosen.split(","):
        measure(name, int(steps), int(repeats))


# What docs/scaling.md counts with. Nothing of it was measured here.
RATE = 0.4 * 790e12  # FLOP/s of a GPU's passes in bf16: 40% of a large matmul's rate on an H200
NODE_GPUS = 8
NODE_BYTES, NET_BYTES = 0.7 * 450e9, 0.7 * 50e9  # a second and GPU, each way: 70% of NVLink 4 and of NDR InfiniBand
MOVES_AN_UPDATE = 12  # reads and writes of a float32 of the weights' size: zeroing, norm, clipping, AdamW
MEMORY_BYTES = 0.7 * 4.8e12  # a second: 70% of an H200's
MODELS = {  # parameters, FLOPs of a pair (forward and backward), pairs of a global batch
    "bert2bert base, CNN/DM, 128 pairs": (221e6, 380e9, 128),
    "bert2bert base, WikiSplit, 256 pairs": (221e6, 60e9, 256),
    "bert2bert base, WikiSplit, 4096 pairs": (221e6, 60e9, 4096),
}


def expected() -> None:
    """Print the expected efficiency of more GPUs, from arithmetic."""
    print("| model and global batch | " + " | ".join(f"{n} GPUs" for n in (8, 64, 256)) + " |")
    print("|---|---|---|---|")
    for name, (parameters, flops, pairs) in MODELS.items():
        cells = [efficiency(parameters, flops * pairs, ranks) for ranks in (8, 64, 256)]
        print(f"| {name} | {' | '.join(f'{hidden:.0%} ({bare:.0%})' for hidden, bare in cells)} |")


def efficiency(parameters: float, flops: float, ranks: int) -> tuple[float, float]:
    """Return the share of the ideal that is left: with exchange hidden behind a backward pass, and with none hidden.

    A ring over n ranks sends 2 (n - 1) / n of the bytes each way (Patarasuk and Yuan 2009). Gradients are added within
    a node first, so that each GPU sends an eighth of them over the network.
    """
    update = MOVES_AN_UPDATE * 4 * parameters / MEMORY_BYTES
    passes = flops / ranks / RATE
    bytes_, nodes = 4 * parameters, -(-ranks // NODE_GPUS)
    exchange = 2 * (NODE_GPUS - 1) / NODE_GPUS * bytes_ / NODE_BYTES
    exchange += 2 * (nodes - 1) / nodes * bytes_ / NODE_GPUS / NET_BYTES
    alone = flops / RATE + update
    hidden = max(exchange - passes * 2 / 3, 0.0)  # the backward pass is two thirds of both
    return alone / ranks / (passes + update + hidden), alone / ranks / (passes + update + exchange)


if __name__ == "__main__":
    main()
