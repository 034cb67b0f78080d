"""Cross-attention that starts as a copy of self-attention: every family, every type of the library."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from encdec_train.api import warm_start
from encdec_train.batch import MicroBatch
from encdec_train.compose import compose
from encdec_train.config import CrossInit, Init, Share
from encdec_train.decoding.search import SearchSettings
from encdec_train.errors import ConfigError, ModelError
from encdec_train.modeling import families
from encdec_train.modeling.checkpoints import find_pair
from encdec_train.modeling.cross_attention import copy_self_attention
from encdec_train.modeling.export import export
from encdec_train.modeling.warm_start import Changes, WarmStart, build, describe
from encdec_train.session import Session
from encdec_train.session import warm_start as warm_start_session
from encdec_train.training.optim import build_optimizer, fresh_names

COPIED = Changes(cross_attention=CrossInit.self_attention)
BERT_TWINS = {
    f"crossattention.{part}": f"attention.{part}"
    for part in ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
}
XGLM_TWINS = {
    "encoder_attn.k_proj": "self_attn.k_proj", "encoder_attn.v_proj": "self_attn.v_proj",
    "encoder_attn.q_proj": "self_attn.q_proj", "encoder_attn.out_proj": "self_attn.out_proj",
    "encoder_attn_layer_norm": "self_attn_layer_norm",
}  # fmt: skip
TWINS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "camembert", "bert-generation"), BERT_TWINS),
    "xglm": XGLM_TWINS,
}


@pytest.fixture
def start(zoo: Callable[..., Path]) -> Callable[..., WarmStart]:
    """Build from a family on both sides: `start(family, share, init, changes)`."""

    def make(family: str, share: Any = Share.none, init: Init = Init.both, changes: Changes = COPIED) -> WarmStart:
        pair = find_pair(((str(zoo(family)), None), (str(zoo(family)), None)), share, init)
        return build(*pair, share, init, seed=0, changes=changes)

    return make


def layer_state(model: Any, number: int) -> dict[str, torch.Tensor]:
    return dict(families.layers(model.decoder)[1][number].named_parameters())


@pytest.mark.parametrize("family", TWINS)
def test_each_part_is_its_layers_own(family: str, start: Callable[..., WarmStart]) -> None:
    model = start(family).model
    for number in (0, 1):
        state = layer_state(model, number)
        crossing = {name for name in state if families.is_cross_attention(name)}
        assert crossing == {f"{part}.{kind}" for part in TWINS[family] for kind in ("weight", "bias")}
        for part, twin in TWINS[family].items():
            for kind in ("weight", "bias"):
                assert torch.equal(state[f"{part}.{kind}"], state[f"{twin}.{kind}"])
                assert state[f"{part}.{kind}"] is not state[f"{twin}.{kind}"]  # a copy, which learns on its own


def test_gpt2s_fused_matrix_is_taken_apart(start: Callable[..., WarmStart]) -> None:
    """Query, key and value stand side by side in the columns of `c_attn`; width 32."""
    state = layer_state(start("gpt2").model, 1)
    for kind in ("weight", "bias"):
        fused = state[f"attn.c_attn.{kind}"]
        assert fused.shape[-1] == 96
        assert torch.equal(state[f"crossattention.q_attn.{kind}"], fused[..., :32])
        assert torch.equal(state[f"crossattention.c_attn.{kind}"], fused[..., 32:])
        assert torch.equal(state[f"crossattention.c_proj.{kind}"], state[f"attn.c_proj.{kind}"])
        assert torch.equal(state[f"ln_cross_attn.{kind}"], state[f"ln_1.{kind}"])


@pytest.mark.parametrize("family", [*TWINS, "gpt2"])
def test_a_copy_that_reads_what_self_attention_reads_computes_the_same(
    family: str, start: Callable[..., WarmStart]
) -> None:
    """Asked at the last position, self-attention sees all of its own states, as cross-attention sees the source's."""
    layer: Any = families.layers(start(family, changes=replace(COPIED, dropouts=(0.0, 0.0))).model.decoder)[1][0]
    own, cross = (
        (layer.attn, layer.crossattention)
        if family == "gpt2"
        else (layer.self_attn, layer.encoder_attn)
        if family == "xglm"
        else (layer.attention, layer.crossattention)
    )
    states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    key = "key_value_states" if family == "xglm" else "encoder_hidden_states"
    mask = torch.full((5, 5), float("-inf")).triu(1).expand(2, 1, 5, 5)
    alone = own(states, attention_mask=mask)[0][:, -1]
    torch.testing.assert_close(cross(states, **{key: states})[0][:, -1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_nothing_else_changes(family: str, start: Callable[..., WarmStart]) -> None:
    copied, fresh = (dict(start(family, changes=each).model.named_parameters()) for each in (COPIED, Changes()))
    for name, p in fresh.items():
        if not families.is_cross_attention(name):
            assert torch.equal(copied[name], p)
        elif p.ndim > 1:
            assert not torch.equal(copied[name], p)


def test_the_account_has_a_column_of_its_own(start: Callable[..., WarmStart]) -> None:
    """Two layers of 32: 2 x (4 x (32² + 32) + 2 x 32) copied, which are neither loaded nor fresh."""
    started, plain = start("bert"), start("bert", changes=Changes())
    decoder = started.halves[1]
    assert (decoder.copied, decoder.fresh, decoder.loaded) == (8_576, 0, plain.halves[1].loaded)
    assert plain.halves[1].fresh == 8_576
    assert (len(decoder.copied_tensors), started.halves[0].copied, plain.halves[1].copied) == (20, 0, 0)
    assert started.total == sum(half.loaded + half.copied + half.fresh for half in started.halves)
    assert set(started.warm) == set(plain.warm)  # what is warm is what was loaded to its own place
    header, rows = describe(started)
    assert header[2:] == ["loaded", "copied", "fresh", "fresh tensors"]
    assert rows[1][3:] == ["8,576", "0", "none"]


def test_copies_learn_as_fresh_parameters_do(start: Callable[..., WarmStart]) -> None:
    """Else `freeze_warm_steps` would leave nothing that learns."""
    started = start("bert")
    names = fresh_names(started)
    assert names == fresh_names(start("bert", changes=Changes()))
    assert names == {n for n, _ in started.model.named_parameters() if families.is_cross_attention(n)}
    optim = replace(compose("train", ["optim.fresh_lr_factor=10"]).optim, layer_decay=1.0)
    groups = build_optimizer(started.model.named_parameters(), optim, names).param_groups
    scaled = {id(p) for group in groups if group["scale"] == 10 for p in group["params"]}
    assert scaled == {id(started.model.get_parameter(name)) for name in names}


def test_a_shared_half_copies_too(start: Callable[..., WarmStart]) -> None:
    """bertshare: one self-attention for both halves, and a copy that is the decoder's own."""
    started = start("bert", Share.all)
    state = layer_state(started.model, 0)
    assert (
        state["attention.self.query.weight"]
        is dict(started.model.encoder.named_parameters())["encoder.layer.0.attention.self.query.weight"]
    )
    assert torch.equal(state["crossattention.self.query.weight"], state["attention.self.query.weight"])


def test_the_layer_that_is_kept_is_the_layer_that_is_copied(
    start: Callable[..., WarmStart], zoo: Callable[..., Path]
) -> None:
    model = start("bert", changes=replace(COPIED, layers=(None, [2]))).model
    file = load_file(zoo("bert") / "model.safetensors")
    expected = file["bert.encoder.layer.1.attention.self.key.weight"]
    assert torch.equal(layer_state(model, 0)["crossattention.self.key.weight"], expected)


def test_cross_attention_that_was_trained_stays(
    start: Callable[..., WarmStart], tmp_path: Path, eight: MicroBatch
) -> None:
    """An export holds its own: a run that goes on from it loses nothing."""
    model: Any = start("bert", changes=Changes()).model
    pair = find_pair(((model.encoder.name_or_path, None),) * 2, Share.none, Init.both)
    settings = SearchSettings(1, 1.0, 8, 0, 10_000).generation_config(model)
    export(model, tmp_path / "export", (pair[0].tokenizer,) * 2, settings, (20, 8), "")
    pair = find_pair(((str(tmp_path / "export"), None),) * 2, Share.none, Init.both)
    again = build(*pair, Share.none, Init.both, seed=1, changes=COPIED)
    assert (again.halves[1].copied, again.halves[1].fresh) == (0, 0)
    name = "decoder.bert.encoder.layer.0.crossattention.self.query.weight"
    assert torch.equal(again.model.get_parameter(name), model.get_parameter(name))


def test_halves_of_different_width(zoo: Callable[..., Path]) -> None:
    """The library projects the source to the decoder's width first, so the decoder's own weights fit."""
    pair = find_pair(((str(zoo("roberta", hidden_size=64)), None), (str(zoo("bert")), None)), Share.none, Init.both)
    decoder = build(*pair, Share.none, Init.both, seed=0, changes=COPIED).halves[1]
    assert (decoder.copied, list(decoder.fresh_tensors)) == (8_576, ["enc_to_dec_proj.weight", "enc_to_dec_proj.bias"])


def test_a_random_self_attention_is_not_copied(start: Callable[..., WarmStart]) -> None:
    """The baseline from random weights of a run that copies."""
    started = start("bert", init=Init.none)
    assert started.halves[1].copied == 0
    state = layer_state(started.model, 0)
    assert not torch.equal(state["crossattention.self.query.weight"], state["attention.self.query.weight"])


@pytest.mark.parametrize("override", ["model=bert2rnd", "model=rnd2rnd", "model.init_parts=embeddings"])
def test_nothing_to_copy_is_said_before_anything_is_loaded(override: str) -> None:
    message = "model.init_cross_attention: expected fresh, got 'self_attention'; the decoder's layers start from random"
    with pytest.raises(ConfigError, match=message):
        compose("train", [override, "model.init_cross_attention=self_attention"])


def test_the_papers_variants_start_fresh(zoo: Callable[..., Path]) -> None:
    variants = [path.stem for path in (Path(__file__).parents[3] / "conf" / "model").glob("*.yaml")]
    assert len(variants) >= 12
    shipped = ["task=files", "task.train_file=x", "trainer.max_steps=1"]
    found = {compose("train", [*shipped, f"model={name}"]).model.init_cross_attention for name in variants}
    assert found == {CrossInit.fresh}


def test_the_config_reaches_the_model(zoo: Callable[..., Path]) -> None:
    folder = str(zoo("bert"))
    overrides = ["task=files", "task.train_file=x", "trainer.max_steps=1", f"model.encoder={folder}"]
    config = compose("train", [*overrides, "model.init_cross_attention=self_attention"])
    pair = find_pair(config.model.sources, config.model.share, config.model.init)
    started = warm_start_session(config, Session(pair, None, {}), config.model.init)  # type: ignore[arg-type]
    name = "decoder.bert.encoder.layer.1.crossattention.output.dense.weight"
    own = started.model.get_parameter(name.replace("crossattention", "attention"))
    assert torch.equal(started.model.get_parameter(name), own)
    alone = warm_start(folder, init_cross_attention="self_attention")
    assert torch.equal(alone.get_parameter(name), own)
    assert not torch.equal(warm_start(folder).get_parameter(name), own)


def test_every_decoder_of_the_library_is_copied_whole_or_refused_by_name() -> None:
    """Of 33 types on the meta device; three of them cannot be built from their own config with cross-attention."""
    refused, copied = {}, set()
    for kind in families.decoder_types():
        config = AutoConfig.for_model(kind)
        config.is_decoder = config.add_cross_attention = True
        cls: Any = families.decoder_class(config)
        try:
            with torch.device("meta"):
                decoder = cls._from_config(config)
        except (NotImplementedError, AttributeError):
            continue
        named = dict(decoder.named_parameters())
        crossing = {id(p) for name, p in named.items() if families.is_cross_attention(name)}
        try:
            assert copy_self_attention(decoder, {id(p) for p in named.values()} - crossing) == crossing, kind
            copied.add(kind)
        except ModelError as error:
            refused[kind] = str(error)
    assert len(copied) == 30
    assert refused == {}


def test_what_does_not_fit_is_refused_by_name() -> None:
    """GPTBigCode orders its fused matrix by head, so thirds of it are no query, key or value."""
    config: Any = AutoConfig.for_model("gpt_bigcode", multi_query=False, n_embd=32, n_head=2, n_layer=1, vocab_size=9)
    config.is_decoder = config.add_cross_attention = True
    cls: Any = families.decoder_class(config)
    decoder = cls(config)
    warm = {id(p) for name, p in decoder.named_parameters() if not families.is_cross_attention(name)}
    message = "model.init_cross_attention: expected fresh, got 'self_attention'; gpt_bigcode has no self-attention that"
    with pytest.raises(ModelError, match=message):
        copy_self_attention(decoder, warm)
