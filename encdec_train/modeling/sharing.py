"""Sharing parameters between encoder and decoder (Rothe et al. 2020, bertShare; known_defects D1, D2)."""

from typing import cast

import torch
from transformers import EncoderDecoderModel, PreTrainedModel

from encdec_train.config import Share
from encdec_train.errors import ModelError, fault


def base_model(decoder: PreTrainedModel) -> PreTrainedModel:
    """Return the decoder without its language-model head."""
    return cast(PreTrainedModel, decoder.base_model)


def share(model: EncoderDecoderModel, what: Share) -> int:
    """Make the decoder use the encoder's parameters, under both names.

    Returns:
        The number of parameters (elements) that now exist once instead of twice.

    Raises:
        ModelError: When the two halves differ in shape.
    """
    if what is Share.none:
        return 0
    shared = 0
    decoder = base_model(model.decoder)
    prefix = "embeddings." if what is Share.embeddings else ""
    sources = {name: p for name, p in model.encoder.named_parameters() if name.startswith(prefix)}
    wanted = {
        name: p for name, p in decoder.named_parameters() if name.startswith(prefix) and "crossattention" not in name
    }
    if lonely := sorted(sources.keys() ^ wanted.keys()):
        raise ModelError(fault("model.share", "none", what.value, f"only one half has {lonely[0]}"))
    for name, mine in wanted.items():
        theirs = sources[name]
        if theirs.shape != mine.shape:
            shapes = f"{tuple(theirs.shape)} in the encoder and {tuple(mine.shape)} in the decoder"
            raise ModelError(fault("model.share", "none", what.value, f"{name} is {shapes}"))
        owner = decoder.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], theirs)
        shared += theirs.numel()
    model.decoder.tie_weights()
    return shared


def separate_state(model: EncoderDecoderModel) -> dict[str, torch.Tensor]:
    """Copy a model's tensors so that no two names share memory: what the library can save and load."""
    return {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}
