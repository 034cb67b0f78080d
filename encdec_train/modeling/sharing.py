"""Sharing parameters between encoder and decoder (Rothe et al. 2020, bertShare; known_defects D1, D2)."""

from collections.abc import Iterator

import torch
from transformers import EncoderDecoderModel, PreTrainedModel

from encdec_train.config import Group, Share, shared_groups, spelled
from encdec_train.errors import ModelError, fault
from encdec_train.modeling.families import base_model, group_of


def share(model: EncoderDecoderModel, what: list[Group] | Share, *, decoders: bool = False) -> int:
    """Make both halves use one set of parameters, under both names: the encoder's, or with `decoders` the decoder's.

    Returns:
        The number of parameters (elements) that now exist once instead of twice.

    Raises:
        ModelError: When the two halves differ in architecture or shape.
    """
    shared, groups, said = 0, shared_groups(what), spelled(what)
    encoder, decoder = model.encoder, base_model(model.decoder)
    for left, right in list(_pairs(encoder, decoder, groups, said)):
        mine, theirs = (encoder, left), (decoder, right)
        (keeper, kept), (taker, taken) = (theirs, mine) if decoders else (mine, theirs)
        parameter, replaced = keeper.get_parameter(kept), taker.get_parameter(taken)
        if parameter.shape != replaced.shape:
            shapes = f"{tuple(encoder.get_parameter(left).shape)} in the encoder and "
            shapes += f"{tuple(decoder.get_parameter(right).shape)} in the decoder"
            raise ModelError(fault("model.share", "none", said, f"{right} is {shapes}"))
        owner, _, leaf = taken.rpartition(".")
        setattr(taker.get_submodule(owner), leaf, parameter)
        shared += parameter.numel()
    if shared:
        model.decoder.tie_weights()
    return shared


def _pairs(
    encoder: PreTrainedModel, decoder: PreTrainedModel, groups: set[Group], said: str
) -> Iterator[tuple[str, str]]:
    """Yield the encoder's and the decoder's name of each parameter that is to be one."""
    words = _word_embeddings(encoder), _word_embeddings(decoder)
    if Group.word_embeddings in groups and Group.embeddings not in groups:
        yield words
    if groups <= {Group.word_embeddings}:
        return
    if type(encoder) is not type(decoder):
        kinds = f"the encoder is {encoder.config.model_type} and the decoder {decoder.config.model_type}"
        raise ModelError(fault("model.share", "none, or [word_embeddings]", said, kinds))
    names = [{name for name, _ in half.named_parameters() if group_of(name) in groups} for half in (encoder, decoder)]
    if lonely := sorted(names[0] ^ names[1]):
        raise ModelError(fault("model.share", "none", said, f"only one half has {lonely[0]}"))
    yield from ((name, name) for name, _ in decoder.named_parameters() if name in names[0])


def _word_embeddings(half: PreTrainedModel) -> str:
    matrix = half.get_input_embeddings().weight
    return next(name for name, p in half.named_parameters() if p is matrix)


def separate_state(model: EncoderDecoderModel) -> dict[str, torch.Tensor]:
    """Copy a model's tensors so that no two names share memory: what the library can save and load."""
    return {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}
