"""The export: a folder that transformers loads without this package."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    EncoderDecoderModel,
    GenerationConfig,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from encdec_train import atomic
from encdec_train.errors import EncDecError, ModelError, fault
from encdec_train.modeling.causal import ends_sources
from encdec_train.modeling.checkpoints import DECODER_TOKENIZER, PAIR, export_in, quiet_library
from encdec_train.modeling.families import causal_class, is_causal
from encdec_train.modeling.hub import check_weights, locate
from encdec_train.modeling.sharing import separate_state

CAUSAL = "causal"  # stands for the model type of a decoder-only export: its tokenizer ends sources
WHAT = "a run folder, an export folder or a Hub id"
SEQ2SEQ_TYPES = frozenset(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)  # T5, BART and so on

Tokenizers = tuple[Tokenizer, Tokenizer]  # the encoder's and the decoder's


def export(
    model: EncoderDecoderModel,
    folder: Path,
    tokenizers: Tokenizers,
    generation: GenerationConfig,
    limits: tuple[int, int],
    card: str,
) -> None:
    """Write a vanilla folder beside the target and put it in place whole.

    Shared parameters are written out twice (known_defects D2). Where the library builds the encoder with a pooler, that
    this model has no use for, it is exported as zeros, so that loading reports nothing as newly initialised (D8).

    Args:
        model: The trained pair, or causal LM.
        folder: Where to; replaced if it is there.
        tokenizers: The encoder's, and the decoder's (written to `decoder_tokenizer/` when it is another one).
        generation: Decoding settings, written so that `generate()` needs no argument.
        limits: Source and target tokens of the task; the source's becomes the tokenizer's `model_max_length`.
        card: The model card.

    Raises:
        EncDecError: When it cannot be written whole; what was there before is still there.
    """
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    for leftover in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    state = None if is_causal(model) else {**_poolers(model), **separate_state(model)}
    try:
        with quiet_library():
            model.save_pretrained(beside, state_dict=state, safe_serialization=True)
        generation.save_pretrained(beside)
        _save_tokenizer(tokenizers[0], beside, limits[0])
        if tokenizers[1] is not tokenizers[0]:
            _save_tokenizer(tokenizers[1], beside / DECODER_TOKENIZER, limits[1])
        (beside / "README.md").write_text(card, encoding="utf-8")
        atomic.install(beside, folder, replace=True)
    except (OSError, SafetensorError) as error:  # safetensors has no OSError for a full disk
        shutil.rmtree(beside, ignore_errors=True)
        remedy = "Make room and run the same command again: checkpoints and predictions are kept"
        raise EncDecError(fault(str(folder), "room and rights for the export", None, str(error), remedy)) from error


def _poolers(model: EncoderDecoderModel) -> dict[str, torch.Tensor]:
    """Return zeros for what the library's own encoder has and ours was built without."""
    with torch.device("meta"):
        theirs = AutoModel.from_config(model.encoder.config).state_dict()
    return {f"encoder.{name}": torch.zeros(p.shape) for name, p in theirs.items() if name.startswith("pooler.")}


def load(folder: str, types: Collection[str] = (PAIR, CAUSAL)) -> tuple[Any, Tokenizers]:
    """Load an export (or any encoder-decoder checkpoint) with its tokenizers, in eval mode.

    Args:
        folder: An export folder, a run folder that holds one, or a Hub id.
        types: The `model_type`s that are allowed, such as `SEQ2SEQ_TYPES`.

    Raises:
        ModelError: When there is none.
    """
    where = export_in(locate("checkpoint", folder, None))
    if not (where / "config.json").is_file():
        raise ModelError(fault("checkpoint", WHAT, folder, "there is no config.json in it"))
    try:
        with quiet_library():
            return _load(folder, where, types)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelError(fault("checkpoint", WHAT, folder, reason)) from error


def _load(name: str, where: Path, types: Collection[str]) -> tuple[Any, Tokenizers]:
    config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    source = AutoTokenizer.from_pretrained(where, trust_remote_code=False) if causal_class(config) else None
    alone = source is not None and ends_sources(source)
    if (CAUSAL if alone else config.model_type) not in types:
        what = f"{'an encoder-decoder' if CAUSAL in types else 'a sequence-to-sequence'} model"
        reason, remedy = f"{name} is no export", "Pretrained halves are for `encdec train model.encoder=…`"
        if alone:
            reason, remedy = f"{name} has no encoder", "`encdec generate` can use it"
        raise ModelError(fault("checkpoint", what, config.model_type, reason, remedy))
    check_weights("checkpoint", name, (file.name for file in where.iterdir()))
    library: Any = AutoModelForCausalLM if alone else AutoModelForSeq2SeqLM  # untyped: `output_loading_info`
    model, info = library.from_pretrained(
        where, trust_remote_code=False, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
    )
    lacking = [key for key in info["missing_keys"] if not key.startswith("encoder.pooler.")]  # which nothing reads
    lacking += [key for key, *_ in info["mismatched_keys"]]
    if lacking:
        reason = f"{len(lacking)} tensors are missing or differ in shape, such as {min(lacking)}"
        raise ModelError(fault("checkpoint", "all weights of its config.json", name, reason))
    source = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    own = where / DECODER_TOKENIZER
    return model, (source, AutoTokenizer.from_pretrained(own, trust_remote_code=False) if own.is_dir() else source)


def _save_tokenizer(tokenizer: Tokenizer, folder: Path, max_tokens: int) -> None:
    before = tokenizer.model_max_length
    tokenizer.model_max_length = max_tokens
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.model_max_length = before
