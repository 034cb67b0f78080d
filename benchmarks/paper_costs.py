"""List every experiment of the paper with the paper's score and what it costs: tokens, FLOPs, hours on H200s.

    python -m benchmarks.paper_costs

Nothing is run: parameters are counted on the meta device from the published shapes of the checkpoints, lengths and
utilisation are assumptions. Writes docs/paper.md.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import PreTrainedModel

from benchmarks.variants import source
from encdec_train.compose import compose, conf_dir
from encdec_train.config import Init, ModelConfig, Share, layer_numbers
from encdec_train.modeling import families
from encdec_train.modeling.checkpoints import match
from encdec_train.modeling.warm_start import build

PAGE = Path(__file__).parents[1] / "docs" / "paper.md"
FOLDER = conf_dir() / "experiment"
PEAK_FLOPS = 989e12  # of an H200 in bf16, dense, as NVIDIA's data sheet says
UTILISATION = 0.35  # an assumption
SCALING = 0.90  # of 8 GPUs of one machine against 8 times one: an assumption


@dataclass(frozen=True)
class Lengths:
    """Mean tokens a pair, special tokens included, cut at the task's limits; and how many pairs there are."""

    source: float
    target: float
    pairs: int
    why: str


MINILM = "counted with the vocabulary of bert-base-uncased"
LENGTHS = {
    "cnn_dailymail": Lengths(
        464, 68, 287_113, f"{MINILM}: sources of 900 validation articles, references of 3,000 test articles"
    ),
    "xsum": Lengths(352, 28, 204_045, f"{MINILM} in 900 articles"),
    "gigaword": Lengths(40, 12, 3_803_957, "assumed; not counted"),
    "discofuse": Lengths(42, 40, 4_500_000, "assumed to be like WikiSplit's; not counted"),
    "wikisplit": Lengths(40, 44, 989_944, f"{MINILM} in 3,000 rows of the original's tune file"),
    "wmt14_en_de": Lengths(34, 36, 4_508_785, "assumed; not counted"),
    "wmt14_de_en": Lengths(36, 34, 4_508_785, "assumed; not counted"),
}


@dataclass(frozen=True)
class Work:
    """What a token costs: parameters that are multiplied with it, and the width and number of attention layers."""

    per_source: int  # matrices that a source token passes: the encoder's layers, cross-attention's keys and values
    per_target: int  # matrices that a target token passes: the decoder's other ones, and the head
    hidden: int
    layers: tuple[int, int]

    def forward_flops(self, num_source: float, num_target: float) -> float:
        """Return the FLOPs of a forward of one pair: 2 a parameter and token, 4 a hidden unit and pair of positions."""
        pairs = self.layers[0] * num_source**2 + self.layers[1] * (num_target**2 + num_source * num_target)
        return 2 * (self.per_source * num_source + self.per_target * num_target) + 4 * self.hidden * pairs


@dataclass(frozen=True)
class Experiment:
    """One YAML, as far as its cost goes."""

    name: str
    task: str
    score: str  # the paper's, from the file's first line
    values: dict[str, Any]  # base and file, merged
    model: str

    @property
    def steps(self) -> int:
        """The steps, from the epochs where they are given."""
        trainer = self.values["trainer"]
        per_epoch = -(-LENGTHS[self.task].pairs // self.values["data"]["batch_examples"])
        return int(trainer["max_steps"] or trainer["max_epochs"] * per_epoch)

    @property
    def pairs(self) -> int:
        """Pairs that are seen, one epoch after another."""
        return self.steps * int(self.values["data"]["batch_examples"])

    def flops(self) -> float:
        """Return the FLOPs of the training: three forwards a pair."""
        lengths, model = LENGTHS[self.task], self.values.get("model", {})
        kept = layer_numbers(model.get("encoder_layers"))
        work = work_of(self.model, model.get("encoder"), len(kept) if kept else None)
        return 3 * self.pairs * work.forward_flops(lengths.source, lengths.target)


def experiments() -> list[Experiment]:
    """Read every experiment, as it is written; tasks need not be there."""
    return [read(path) for path in sorted(FOLDER.rglob("*.yaml")) if not path.name.startswith("_")]


def read(path: Path) -> Experiment:
    """Merge a file with the bases that it names, in Hydra's order."""
    text = path.read_text(encoding="utf-8")
    chosen = [one["override /model"] for one in yaml.safe_load(text)["defaults"] if "override /model" in one]
    score = text.splitlines()[1].removeprefix("# ").removesuffix(".")
    return Experiment(
        path.relative_to(FOLDER).with_suffix("").as_posix(), path.parent.name, score, merged(path), *chosen
    )


def merged(path: Path) -> dict[str, Any]:
    """Return the sections of a file over those of its bases."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for one in [*values.pop("defaults", []), "_self_"]:
        below = merged(conf_dir() / f"{one.lstrip('/')}.yaml") if str(one).startswith("/") else {}
        for section, leaves in (values if one == "_self_" else below).items():
            found[section] = {**found.get(section, {}), **leaves}
    return found


@cache
def work_of(model: str, encoder: str | None, num_layers: int | None) -> Work:
    """Count the matrices of a variant on the meta device."""
    named = ["model=bert2gpt" if model == "gpt" else f"model={model}"]  # gpt is GPT-2 alone: that decoder
    named += [f"model.encoder={encoder}"] if encoder else []
    config: ModelConfig = compose("train", ["task=files", "task.train_file=x", "trainer.max_steps=1", *named]).model
    names = [name for name, _ in config.sources]
    sources = [source(f"model.{half}", name) for half, name in zip(("encoder", "decoder"), names, strict=True)]
    left, right = match(*sources, config.share, config.init)
    with torch.device("meta"):
        pair: Any = build(left, right, Share.none, Init.none, seed=0).model
    stacks = [families.layers(half)[1] for half in (pair.encoder, pair.decoder)]
    part = num_layers / len(stacks[0]) if num_layers else 1.0
    encoder_layers = part * sum(size for _, size in matrices(stacks[0]))
    keys = part * sum(size for name, size in matrices(stacks[1]) if is_key_or_value(name))
    own = part * sum(size for name, size in matrices(stacks[1]) if not families.is_cross_attention(name))
    queries = part * sum(size for _, size in matrices(stacks[1])) - own - keys
    hidden, counts = pair.decoder.config.hidden_size, (round(part * len(stacks[0])), round(part * len(stacks[1])))
    if model == "gpt":  # one stack for both sides, and the head for targets alone
        return Work(round(own), round(own) + head(pair.decoder), hidden, (counts[1], counts[1]))
    return Work(round(encoder_layers + keys), round(own + queries) + head(pair.decoder), hidden, counts)


def matrices(module: nn.Module) -> list[tuple[str, int]]:
    """List name and size of what is multiplied with every token; biases and norms are too small to count."""
    return [(name, p.numel()) for name, p in module.named_parameters() if p.ndim > 1]


def is_key_or_value(name: str) -> bool:
    """Tell the matrices of cross-attention that the source passes; GPT-2 has both in one, `c_attn`."""
    return families.is_cross_attention(name) and any(word in name for word in (".key.", ".value.", ".c_attn."))


def head(decoder: PreTrainedModel) -> int:
    """Count the matrices between the last layer and the vocabulary."""
    base, last = {id(p) for p in families.base_model(decoder).parameters()}, decoder.get_output_embeddings().weight
    others = [p.numel() for p in decoder.parameters() if p.ndim > 1 and id(p) not in {*base, id(last)}]
    return int(last.numel() + sum(others))


def hours(flops: float, num_devices: int) -> float:
    """Return the hours that the assumptions give."""
    speed = PEAK_FLOPS * UTILISATION * (num_devices * SCALING if num_devices > 1 else 1)
    return flops / speed / 3600


def table(task: str, found: list[Experiment]) -> list[str]:
    """Lay one task's experiments out."""
    lengths = LENGTHS[task]
    tokens = lengths.source + lengths.target
    lines = [
        f"## {task}",
        "",
        f"{lengths.source:.0f} source and {lengths.target:.0f} target tokens a pair ({lengths.why}); "
        f"{lengths.pairs:,} pairs.",
        "",
        "| experiment | the paper's score | steps | epochs | tokens | FLOPs | hours, one H200 | hours, 8 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        flops = one.flops()
        cells = [f"`{one.name}`", one.score, f"{one.steps:,}", f"{one.pairs / lengths.pairs:.1f}"]
        cells += [f"{one.pairs * tokens / 1e9:.2f} G", f"{flops / 1e18:.1f} E"]
        cells += [f"{hours(flops, count):.1f}" for count in (1, 8)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def page() -> str:
    """Write the page."""
    found = experiments()
    total = sum(one.flops() for one in found)
    blocks = [table(task, [one for one in found if one.task == task]) for task in LENGTHS]
    summary = (
        f"All {len(found)} together: {total / 1e18:,.0f} exaFLOP, {hours(total, 1):,.0f} hours on one H200, "
        f"{hours(total, 8):,.0f} on 8."
    )
    return "\n\n".join([INTRODUCTION.strip(), summary, *("\n".join(lines) for lines in blocks)]) + "\n"


INTRODUCTION = f"""
# The paper's experiments

Every row of the tables of [Rothe, Narayan and Severyn (2020)](https://arxiv.org/abs/1907.12461) that public checkpoints
allow, as one complete run: `encdec train experiment=paper/wikisplit/bertshare`, or any other name below. What the paper
does not state is marked `# our choice` in the YAML of [conf/experiment](../conf/experiment). The first score is the
paper's: nothing here was trained, and no hour below was measured.

Left out: rows with a BERT of their own, which was never released (WMT14, "custom"), the two Transformers without a
checkpoint, and of Table 6 the 16k SentencePiece vocabulary and gpt. DiscoFuse's columns of 10% and 1% are the same
experiment with `task.train_fraction=0.1` and `0.01`; its balanced set is in the original release alone, so
`task.train_file`, `task.validation_file` and `task.test_file` name it.

How the cost is computed, by `python -m benchmarks.paper_costs`, which writes this page:

- tokens = steps x pairs a step x (S + T): mean source and target tokens, special ones included, padding left out.
  They are counted in samples where it says so, with one vocabulary for all variants, and else **assumed**.
- FLOPs = 3 x forward (the backward costs two). Forward of a pair = 2 x (parameters that a source token passes x S +
  parameters that a target token passes x T) + 4 x hidden x (encoder layers x S^2 + decoder layers x (T^2 + S x T)).
  A source token passes the encoder's layers and cross-attention's keys and values, a target token the decoder's other
  matrices and the head; embeddings are looked up. What is shared is used twice and counts twice. Parameters are counted
  on the meta device, in the shapes of `benchmarks/variants.py`. The square of a mean length stands for the mean square.
- hours = FLOPs / ({PEAK_FLOPS / 1e12:.0f}e12 x {UTILISATION}) / 3600: the H200's dense bf16 peak by its data sheet, and
  a utilisation that is an **assumption**; so is that 8 GPUs of a machine are {8 * SCALING:.1f} times as fast as one.
  Validation, decoding and loading come on top.
"""


def main() -> None:
    """Print the page and write it."""
    text = page()
    print(text, end="")
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
