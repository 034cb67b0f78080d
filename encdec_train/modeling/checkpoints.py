"""Where pretrained checkpoints are, whether they can be used, and their tokenizers; no weights are loaded here."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from encdec_train.errors import ModelError, fault
from encdec_train.modeling.hub import check_weights, locate

MODEL_TYPES = ("bert",)  # the architectures whose warm start is tested


@dataclass(frozen=True)
class Source:
    """One half's checkpoint, found and read as far as its config and tokenizer."""

    key: str  # the config key that named it
    name: str  # the folder; of the Hub's cache for a Hub id
    revision: str | None  # the commit that a Hub id and `<key>_revision` resolved to
    config: PretrainedConfig  # the architecture
    tokenizer: PreTrainedTokenizerBase  # its tokenizer, without truncation or padding of its own

    @property
    def max_positions(self) -> int:
        """The longest sequence in tokens that the position embeddings reach."""
        return int(self.config.max_position_embeddings)


@dataclass(frozen=True)
class SpecialIds:
    """The ids that frame a text."""

    start: int  # what the decoder starts from
    eos: int  # what ends a target
    pad: int  # what fills a batch


@contextlib.contextmanager
def quiet_library() -> Iterator[None]:
    """Keep the library's bars and load reports off the console; ours says more (known_defects D16)."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def find(key: str, name: str, revision: str | None) -> Source:
    """Find a checkpoint, a folder or a revision of a Hub id, and read its config and tokenizer; `key` named it.

    Raises:
        ModelError: When it is missing, has no weights, needs code of its own, is of an architecture that is not
            supported, or has a tokenizer that does not fit.
    """
    folder = locate(key, name, revision)
    _check_folder(key, folder)
    name, revision = str(folder), None if str(folder) == name else folder.name
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ModelError(_unreadable(key, name, "config.json", error)) from error
    if config.model_type not in MODEL_TYPES:
        expected = f"a checkpoint of type {', '.join(MODEL_TYPES)}"
        raise ModelError(fault(key, expected, config.model_type, f"{name} is another architecture"))
    source = Source(key, name, revision, config, _tokenizer(key, name, revision))
    _check_vocabulary(source)
    return source


def special_ids(source: Source) -> SpecialIds:
    """Name the ids that frame a target.

    Raises:
        ModelError: When the tokenizer lacks one of them.
    """
    tokenizer = source.tokenizer
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    eos = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    pad = tokenizer.pad_token_id
    named = {"a start token ([CLS] or bos)": start, "an end token ([SEP] or eos)": eos, "a pad token": pad}
    missing = [what for what, value in named.items() if value is None]
    if missing:
        raise ModelError(fault(source.key, f"a tokenizer with {' and '.join(missing)}", source.name))
    return SpecialIds(start, eos, pad)


def _check_folder(key: str, folder: Path) -> None:
    config_file = folder / "config.json"
    if not config_file.is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ModelError(fault(key, "a checkpoint folder with config.json", str(folder), f"it holds {found}"))
    try:
        values: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(fault(key, "a readable config.json", str(config_file), str(error))) from error
    if "auto_map" in values:
        reason = "its config.json has an auto_map, which asks to run code from the checkpoint"
        raise ModelError(fault(key, "an architecture of the transformers library", str(folder), reason))
    check_weights(key, str(folder), (path.name for path in folder.iterdir()))


def _tokenizer(key: str, name: str, revision: str | None) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False, use_fast=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(_unreadable(key, name, "its tokenizer", error)) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(fault(key, "a tokenizer with a tokenizer.json", name, "it has no fast tokenizer"))
    backend.no_truncation()  # sentence encoders ship a tokenizer.json that cuts at 128 tokens on its own
    backend.no_padding()
    return tokenizer


def _check_vocabulary(source: Source) -> None:
    rows, tokens = int(source.config.vocab_size), len(source.tokenizer)
    ids = source.tokenizer.get_vocab().values()
    highest = max(ids, default=-1)
    if highest >= rows:
        expected = f"a tokenizer of at most {rows:,} tokens, the rows of the embedding"
        reason = f"the highest id is {highest}: {source.name} holds another model's tokenizer"
        raise ModelError(fault(source.key, expected, tokens, reason))
    if tokens < len(source.tokenizer.all_special_ids) + 1:
        reason = f"the tokenizer files of {source.name} are missing"
        raise ModelError(fault(source.key, "a tokenizer with a vocabulary", f"{tokens} tokens", reason))


def _unreadable(key: str, name: str, what: str, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")]).rstrip(".")
    return fault(key, f"a folder from which {what} can be read", name, reason)
