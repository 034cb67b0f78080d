"""Where pretrained checkpoints are, whether they can be used, and their tokenizers; no weights are loaded here."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from encdec_train.config import Group, Init, Share, shared_groups
from encdec_train.errors import ModelError, fault
from encdec_train.modeling.families import causal_class, decoder_class, decoder_types, encoder_class, max_positions
from encdec_train.modeling.hub import check_weights, locate

Named = tuple[str, str | None]  # a folder or a Hub id, and its revision
DECODER_TOKENIZER = "decoder_tokenizer"  # the folder of the decoder's own in an export
PAIR = "encoder-decoder"  # the model type of an export


@dataclass(frozen=True)
class Source:
    """One half's checkpoint, found and read as far as its config and tokenizer."""

    key: str  # the config key that named it
    name: str  # the folder; of the Hub's cache for a Hub id
    revision: str | None  # the commit that a Hub id and `<key>_revision` resolved to
    config: PretrainedConfig  # the architecture
    tokenizer: PreTrainedTokenizerBase  # its tokenizer, without truncation or padding of its own
    alone: bool = False  # it reads the source too: there is no encoder (causal.py)
    part: str | None = None  # `encoder` or `decoder`: the half that it is of an encoder-decoder checkpoint

    @property
    def max_positions(self) -> int | None:
        """The longest sequence in tokens that the position embeddings reach; None: there is no limit."""
        return max_positions(self.config)


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


def find_pair(
    sources: tuple[Named, Named], share: list[Group] | Share, init: Init, section: str = "model."
) -> tuple[Source, Source]:
    """Find the encoder's and the decoder's checkpoint and `match` them; `section` begins their keys.

    Raises:
        ModelError: When one cannot be used.
    """
    return match(find(f"{section}encoder", *sources[0]), find(f"{section}decoder", *sources[1]), share, init)


def match(left: Source, right: Source, share: list[Group] | Share, init: Init) -> tuple[Source, Source]:
    """Make equal tokenizers one; a random half that shares its embeddings takes the other's vocabulary.

    Such a half only lends its shape (rnd2gpt: a BERT's encoder that reads GPT-2's tokens).
    """
    if _same_tokenizer(left.tokenizer, right.tokenizer):
        right = replace(right, tokenizer=left.tokenizer)
    elif shared_groups(share) & {Group.embeddings, Group.word_embeddings}:
        if init is Init.decoder:
            left = _with_vocabulary(left, right)
        elif init is Init.encoder:
            right = _with_vocabulary(right, left)
    return left, right


def find(key: str, name: str, revision: str | None, *, alone: bool = False) -> Source:
    """Find a checkpoint, a folder or a revision of a Hub id, and read its config and tokenizer; `key` named it.

    A run's folder stands for the export in it. Of an encoder-decoder checkpoint the half is read that the key names.
    What is to work `alone` is a causal language model.

    Raises:
        ModelError: When it is missing, has no weights, needs code of its own, is of an architecture that is not
            supported, or has a tokenizer that does not fit.
    """
    folder = export_in(locate(key, name, revision))
    _check_folder(key, folder)
    name, revision = str(folder), None if Path(name).is_dir() else folder.name
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ModelError(_unreadable(key, name, "config.json", error)) from error
    half = key.rpartition(".")[2]
    part = half if config.model_type == PAIR and not alone else None
    config = getattr(config, part) if part else config
    _check_architecture(key, name, config, "causal" if alone else half)
    own = folder / DECODER_TOKENIZER
    tokenizer = _tokenizer(key, str(own if part == "decoder" and own.is_dir() else folder))
    source = Source(key, name, revision, config, tokenizer, alone, part)
    _check_vocabulary(source)
    return source


def export_in(folder: Path) -> Path:
    """Return the export of a run's folder, and any other folder as it is."""
    inside = folder / "export"
    return inside if (inside / "config.json").is_file() else folder


def special_ids(source: Source) -> SpecialIds:
    """Name the ids that frame a target.

    Raises:
        ModelError: When the tokenizer lacks one of them.
    """
    tokenizer = source.tokenizer
    if source.alone:  # the end of the source is the start of the target
        return SpecialIds(tokenizer.eos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
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


def _check_architecture(key: str, name: str, config: PretrainedConfig, half: str) -> None:
    if half == "causal" and causal_class(config) is None:
        reason = f"{name} was not made to write from left to right, alone"
        raise ModelError(fault(key, "a causal language model such as gpt2", config.model_type, reason))
    if half == "decoder" and decoder_class(config) is None:
        expected = f"a decoder that can attend to an encoder: {', '.join(decoder_types())}"
        raise ModelError(fault(key, expected, config.model_type, f"{name} has no cross-attention in the library"))
    if half == "encoder" and encoder_class(config) is None:
        reason = f"{name} is no encoder of text" + (", but a pair of its own" if config.is_encoder_decoder else "")
        raise ModelError(fault(key, "an encoder such as bert, roberta or gpt2", config.model_type, reason))


def _same_tokenizer(left: PreTrainedTokenizerBase, right: PreTrainedTokenizerBase) -> bool:
    names = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    same_ids = all(getattr(left, name) == getattr(right, name) for name in names)
    backends: list[Any] = [left, right]
    return same_ids and backends[0].backend_tokenizer.to_str() == backends[1].backend_tokenizer.to_str()


def _with_vocabulary(shape: Source, other: Source) -> Source:
    values = {name: getattr(other.config, name) for name in ("vocab_size", "bos_token_id", "eos_token_id")}
    pad = other.tokenizer.pad_token_id
    config = type(shape.config).from_dict({**shape.config.to_dict(), **values, "pad_token_id": pad})
    return replace(shape, config=config, tokenizer=other.tokenizer)


def _tokenizer(key: str, name: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, use_fast=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(_unreadable(key, name, "its tokenizer", error)) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(fault(key, "a tokenizer with a tokenizer.json", name, "it has no fast tokenizer"))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # GPT-2 has none: masks come from lengths, so any id will do
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
