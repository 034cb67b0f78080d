"""Count the parameters of every variant of the paper, in real size, without a weight, beside the paper's Table 1.

    python -m benchmarks.variants

Models are built on the meta device from the published shapes of the checkpoints. Warm is what a checkpoint of this
shape holds: all of a warm-started half but the cross-attention. Writes docs/results/variants.md.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, PreTrainedTokenizerFast

from encdec_train.compose import compose
from encdec_train.config import Group, Init, Share
from encdec_train.modeling import causal, families
from encdec_train.modeling.checkpoints import Source, match
from encdec_train.modeling.sharing import share
from encdec_train.modeling.warm_start import Changes, build

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
BERT = {"model_type": "bert", "vocab_size": 28_996}
ROBERTA = {"model_type": "roberta", "vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1}
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "google-bert/bert-base-cased": {**BASE, **BERT},
    "google-bert/bert-base-uncased": {**BASE, **BERT, "vocab_size": 30_522},
    "google-bert/bert-base-multilingual-cased": {**BASE, **BERT, "vocab_size": 119_547},
    "google-bert/bert-large-cased": {**LARGE, **BERT},
    "google-bert/bert-large-uncased": {**LARGE, **BERT, "vocab_size": 30_522},
    "FacebookAI/roberta-base": {**BASE, **ROBERTA},
    "FacebookAI/roberta-large": {**LARGE, **ROBERTA},
    "openai-community/gpt2": {"model_type": "gpt2", "vocab_size": 50_257},
}
PAPER = {  # millions: total, embedding, warm, fresh
    "rnd2rnd": (221, 23, 0, 221),
    "bert2rnd": (221, 23, 109, 112),
    "rnd2bert": (221, 23, 109, 26),
    "bert2bert": (221, 23, 195, 26),
    "bertshare": (136, 23, 109, 26),
    "robertashare": (152, 39, 125, 26),
    "gpt": (125, 39, 125, 0),
    "rnd2gpt": (238, 39, 125, 114),
    "bert2gpt": (260, 62, 234, 26),
    "roberta2gpt": (276, 78, 250, 26),
}
OTHERS = ("bert2bert_large", "bertshare_large", "robertashare_large")
CASED = "google-bert/bert-base-cased"  # with which the paper's 23 M of embeddings agree


@dataclass(frozen=True)
class Counts:
    """Distinct parameters, in elements."""

    total: int
    embedding: int
    warm: int
    head: int  # of them the head's transform and bias, which the paper does not count

    @property
    def fresh(self) -> int:
        """What starts from random weights."""
        return self.total - self.warm


def count(variant: str) -> Counts:
    """Build a variant on the meta device and count."""
    encoder = [] if variant not in {"rnd2rnd", "bert2rnd", "rnd2bert", "bert2bert", "bertshare"} else [CASED]
    overrides = [f"model={variant}", *(f"model.encoder={name}" for name in encoder)]
    config = compose("train", ["task=files", "task.train_file=x", "trainer.max_steps=1", *overrides]).model
    if config.encoder is None:
        return count_alone(source("model.decoder", config.decoder))
    names = [name for name, _ in config.sources]
    sources = [source(f"model.{half}", name) for half, name in zip(("encoder", "decoder"), names, strict=True)]
    left, right = match(*sources, config.share, config.init)
    with torch.device("meta"):
        model = build(left, right, Share.none, Init.none, seed=0).model
    warm = set()
    for half, inits in ((model.encoder, {Init.both, Init.encoder}), (model.decoder, {Init.both, Init.decoder})):
        if config.init in inits:
            warm |= {id(p) for name, p in half.named_parameters() if not families.is_cross_attention(name)}
    share(model, config.share, decoders=config.init is Init.decoder)
    bases = [*model.encoder.named_parameters(), *families.base_model(model.decoder).named_parameters()]
    embeddings = {id(p) for name, p in bases if families.group_of(name) is Group.embeddings}
    halves = {id(p) for _, p in bases}
    parameters = list(model.parameters())
    return Counts(
        total=sum(p.numel() for p in parameters),
        embedding=sum(p.numel() for p in parameters if id(p) in embeddings),
        warm=sum(p.numel() for p in parameters if id(p) in warm),
        head=sum(p.numel() for p in parameters if id(p) not in halves),
    )


def count_alone(decoder: Source) -> Counts:
    """Count a model without an encoder."""
    with torch.device("meta"):
        model: Any = causal.build(replace(decoder, alone=True), Init.none, seed=0, changes=Changes()).model
    total = sum(p.numel() for p in model.parameters())
    named = families.base_model(model).named_parameters()
    embedding = sum(p.numel() for name, p in named if families.group_of(name) is Group.embeddings)
    return Counts(total, embedding, warm=total, head=0)


def source(key: str, name: str) -> Source:
    """Describe a published checkpoint by its shape, with a stand-in for its tokenizer."""
    config = AutoConfig.for_model(**CHECKPOINTS[name])
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, name: 1}, unk_token="[UNK]"))
    specials = {f"{kind}_token": "[UNK]" for kind in ("unk", "pad", "bos", "eos")}
    return Source(key, name, None, config, PreTrainedTokenizerFast(tokenizer_object=backend, **specials))


def table() -> list[str]:
    """Lay the counts out, in millions."""
    lines = ["| variant | total | embedding | warm | fresh | paper's Table 1 |", "|---|---|---|---|---|---|"]
    for variant in [*PAPER, *OTHERS]:
        found = count(variant)
        numbers = [f"{n / 1e6:.1f}" for n in (found.total, found.embedding, found.warm, found.fresh)]
        said = " / ".join(map(str, PAPER[variant])) if variant in PAPER else "not printed"
        lines.append(f"| {' | '.join([variant, *numbers, said])} |")
    return lines


def main() -> None:
    """Print the table and put it into the page of results."""
    page = Path(__file__).parents[1] / "docs" / "results" / "variants.md"
    text = page.read_text(encoding="utf-8")
    start, end = "<!-- table -->\n", "\n<!-- end -->"
    lines = "\n".join(table())
    print(lines)
    before, after = text.split(start)[0], text.split(end)[1]
    page.write_text(f"{before}{start}{lines}{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
