"""Every parameter is accounted for, and the counts are those of the architecture, worked out by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import EncoderDecoderModel

from encdec_train.config import Init, Parts, Share
from encdec_train.decoding.search import SearchSettings
from encdec_train.errors import ModelError
from encdec_train.modeling.checkpoints import find, find_pair
from encdec_train.modeling.warm_start import Changes, _check_attention, build, describe, warm_start

# hidden 32, feed-forward 64, 2 layers, vocabulary 32, 64 positions, 2 token types
EMBEDDINGS = (32 + 64 + 2) * 32 + 2 * 32
LAYER = 4 * (32 * 32 + 32) + 64 + (32 * 64 + 64) + (64 * 32 + 32) + 64
ENCODER = EMBEDDINGS + 2 * LAYER
CROSS_ATTENTION = 2 * (4 * (32 * 32 + 32) + 64)
HEAD = (32 * 32 + 32) + 64 + 32  # its matrix is the word embedding


@pytest.fixture
def start(tiny_source: Any, one_thread: None) -> Callable[..., Any]:
    """Build from the tiny BERT on both sides."""

    def make(share: str = "none", init: str = "both", seed: int = 0, **options: Any) -> Any:
        return build(tiny_source, tiny_source, Share(share), Init(init), seed=seed, **options)

    return make


def test_every_parameter_is_counted(start: Callable[..., Any], tiny_bert: Path) -> None:
    started = start()
    encoder, decoder = started.halves
    assert (encoder.name, encoder.checkpoint, encoder.loaded, encoder.fresh) == ("encoder", str(tiny_bert), ENCODER, 0)
    assert (decoder.name, decoder.loaded, decoder.fresh) == ("decoder", ENCODER + HEAD, CROSS_ATTENTION)
    assert started.shared == 0
    assert started.total == 2 * ENCODER + HEAD + CROSS_ATTENTION == 50_304
    assert len(decoder.fresh_tensors) == 2 * 10  # query, key, value, output: weight and bias; layer norm: both
    assert all("crossattention" in name for name in decoder.fresh_tensors)


def test_what_is_loaded_is_what_the_file_holds(start: Callable[..., Any], tiny_bert: Path) -> None:
    file = load_file(tiny_bert / "model.safetensors")
    model = start().model
    for name, parameter in model.encoder.named_parameters():
        assert torch.equal(parameter, file[f"bert.{name}"])
    for name, parameter in model.decoder.named_parameters():
        if "crossattention" not in name:
            assert torch.equal(parameter, file[name])


def test_the_printed_list(start: Callable[..., Any], tiny_bert: Path) -> None:
    header, rows = describe(start(share="embeddings"))
    assert header == ["half", "checkpoint", "loaded", "copied", "fresh", "fresh tensors"]
    assert rows == [
        ["encoder", f"…/{tiny_bert.parent.name}/{tiny_bert.name}", "20,288", "0", "0", "none"],
        ["decoder", f"…/{tiny_bert.parent.name}/{tiny_bert.name}", "21,440", "0", "8,576", "20 cross-attention"],
        ["shared", "", "3,200", "", "", ""],
        ["distinct", "", "47,104", "", "", ""],
    ]


def test_fresh_tensors_are_counted_by_part(start: Callable[..., Any]) -> None:
    _, rows = describe(start(init="none"))
    assert rows[0][1:] == ["random", "0", "0", "20,288", "32 layers, 5 embeddings"]
    assert rows[1][5] == "32 layers, 20 cross-attention, 5 embeddings, 5 LM head"


@pytest.mark.parametrize("init", ["both", "encoder", "decoder", "none"])
def test_init_chooses_the_halves_that_start_from_their_checkpoint(
    init: str, start: Callable[..., Any], tiny_bert: Path
) -> None:
    started = start(init=init)
    word = load_file(tiny_bert / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    encoder = torch.equal(started.model.encoder.embeddings.word_embeddings.weight, word)
    decoder = torch.equal(started.model.decoder.bert.embeddings.word_embeddings.weight, word)
    assert (encoder, decoder) == (init in {"both", "encoder"}, init in {"both", "decoder"})
    assert (started.halves[0].loaded > 0, started.halves[1].loaded > 0) == (encoder, decoder)
    assert sum(half.loaded + half.fresh for half in started.halves) == started.total == 50_304


def test_fresh_weights_have_the_spread_of_the_config(start: Callable[..., Any]) -> None:
    cross = [p for name, p in start().model.named_parameters() if "crossattention.self" in name and p.ndim == 2]
    values = torch.cat([p.flatten() for p in cross])
    assert values.std().item() == pytest.approx(0.02, rel=0.1)  # BERT's initializer_range
    assert abs(values.mean().item()) < 0.001


def test_the_seed_decides_the_fresh_weights_and_nothing_else(start: Callable[..., Any]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (dict(start(seed=seed).model.named_parameters()) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)  # the caller's random state is as it was
    assert all(torch.equal(first[name], again[name]) for name in first)
    differing = {name for name in first if not torch.equal(first[name], other[name])}
    assert differing
    assert all("crossattention" in name for name in differing)


def test_dropout_is_the_checkpoints_or_what_is_asked_for(start: Callable[..., Any]) -> None:
    def rates(model: torch.nn.Module) -> set[float]:
        return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}

    assert rates(start().model) == {0.1}
    changed = start(changes=Changes((0.3, 0.25))).model
    assert rates(changed) == {0.3, 0.25}
    assert (changed.config.encoder.hidden_dropout_prob, changed.config.decoder.attention_probs_dropout_prob) == (
        0.3,
        0.25,
    )
    assert rates(start(changes=Changes((0.0, None))).model) == {0.0, 0.1}


@pytest.mark.parametrize("init", ["both", "none"])
def test_a_half_precision_checkpoint_becomes_float32(
    init: str, new_bert: Callable[..., Path], edit_json: Callable[..., None]
) -> None:
    folder = new_bert("half", 1)
    file = folder / "model.safetensors"
    save_file({name: value.half() for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    edit_json(folder / "config.json", dtype="float16")
    source = find("model.encoder", str(folder), None)
    model = build(source, source, Share.none, Init(init), seed=0).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_halves_of_different_width_get_a_fresh_projection(new_bert: Callable[..., Path], tiny_source: Any) -> None:
    wide = find("model.encoder", str(new_bert("wide", 2, hidden_size=64)), None)
    started = build(wide, tiny_source, Share.none, Init.both, seed=0)
    assert started.halves[1].fresh == CROSS_ATTENTION + 64 * 32 + 32
    assert started.halves[1].fresh_tensors[-2:] == ["enc_to_dec_proj.weight", "enc_to_dec_proj.bias"]
    assert sum(half.loaded + half.fresh for half in started.halves) == started.total


@pytest.mark.parametrize("parts", [Parts.all, Parts.embeddings])
def test_a_projection_comes_back_from_an_export(
    parts: Parts, new_bert: Callable[..., Path], tiny_source: Any, exported: Callable[..., Path], one_thread: None
) -> None:
    """As the rest of the pair does: the same weights, all of them, and none is said to be fresh."""
    wide = find("model.encoder", str(new_bert("wide", 2, hidden_size=64)), None)
    model = build(wide, tiny_source, Share.none, Init.both, seed=0).model
    folder = str(exported(model, SearchSettings(1, 1.0, 8, 0, 1000)))
    pair = find_pair(((folder, None), (folder, None)), Share.none, Init.both)
    again = build(*pair, Share.none, Init.both, seed=9, changes=Changes(parts=parts))
    same = {name for name, p in again.model.named_parameters() if p.equal(model.get_parameter(name))}
    names = {"enc_to_dec_proj.weight", "enc_to_dec_proj.bias"}
    fresh = {*again.halves[1].fresh_tensors}
    if parts is Parts.embeddings:
        assert names <= fresh
        assert "enc_to_dec_proj.weight" not in same
    else:
        assert same == dict(model.named_parameters()).keys() == {*again.warm}
        assert (fresh, [half.fresh for half in again.halves]) == (set(), [0, 0])
    other = find("model.decoder", str(tiny_source.name), None)
    assert names <= {*build(pair[0], other, Share.none, Init.both, seed=9).halves[1].fresh_tensors}


def test_the_short_form_gives_a_plain_model(tiny_bert: Path, new_bert: Callable[..., Path]) -> None:
    model = warm_start(str(tiny_bert), share="all", seed=3)
    assert type(model) is EncoderDecoderModel
    assert sum(p.numel() for p in model.parameters()) == ENCODER + HEAD + CROSS_ATTENTION
    other = new_bert("other", 9)
    word = load_file(other / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(warm_start(str(tiny_bert), str(other)).decoder.bert.embeddings.word_embeddings.weight, word)


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"garbage" * 20)


def of_something_else(folder: Path) -> None:
    save_file({"conv.weight": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_off, r"model.encoder: expected a checkpoint whose weights load, got .*; .*incomplete"),
        (garbage, r"model.encoder: expected a checkpoint whose weights load, got .*; .*header"),
        (of_something_else, r"model.encoder: expected a checkpoint of this architecture, got .*; none of its tensors"),
    ],
)
def test_weights_that_do_not_load_are_refused(
    spoil: Callable[[Path], None], message: str, new_bert: Callable[..., Path], tiny_source: Any
) -> None:
    folder = new_bert("spoilt", 1)
    spoil(folder)
    source = find("model.encoder", str(folder), None)
    with pytest.raises(ModelError, match=message):
        build(source, tiny_source, Share.none, Init.both, seed=0)
    build(source, tiny_source, Share.none, Init.decoder, seed=0)  # not read, not missed


def test_weights_in_other_shapes_than_the_config_says_are_refused(
    new_bert: Callable[..., Path], edit_json: Callable[..., None], tiny_source: Any
) -> None:
    folder = new_bert("resized", 1)
    edit_json(folder / "config.json", intermediate_size=48)
    source = find("model.decoder", str(folder), None)
    message = (
        r"model.decoder: expected weights in the shapes of config.json.*differ, such as bert.encoder.layer.0.inter"
    )
    with pytest.raises(ModelError, match=message):
        build(tiny_source, source, Share.none, Init.both, seed=0)


def test_another_attention_than_asked_for_is_refused(new_model: Callable[..., Any]) -> None:
    model = new_model()
    model.encoder.set_attn_implementation("eager")
    _check_attention(model)  # the library writes to a config that the layers do not read
    model.encoder.encoder.layer[1].attention.self.config._attn_implementation = "eager"
    with pytest.raises(ModelError, match=r"model.encoder: expected sdpa attention, got 'eager'"):
        _check_attention(model)
