"""How `data.max_micro_tokens` changes speed and memory: what `auto` chooses by on a CPU.

    python -m benchmarks.micro_tokens [workload,...] [repeats]

One step's gradients are computed in micro-batches of several budgets, in turns. The peak is measured in a process for
each budget, beside what `auto` predicts from one pass over 1,024 tokens.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch

from benchmarks.tiny_pair import Setting
from benchmarks.tiny_pair import optim as optim_of
from benchmarks.workloads import CODEC, PAD, WORKLOADS, Examples
from encdec_train.batch import MicroBatch
from encdec_train.config import Precision
from encdec_train.data.collate import collate
from encdec_train.data.plan import split_batch
from encdec_train.training import budget, memory
from encdec_train.training.module import Seq2SeqModule

BUDGETS = (256, 512, 1024, 2048, 4096, 8192)
STEP_TOKENS = 8192  # real ones, of the step that is cut


class Alone(Seq2SeqModule):
    """A module that needs no trainer."""

    def manual_backward(self, loss: torch.Tensor, *_: object, **__: object) -> None:
        """Run backward."""
        loss.backward()

    def _without_sync(self) -> nullcontext[None]:
        return nullcontext()


def load(name: str) -> tuple[Alone, np.ndarray, Callable[[int], list[MicroBatch]]]:
    """Build the model and what cuts the step."""
    torch.set_num_threads(1)
    memory.keep_freed_memory()
    examples = Examples(WORKLOADS[name], 0)
    ids = np.arange(int((examples.lengths.sum(1).cumsum() < STEP_TOKENS).sum()))
    module = Alone(WORKLOADS[name].model(), optim_of(Setting(label_smoothing=0.0)), 1, 0, Precision.bf16)

    def cut(most: int) -> list[MicroBatch]:
        parts = split_batch(ids, examples.lengths, most, 1)[0]
        return [collate(*examples.take(part), CODEC.decoder_start_id, (PAD, PAD)) for part in parts]

    return module, examples.lengths[ids], cut


def peak(name: str, most: int) -> dict[str, int]:
    """Measure one budget's peak, and what `auto` would predict."""
    module, lengths, cut = load(name)
    longest = tuple(lengths.max(axis=0).tolist())
    a_token = budget._bytes_a_token(module, longest)
    micros = cut(most)
    module.add_gradient(micros[-1], 1e-3, 0, last=False)
    found = memory.peak_of(lambda: [module.add_gradient(micro, 1e-3, 0, last=False) for micro in micros])
    largest = max(micro.num_tokens for micro in micros)
    return {"peak": found or 0, "predicted": a_token * largest}


def main() -> None:
    """Print a table for each workload."""
    if sys.argv[1:2] == ["--peak"]:
        print(json.dumps(peak(sys.argv[2], int(sys.argv[3]))))
        return
    chosen, repeats = [*sys.argv[1:3], *("wikisplit", "3")[len(sys.argv) - 1 :]]
    for name in chosen.split(","):
        module, lengths, cut = load(name)
        times: dict[int, list[float]] = {most: [] for most in BUDGETS}
        for repeat in range(int(repeats) + 1):
            for most in BUDGETS:
                micros, start = cut(most), time.perf_counter()
                for micro in micros:
                    module.add_gradient(micro, 1e-3, 0, last=False)
                if repeat:  # the first warms up
                    times[most].append(time.perf_counter() - start)
        print(f"\n### {name}: {lengths.sum():,} tokens of {len(lengths)} pairs\n")
        print(f"bf16, one thread, torch {torch.__version__}\n")
        print("| data.max_micro_tokens | real tokens/s, median (lowest to highest) | peak MiB | predicted MiB |")
        print("|---|---|---|---|")
        for most in BUDGETS:
            command = [sys.executable, "-m", "benchmarks.micro_tokens", "--peak", name, str(most)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            grown = json.loads(done.stdout.splitlines()[-1])
            rates = sorted(float(lengths.sum() / one) for one in times[most])
            spread = f"{statistics.median(rates):,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f})"
            print(f"| {most:,} | {spread} | {grown['peak'] >> 20:,} | {grown['predicted'] >> 20:,} |")


if __name__ == "__main__":
    main()
