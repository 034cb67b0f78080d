"""A batch small enough to be read, and what a plain implementation makes of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from encdec_train.batch import MicroBatch
from encdec_train.data.collate import collate
from encdec_train.decoding.search import SearchSettings
from encdec_train.modeling.export import export

# [CLS] the cat sat on the mat [SEP] and shorter ones; targets are tokens + [SEP]
SOURCES = [[2, 5, 7, 10, 13, 5, 16, 3], [2, 6, 8, 3], [2, 9, 11, 3], [2, 5, 5, 5, 5, 3],
           [2, 31, 3], [2, 20, 21, 22, 23, 24, 25, 3], [2, 5, 7, 3], [2, 6, 3]]  # fmt: skip
TARGETS = [[5, 7, 3], [8, 6, 9, 10, 3], [3], [11, 3], [12, 13, 14, 3], [15, 3], [5, 5, 5, 5, 5, 5, 3], [6, 7, 3]]


# The families of checkpoints, each with a word-level tokenizer that has the family's special tokens.
WORDS = ["the", "a", "cat", "dog", "bird", "sat", "ran", "flew", "on", "under", "mat", "tree", "house", "and", "old"]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
LAYOUTS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "electra": {"embedding_size": 16},
    "camembert": {},
    "bert-generation": {},
    "gpt2": {"n_inner": 48},
    "xglm": {"ffn_dim": 48},
}
BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
ROBERTA = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
GENERATION = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
GPT2 = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
SPECIALS = {"bert": BERT, "electra": BERT, "bert-generation": GENERATION, "gpt2": GPT2}


@pytest.fixture
def eight() -> MicroBatch:
    """Eight examples of unequal lengths in one micro-batch; 27 labels."""
    return collate(SOURCES, TARGETS, 2, (0, 0))


@pytest.fixture
def pieces() -> Callable[[int], list[MicroBatch]]:
    """The same eight examples in so many micro-batches."""

    def cut(number: int) -> list[MicroBatch]:
        size = len(SOURCES) // number
        starts = range(0, len(SOURCES), size)
        return [collate(SOURCES[i : i + size], TARGETS[i : i + size], 2, (0, 0)) for i in starts]

    return cut


@pytest.fixture
def plain_sum() -> Callable[[Any, MicroBatch], torch.Tensor]:
    """The summed loss by the library's own forward, with explicit masks, logits picked out one by one."""

    def compute(model: Any, micro: MicroBatch) -> torch.Tensor:
        logits = model(
            input_ids=micro.source_ids_BS,
            attention_mask=micro.source_mask_BS.long(),
            decoder_input_ids=micro.decoder_ids_BT,
            decoder_attention_mask=micro.target_mask_BT.long(),
        ).logits
        at = micro.target_mask_BT.nonzero().tolist()
        rows = [logits[b, t] for b, t in at]
        return sum(row.exp().sum().log() - row[label] for row, label in zip(rows, micro.labels_N.tolist(), strict=True))

    return compute


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Change keys of a JSON file: `edit_json(path, key=value)`; None removes the key."""

    def edit(path: Path, **changes: Any) -> None:
        values = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return edit


@pytest.fixture
def exported(tiny_source: Any, tmp_path: Path) -> Callable[..., Path]:
    """Export a model of the tiny BERT: `exported(model, settings, decoder_tokenizer=None)`."""

    def write(model: Any, settings: SearchSettings, decoder_tokenizer: Any = None) -> Path:
        tokenizers = (tiny_source.tokenizer, decoder_tokenizer or tiny_source.tokenizer)
        export(model, tmp_path / "export", tokenizers, settings.generation_config(model), (16, 12), "# A card\n")
        return tmp_path / "export"

    return write


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a tiny checkpoint of a family, once for each shape: `zoo(family, **changes of its shape)`."""
    root = tmp_path_factory.mktemp("zoo")

    def checkpoint(family: str, **changes: Any) -> Path:
        folder = root / "-".join([family, *map(str, changes.values())])
        return folder if folder.exists() else make_checkpoint(folder, family, **changes)

    return checkpoint


def make_checkpoint(folder: Path, family: str, seed: int = 1, words: list[str] = WORDS, **changes: Any) -> Path:
    """Save a random checkpoint with its language-model head, weights large enough for outputs to differ."""
    tokenizer = _tokenizer(family, words)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    positions = {} if family == "xglm" else {"max_position_embeddings": 24}
    values = {"vocab_size": len(tokenizer), **SHAPE, **positions, **LAYOUTS[family], **ids, **changes}
    config = AutoConfig.for_model(family, **values)
    auto = AutoModelForMaskedLM if family not in {"gpt2", "xglm", "bert-generation"} else AutoModelForCausalLM
    if family == "bert-generation":
        config.is_decoder = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config)
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim > 1:
                    p.mul_(6.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(family: str, words: list[str]) -> PreTrainedTokenizerFast:
    names = SPECIALS.get(family, ROBERTA)
    specials = list(dict.fromkeys(names.values()))
    more = [f"word{number}" for number in range(10)]  # so that its special id lies beyond the others' vocabularies
    order = [*words, *more, *specials] if family == "gpt2" else [*specials, *words]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(order)}, unk_token=names["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(names[name], order.index(names[name])) for name in ("cls_token", "sep_token") if name in names]
    if ends:
        template = f"{ends[0][0]} $A {ends[1][0]}"
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)
