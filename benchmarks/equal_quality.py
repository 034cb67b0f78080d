"""Our training loop and `transformers.Seq2SeqTrainer` on the same examples in the same order: do they learn the same?

    ENCDEC_DATA=… python -m benchmarks.equal_quality [steps] [seeds] [tiny|plain|minilm]

WikiSplit in steps of 8 pairs, a bert2bert from the same weights: tiny, two layers of width 64 a half, random, 1e-3
held; plain, the same without dropout; or MiniLM, 6 layers of width 384 a half with random cross-attention, 2e-4 held.
The seed decides on order and dropout (0.1), and on nothing else. Seq2SeqTrainer runs with accumulation 1 in one
process. The validation loss is computed in the same way for all: by the library's own forward in float32, over pairs
that none has trained on.
"""

import gc
import statistics
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import EncoderDecoderModel

from benchmarks.train_vs_seq2seq_trainer import Course, ours, theirs
from benchmarks.workloads import CLS, PAD, WORKLOADS, Examples, bert_pair, minilm_pair
from encdec_train.config import Precision
from encdec_train.data.collate import collate

SIDES = {"ours, float32": Precision.fp32, "ours, bf16": Precision.bf16, "Seq2SeqTrainer, float32": Precision.fp32}
MODELS = {  # the pair, its learning rate
    "tiny": (partial(bert_pair, 2, 64, 2), 1e-3),
    "plain": (partial(bert_pair, 2, 64, 2, dropout=0.0), 1e-3),
    "minilm": (minilm_pair, 2e-4),
}
STEP_EXAMPLES, HELD_OUT, BATCH = 8, 256, 16


def validation_loss(model: EncoderDecoderModel, examples: Examples, held: Sequence[int]) -> float:
    """Return the mean over tokens in nats."""
    model.eval()
    total, tokens = 0.0, 0
    for start in range(0, len(held), BATCH):
        micro = collate(*examples.take(held[start : start + BATCH]), CLS, (PAD, PAD))
        with torch.no_grad():
            logits = model(
                input_ids=micro.source_ids_BS, attention_mask=micro.source_mask_BS.long(),
                decoder_input_ids=micro.decoder_ids_BT,
            ).logits[micro.target_mask_BT]  # fmt: skip
        total += nn.functional.cross_entropy(logits.float(), micro.labels_N, reduction="sum").item()
        tokens += len(micro.labels_N)
    return total / tokens


def run(side: str, kind: str, steps: int, seed: int) -> tuple[float, list[float]]:
    """Train one side; return the validation loss and the losses by step."""
    examples = Examples(replace(WORKLOADS["wikisplit"], examples=STEP_EXAMPLES), seed)
    held = sorted(
        set(range(len(examples.sources))) - {int(i) for n in range(steps) for i in examples.plan.batch(n + 1)[1]}
    )
    build, lr = MODELS[kind]
    model = build().train()
    with tempfile.TemporaryDirectory() as folder:
        course = Course(examples, steps, SIDES[side], Path(folder), lr, seed)
        torch.manual_seed(seed)
        stamps = ours(model, course) if side.startswith("ours") else theirs(model, course, "sequential")
    return validation_loss(model, examples, held[:HELD_OUT]), stamps.losses


def main() -> None:
    """Train every side with every seed, and print the table."""
    warnings.filterwarnings("ignore")
    given = sys.argv[1:]
    numbers, kind = [int(each) for each in [*given[:2], *("120", "3")[len(given) :]]], "".join(given[2:]) or "tiny"
    steps, num_seeds = numbers
    validation: dict[str, list[float]] = {side: [] for side in SIDES}
    curves: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for seed in range(num_seeds):
        for side in SIDES:
            value, losses = run(side, kind, steps, seed)
            validation[side].append(value)
            curves[side].append(losses)
            print(f"seed {seed}, {side}: {value:.4f}", file=sys.stderr, flush=True)
            gc.collect()
    print(f"{kind}: {steps} steps of {STEP_EXAMPLES} pairs; validation on {HELD_OUT} pairs\n")
    print(
        "| side | validation loss, a seed each | mean | spread | training loss a step: mean distance from the first |"
    )
    print("|---|---|---|---|---|")
    for side, values in validation.items():
        pairs = zip(curves[side], curves["ours, float32"], strict=True)
        distance = statistics.mean(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        each = ", ".join(f"{value:.3f}" for value in values)
        print(f"| {side} | {each} | {statistics.mean(values):.3f} | {spread:.3f} | {distance:.4f} |")


if __name__ == "__main__":
    main()
