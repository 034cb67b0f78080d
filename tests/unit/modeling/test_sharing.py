"""Shared parameters are one tensor under two names; separate ones are not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from encdec_train.batch import MicroBatch
from encdec_train.config import Init, Share
from encdec_train.errors import ModelError
from encdec_train.modeling.checkpoints import find
from encdec_train.modeling.families import base_model
from encdec_train.modeling.loss import loss_sum
from encdec_train.modeling.sharing import separate_state, share
from encdec_train.modeling.warm_start import build


def pointers(model: torch.nn.Module) -> dict[str, int]:
    return {name: p.data_ptr() for name, p in model.named_parameters(remove_duplicate=False)}


def test_nothing_is_shared_unless_asked_for(new_model: Callable[..., Any]) -> None:
    model = new_model()
    assert share(model, Share.none) == 0
    assert not set(pointers(model.encoder).values()) & set(pointers(model.decoder).values())


@pytest.mark.parametrize(("what", "count"), [("embeddings", 3_200), ("all", 20_288)])
def test_the_decoder_uses_the_encoders_parameters(what: str, count: int, new_model: Callable[..., Any]) -> None:
    model = new_model(seed=1)
    before = sum(p.numel() for p in model.parameters())
    assert share(model, Share(what)) == count
    assert sum(p.numel() for p in model.parameters()) == before - count
    encoder, decoder = pointers(model.encoder), pointers(base_model(model.decoder))
    common = {name for name, pointer in decoder.items() if pointer == encoder.get(name)}
    wanted = {name for name in encoder if what == "all" or name.startswith("embeddings.")}
    assert common == wanted
    head, words = model.decoder.cls.predictions.decoder.weight, model.encoder.embeddings.word_embeddings.weight
    assert head is words


@pytest.mark.parametrize("what", ["embeddings", "all"])
def test_a_shared_gradient_is_the_sum_over_its_uses(
    what: str, new_model: Callable[..., Any], eight: MicroBatch
) -> None:
    """Both halves start from one checkpoint, so the two models compute the same."""
    apart, together = new_model(seed=1, dropout=0.0).double(), new_model(seed=1, dropout=0.0).double()
    share(together, Share(what))
    losses = [loss_sum(model, eight) for model in (apart, together)]
    assert losses[0].item() == losses[1].item()
    for loss in losses:
        loss.backward()
    decoder = dict(base_model(apart.decoder).named_parameters())
    for name, p in apart.encoder.named_parameters():
        is_shared = what == "all" or name.startswith("embeddings.")
        expected = p.grad + decoder[name].grad if is_shared else p.grad
        torch.testing.assert_close(together.encoder.get_parameter(name).grad, expected, rtol=1e-10, atol=1e-12)


def test_the_state_to_save_has_no_memory_in_common(new_model: Callable[..., Any]) -> None:
    model = new_model(share="all")
    state = separate_state(model)
    assert state.keys() == model.state_dict().keys()
    assert len({value.untyped_storage().data_ptr() for value in state.values()}) == len(state)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "what", "message"),
    [
        ({"num_hidden_layers": 3}, "all", r"expected none, got 'all'; only one half has encoder.layer.2.attention"),
        ({"num_hidden_layers": 1}, "all", r"expected none, got 'all'; only one half has encoder.layer.1.attention"),
        ({"intermediate_size": 48}, "all", r"0.intermediate.dense.weight is \(64, 32\) in the encoder and \(48, 32\)"),
        ({"hidden_size": 64}, "embeddings", r"got 'embeddings'; embeddings.word_embeddings.weight is \(32, 32\)"),
    ],
)  # fmt: skip
def test_halves_of_different_shape_cannot_share(
    changes: dict[str, int], what: str, message: str, new_bert: Callable[..., Path], tiny_source: Any
) -> None:
    other = find("model.decoder", str(new_bert("other", 2, **changes)), None)
    with pytest.raises(ModelError, match=f"model.share: .*{message}"):
        build(tiny_source, other, Share(what), Init.both, seed=0)


def test_halves_of_different_vocabularies_cannot_share(tiny_bert: Path, tiny_source: Any) -> None:
    """The rows of equal matrices would be other words."""
    other = find("model.decoder", str(tiny_bert), None)
    other.tokenizer.add_tokens(["unheard"])
    for what in (Share.embeddings, Share.all):
        with pytest.raises(ModelError, match=rf"model.share: expected none, got '{what.value}'; .* different vocabul"):
            build(tiny_source, other, what, Init.both, seed=0)
    assert build(tiny_source, other, Share.none, Init.both, seed=0).shared == 0


def test_halves_of_different_depth_can_share_embeddings(new_bert: Callable[..., Path], tiny_source: Any) -> None:
    deeper = find("model.decoder", str(new_bert("deeper", 2, num_hidden_layers=3)), None)
    assert build(tiny_source, deeper, Share.embeddings, Init.both, seed=0).shared == 3_200
