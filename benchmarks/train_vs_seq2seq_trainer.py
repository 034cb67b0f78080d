"""Real tokens a second of this package's training loop beside `transformers.Seq2SeqTrainer`.

    make bench                                   every workload; or
    python -m benchmarks.train_vs_seq2seq_trainer [workload,...] [steps] [repeats] [wall|cpu]
    python -m benchmarks.equal_quality           the same examples in the same order: the losses beside each other

Both sides train the same weights on the same tokenised pairs, the same number of them an optimizer step, for as many
steps, each in a process of its own, one after the other in turns. The first step is not timed. A token is real when it
is not padding. `cpu` takes the process's own time instead of the clock's: with OMP_NUM_THREADS=1 that is for machines
that others compute on too. Seq2SeqTrainer (needs `pip install accelerate`) runs as it comes and in its best honest
setting: batches grouped by length, bf16; its AdamW is the fused one in both. The matmul rate is measured in the same
processes: in float32 on a CPU that is oneDNN's, which Seq2SeqTrainer does not use.
"""

import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import (
    EncoderDecoderModel,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from benchmarks.tiny_pair import Setting
from benchmarks.tiny_pair import optim as optim_of
from benchmarks.workloads import CODEC, PAD, WORKLOADS, Examples
from encdec_train.batch import MicroBatch, StepBatch
from encdec_train.config import Accelerator, Precision, TrainerConfig
from encdec_train.data.datamodule import Seq2SeqDataModule
from encdec_train.modeling import packed
from encdec_train.session import micro_tokens
from encdec_train.training.callbacks import EveryStep
from encdec_train.training.metrics_log import MetricsLog
from encdec_train.training.module import Seq2SeqModule
from encdec_train.training.telemetry import flops_a_token, matmul_rate
from encdec_train.training.trainer import fit

SIDES = ("ours fp32", "ours bf16", "theirs fp32", "theirs bf16 grouped")
PAIRS = {  # what is compared: the numerator and the denominator of a ratio
    "default against default": ("ours fp32", "theirs fp32"),
    "our bf16 against its default": ("ours bf16", "theirs fp32"),
    "equal precision, its best setting": ("ours bf16", "theirs bf16 grouped"),
}
STRATEGY = {"theirs fp32": "random", "theirs bf16 grouped": "group_by_length"}
SEED = 7
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Course:
    """What both sides train on, and how."""

    examples: Examples
    steps: int
    precision: Precision
    folder: Path
    lr: float = 1e-4
    seed: int = SEED
    clock: str = "wall"


class Stamps:
    """The clock at the end of each step, and what was seen of it."""

    def __init__(self, clock: str) -> None:
        self._clock = CLOCKS[clock]
        self.times: list[float] = []
        self.real: list[int] = []
        self.padded: list[int] = []
        self.losses: list[float] = []

    def tick(self) -> None:
        """Look at the clock."""
        self.times.append(self._clock())

    def result(self) -> dict[str, Any]:
        """Summarise, without the first step."""
        seconds = self.times[-1] - self.times[0]
        return {
            "tokens_per_second": sum(self.real[1:]) / seconds,
            "seconds_a_step": seconds / (len(self.times) - 1),
            "padding": 1 - sum(self.real[1:]) / sum(self.padded[1:]),
            "losses": self.losses,
        }


class TimedModule(Seq2SeqModule):
    """Ours, with a stamp after each step."""

    stamps: Stamps

    def training_step(self, batch: StepBatch, batch_idx: int) -> dict[str, Any]:
        """Make the step, and look at the clock."""
        outputs = super().training_step(batch, batch_idx)
        self.stamps.losses.append(float(outputs["loss"]))
        self.stamps.tick()
        self.stamps.real.append(batch.num_source_tokens + batch.num_target_tokens)
        self.stamps.padded.append(sum(self.computed(micro) for micro in batch.micro_batches))
        return outputs

    def computed(self, micro: MicroBatch) -> int:
        """Count what goes through the model, padding included."""
        if packed.suits(self.model, micro):
            return int(micro.source_mask_BS.sum() + micro.target_mask_BT.sum())
        return micro.source_ids_BS.numel() + micro.decoder_ids_BT.numel()


def ours(model: EncoderDecoderModel, course: Course) -> Stamps:
    """Train with this package, `metrics.jsonl` written as in a run."""
    examples, steps, stamps = course.examples, course.steps, Stamps(course.clock)
    optim = optim_of(Setting(label_smoothing=0.0, max_grad_norm=1.0))
    optim.lr, optim.betas, optim.weight_decay = course.lr, [0.9, 0.999], 0.0
    module = TimedModule(model, optim, steps, course.seed, course.precision)
    module.stamps = stamps
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = TrainerConfig(
        max_steps=steps, max_epochs=None, devices=1, num_nodes=1, accelerator=Accelerator.auto,
        precision=course.precision,
        gradient_checkpointing=False, sharding=False, validate_every_steps=None, checkpoint_every_steps=None,
        log_every_steps=1, keep_last=1, best_metric="loss", patience_validations=None, decoded_examples=0,
        profile=False, stall_seconds=None,
    )  # fmt: skip
    data = Seq2SeqDataModule(examples, CODEC, examples.plan, micro_tokens("auto", device), (0, steps), 0)  # type: ignore[arg-type]
    log = MetricsLog(course.folder / "metrics.jsonl", None, 0)
    every_step = EveryStep(trainer, course.folder / "checkpoints", log, None, (steps, ()), None)
    every_step._save = lambda *_, **__: None  # type: ignore[method-assign] - the other side saves nothing either
    fit(module, data, every_step, trainer)
    return stamps


class TheirClock(TrainerCallback):
    """A stamp after each step of Seq2SeqTrainer."""

    def __init__(self, stamps: Stamps) -> None:
        self._stamps = stamps

    def on_step_end(self, *_: object, **__: object) -> None:
        """Look at the clock."""
        self._stamps.tick()

    def on_log(self, *_: object, logs: dict[str, float], **__: object) -> None:
        """Keep the loss."""
        if "loss" in logs:
            self._stamps.losses.append(float(logs["loss"]))


def theirs(model: EncoderDecoderModel, course: Course, strategy: str) -> Stamps:
    """Train with Seq2SeqTrainer; `sequential` has the examples in our plan's order."""
    examples, steps, stamps = course.examples, course.steps, Stamps(course.clock)
    batches = [examples.plan.batch(step + 1)[1] for step in range(steps)]
    order = np.concatenate(batches) if strategy == "sequential" else np.arange(len(examples.sources))
    pairs = zip(*examples.take(order.tolist()), strict=True)
    rows = [
        {"input_ids": list(map(int, s)), "attention_mask": [1] * len(s), "labels": list(map(int, t)), "length": len(s)}
        for s, t in pairs
    ]

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad as DataCollatorForSeq2Seq does, counting."""
        width = {key: max(len(row[key]) for row in batch) for key in ("input_ids", "labels")}
        stamps.real.append(sum(len(row["input_ids"]) + len(row["labels"]) for row in batch))
        stamps.padded.append(len(batch) * (width["input_ids"] + width["labels"]))
        fill = {"input_ids": PAD, "attention_mask": 0, "labels": -100}
        return {
            key: torch.tensor(
                [r[key] + [value] * (width["labels" if key == "labels" else "input_ids"] - len(r[key])) for r in batch]
            )
            for key, value in fill.items()
        }

    arguments = Seq2SeqTrainingArguments(
        output_dir=str(course.folder), max_steps=steps, per_device_train_batch_size=len(batches[0]),
        learning_rate=course.lr, lr_scheduler_type="constant", warmup_steps=0, logging_steps=1, save_strategy="no",
        report_to=[], seed=course.seed, bf16=course.precision is Precision.bf16, disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(), remove_unused_columns=False, train_sampling_strategy=strategy,
    )  # fmt: skip
    trainer = Seq2SeqTrainer(
        model, arguments, data_collator=collate, train_dataset=rows, callbacks=[TheirClock(stamps)]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    del stamps.real[len(stamps.times) :], stamps.padded[len(stamps.times) :]  # a batch may have been fetched ahead
    return stamps


def work(side: str, name: str, steps: int, clock: str) -> None:
    """Run one side, and print what was measured as JSON."""
    warnings.filterwarnings("ignore")
    workload, precision = WORKLOADS[name], Precision.bf16 if "bf16" in side else Precision.fp32
    rate = matmul_rate(torch.device("cuda" if torch.cuda.is_available() else "cpu"), precision)
    examples, model = Examples(workload, SEED), workload.model()
    source, target = flops_a_token(model)
    with tempfile.TemporaryDirectory() as folder:
        course = Course(examples, steps, precision, Path(folder), clock=clock)
        train = partial(ours, model) if side.startswith("ours") else partial(theirs, model, strategy=STRATEGY[side])
        stamps = train(course)
        on_gpu, found = torch.cuda.is_available(), stamps.result()
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else resident
        found["kernels"] = kernels(partial(train, replace(course, steps=2))) if on_gpu else []
    lengths = examples.lengths.sum(axis=0)
    found["utilisation"] = found["tokens_per_second"] * float(lengths @ [source, target]) / lengths.sum() / rate
    print(json.dumps(found))


def kernels(train: Callable[[], object]) -> list[str]:
    """Name what takes the most time on the device, the processor's operators where there is no other."""
    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        train()
    rows = seen.key_averages()
    times = {row.key[:60]: float(row.self_device_time_total if on_gpu else row.self_cpu_time_total) for row in rows}
    whole = sum(times.values())
    return [f"{key} {times[key] / whole:.0%}" for key in sorted(times, key=times.__getitem__, reverse=True)[:6]]


def measure(name: str, steps: int, repeats: int, clock: str) -> dict[str, list[dict[str, Any]]]:
    """Run the sides in turns."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for repeat in range(repeats):
        for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
            arguments = ["benchmarks.train_vs_seq2seq_trainer", "--side", side, name, str(steps), clock]
            done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name} {side}: {found[side][-1]['tokens_per_second']:.0f} tokens/s", file=sys.stderr)
    return found


def median(rows: Sequence[dict[str, Any]], key: str) -> float:
    """Return the median of a figure over repeats."""
    return statistics.median(row[key] for row in rows)


def table(name: str, found: dict[str, list[dict[str, Any]]]) -> None:
    """Print one workload's tables."""
    print(f"\n### {name}: {WORKLOADS[name].examples} pairs a step\n")
    print("| side | real tokens/s | padding | utilisation | peak GiB | loss, mean of the last quarter |")
    print("|---|---|---|---|---|---|")
    for side, rows in found.items():
        last = [statistics.mean(row["losses"][-max(len(row["losses"]) // 4, 1) :]) for row in rows]
        cells = [f"{median(rows, 'tokens_per_second'):,.0f}", f"{median(rows, 'padding'):.1%}"]
        cells += [f"{median(rows, 'utilisation'):.0%}", f"{median(rows, 'peak_gib'):.1f}"]
        print(f"| {side} | {' | '.join(cells)} | {statistics.median(last):.3f} |")
    for side, rows in found.items():
        if rows[0]["kernels"]:
            print(f"\n{side}: {', '.join(rows[0]['kernels'])}")
    print("\n| ratio of real tokens/s | median | lowest to highest |")
    print("|---|---|---|")
    for what, (a, b) in PAIRS.items():
        ratios = [x["tokens_per_second"] / y["tokens_per_second"] for x, y in zip(found[a], found[b], strict=True)]
        middle, ends = statistics.median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"| {what}: {a} / {b} | {middle:.2f}x | {ends} |")


def main() -> None:
    """Measure what was asked for, and print the tables."""
    if sys.argv[1:2] == ["--side"]:
        work(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
        return
    if find_spec("accelerate") is None:
        raise SystemExit("Seq2SeqTrainer needs accelerate: pip install accelerate")
    chosen, steps, repeats, clock = [*sys.argv[1:5], *("", "12", "3", "wall")[len(sys.argv) - 1 :]]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    libraries = f"torch {torch.__version__}, transformers {version('transformers')}"
    print(f"{device}, {torch.get_num_threads()} threads; {libraries}")
    print(f"{steps} steps a repeat, the first not timed; {repeats} repeats in turns; {clock} time")
    for name in chosen.split(",") if chosen else WORKLOADS:
        if lacks := WORKLOADS[name].lacks():
            print(f"\n### {name}: not measured, {lacks}")
            continue
        table(name, measure(name, int(steps), int(repeats), clock))


if __name__ == "__main__":
    main()
