"""What transformers gets wrong about encoder-decoder models, row by row, and that our way does not.

Each test is named after its row of `known_defects.md`. Where it is cheap the library's own behaviour is asserted first:
when a new version behaves, the test says so, and our way round it can go.
"""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import EncoderDecoderCache, EncoderDecoderModel

from encdec_train.batch import MicroBatch
from encdec_train.config import Init, Overlong, Share
from encdec_train.data.collate import collate
from encdec_train.data.load import Rows
from encdec_train.data.preprocess import Limits, TextCodec, encode_split
from encdec_train.decoding.search import SearchSettings, decode
from encdec_train.errors import ConfigError, DataError
from encdec_train.modeling.checkpoints import find
from encdec_train.modeling.export import load
from encdec_train.modeling.loss import loss_sum
from encdec_train.modeling.warm_start import build, describe

GREEDY = SearchSettings(num_beams=1, length_penalty=1.0, max_new_tokens=8, no_repeat_ngram=0, max_batch_tokens=10_000)


def librarys(checkpoint: Path, **options: Any) -> Any:
    """Warm-start the way the library's documentation does."""
    return EncoderDecoderModel.from_encoder_decoder_pretrained(str(checkpoint), str(checkpoint), **options)


def inputs(micro: MicroBatch) -> dict[str, torch.Tensor]:
    """Name a batch as the library does."""
    labels = torch.full(micro.target_mask_BT.shape, -100)
    labels[micro.target_mask_BT] = micro.labels_N
    return {"input_ids": micro.source_ids_BS, "attention_mask": micro.source_mask_BS.long(), "labels": labels}


def num_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_d01_sharing_makes_fewer_parameters(tiny_bert: Path, new_model: Callable[..., Any]) -> None:
    asked = librarys(tiny_bert, tie_encoder_decoder=True)
    assert num_parameters(asked) >= num_parameters(librarys(tiny_bert))  # accepted, and nothing is shared
    assert num_parameters(new_model(share="all")) == num_parameters(new_model()) - 20_288
    assert num_parameters(new_model(share="embeddings")) == num_parameters(new_model()) - 3_200


def test_d02_a_shared_model_exports_with_equal_logits(
    new_model: Callable[..., Any], exported: Callable[..., Path], eight: MicroBatch, tmp_path: Path
) -> None:
    model = new_model(share="all", seed=1).eval()
    with pytest.raises(RuntimeError, match="shared tensors"):
        model.save_pretrained(tmp_path / "librarys")
    reloaded, _ = load(str(exported(model, GREEDY)))
    decoder_ids = {"decoder_input_ids": eight.decoder_ids_BT}
    batch = {key: value for key, value in inputs(eight).items() if key != "labels"} | decoder_ids
    with torch.no_grad():
        assert torch.equal(reloaded(**batch).logits, model(**batch).logits)
    assert num_parameters(reloaded) == num_parameters(model) + 20_288 + 32 * 32 + 32  # untied, and the pooler


def test_d03_generate_starts_without_being_told(
    tiny_bert: Path, new_model: Callable[..., Any], exported: Callable[..., Path]
) -> None:
    theirs = librarys(tiny_bert)
    theirs.config.decoder_start_token_id, theirs.config.pad_token_id = 2, 0
    ids = torch.tensor([[2, 5, 7, 3]])
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        theirs.generate(ids, max_new_tokens=3)
    ours = new_model()
    reloaded, _ = load(str(exported(ours, GREEDY)))
    for model in (ours.eval(), reloaded):
        for config in (model.config, model.generation_config):
            found = (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id, config.bos_token_id)
            assert found[:3] == (2, 3, 0)
        assert model.generate(ids, max_new_tokens=3)[0, 0] == 2
    assert ours.generation_config.bos_token_id == 2


def test_d04_the_start_token_is_set_after_construction(tiny_bert: Path, new_model: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="start_token_id"):
        librarys(tiny_bert, decoder_start_token_id=2)
    assert new_model().config.decoder_start_token_id == 2


@pytest.mark.parametrize("number", [1, 2, 8])
def test_d05_the_gradient_does_not_depend_on_accumulation(
    number: int,
    new_model: Callable[..., Any],
    pieces: Callable[[int], list[MicroBatch]],
    plain_sum: Callable[..., torch.Tensor],
    eight: MicroBatch,
) -> None:
    model = new_model(seed=1, dropout=0.0).double()
    (plain_sum(model, eight) / 27).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for micro in pieces(number):
        (loss_sum(model, micro) / 27).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-10, atol=1e-12)


def test_d07_train_mode_on(tiny_bert: Path, new_model: Callable[..., Any], eight: MicroBatch) -> None:
    theirs = librarys(tiny_bert)
    assert not theirs.encoder.training
    assert not theirs.decoder.training
    ours = new_model()
    assert all(module.training for module in ours.modules())
    assert loss_sum(ours, eight).item() != loss_sum(ours, eight).item()  # dropout draws anew


@pytest.mark.parametrize("share", ["none", "embeddings", "all"])
def test_d08_every_parameter_gets_a_gradient(
    share: str, tiny_bert: Path, new_model: Callable[..., Any], eight: MicroBatch
) -> None:
    theirs = librarys(tiny_bert)
    theirs.config.decoder_start_token_id, theirs.config.pad_token_id = 2, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # D12
        theirs(**inputs(eight)).loss.backward()
    idle = [name for name, p in theirs.named_parameters() if p.grad is None]
    assert idle == ["encoder.pooler.dense.weight", "encoder.pooler.dense.bias"]
    ours = new_model(share)
    loss_sum(ours, eight).backward()
    assert [name for name, p in ours.named_parameters() if p.grad is None] == []


def test_d08_the_export_reloads_without_a_report(
    new_model: Callable[..., Any], exported: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = new_model()
    model.save_pretrained(tmp_path / "librarys")
    folder = exported(model, GREEDY)
    transformers.utils.logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING, "transformers"):
            info = EncoderDecoderModel.from_pretrained(tmp_path / "librarys", output_loading_info=True)[1]
            assert sorted(info["missing_keys"]) == ["encoder.pooler.dense.bias", "encoder.pooler.dense.weight"]
            assert "MISSING" in caplog.text
            caplog.clear()
            info = EncoderDecoderModel.from_pretrained(folder, output_loading_info=True)[1]
            assert not any(info.values())
            assert caplog.text == ""
    finally:
        transformers.utils.logging.disable_propagation()


def test_d09_type_and_attention_are_what_was_asked_for(tiny_bert: Path, new_model: Callable[..., Any]) -> None:
    theirs = librarys(tiny_bert, dtype=torch.bfloat16, attn_implementation="eager")
    assert {p.dtype for p in theirs.parameters()} == {torch.float32}  # swallowed
    assert theirs.decoder.config._attn_implementation == "sdpa"  # swallowed
    ours = new_model()
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert [half.config._attn_implementation for half in (ours.encoder, ours.decoder)] == ["sdpa", "sdpa"]


def test_d10_a_start_token_that_is_the_pad_token_is_not_masked(
    new_model: Callable[..., Any], plain_sum: Callable[..., torch.Tensor], eight: MicroBatch
) -> None:
    model = new_model(seed=1, dropout=0.0).double()
    right = plain_sum(model, eight).item()
    model.config.pad_token_id = model.config.decoder_start_token_id
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = model(**inputs(eight)).loss.item() * 27
    assert abs(theirs - right) > 1e-3  # position 0 is masked, without a warning
    assert loss_sum(model, eight).item() == pytest.approx(right, rel=1e-12)


def test_d10_a_pad_id_inside_a_text_is_a_token() -> None:
    micro = collate([[2, 0, 5, 3], [2, 3]], [[0, 3], [0, 0, 3]], 0, (0, 0))
    assert micro.source_mask_BS.tolist() == [[True] * 4, [True, True, False, False]]
    assert micro.labels_N.tolist() == [0, 3, 0, 0, 3]


def test_d12_our_forward_gives_no_future_warning(new_model: Callable[..., Any], eight: MicroBatch) -> None:
    model = new_model()
    with pytest.warns(FutureWarning, match="4.12.0"):
        model(**inputs(eight))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_sum(model, eight)


def test_d13_the_start_token_comes_once(tiny_source: Any, new_model: Callable[..., Any]) -> None:
    tokenizer = tiny_source.tokenizer
    labels = tokenizer("the cat", return_tensors="pt").input_ids
    theirs = new_model().prepare_decoder_input_ids_from_labels(labels)
    assert (theirs.tolist(), labels.tolist()) == ([[2, 2, 5, 7]], [[2, 5, 7, 3]])  # learns to say [CLS] first
    codec = TextCodec(tokenizer, tokenizer, decoder_start_id=2, eos_id=3, pad_id=0, source_pad_id=0)
    micro = collate(codec.encode_sources(["the cat"]), codec.encode_targets(["the cat"]), 2, (0, 0))
    assert micro.decoder_ids_BT.tolist() == [[2, 5, 7]]
    assert micro.labels_N.tolist() == [5, 7, 3]


def test_d14_what_passes_the_positions_is_refused_by_name(new_model: Callable[..., Any]) -> None:
    model = new_model().eval()
    long = [2, *[5] * 63, 3]
    with pytest.raises((RuntimeError, IndexError), match="size|index"):
        model.generate(torch.tensor([long]), max_new_tokens=2)
    with pytest.raises(
        ConfigError, match=r"task.max_source_tokens: expected at most 64, the model's positions, got 65"
    ):
        decode(model, [[2, 5, 3], long], GREEDY)
    greedy = SearchSettings(1, 1.0, max_new_tokens=65, no_repeat_ngram=0, max_batch_tokens=100)
    with pytest.raises(
        ConfigError, match=r"decoding.max_new_tokens: expected at most 64, the model's positions, got 65"
    ):
        decode(model, [[2, 5, 3]], greedy)


def test_d14_an_overlong_pair_is_refused_by_id_or_counted(tiny_source: Any) -> None:
    tokenizer = tiny_source.tokenizer
    codec = TextCodec(tokenizer, tokenizer, decoder_start_id=2, eos_id=3, pad_id=0, source_pad_id=0)
    rows = Rows(["short", "long"], ["the cat", "the " * 9], ["cat", "cat"], [["cat"], ["cat"]])
    with pytest.raises(DataError, match=r"task.max_source_tokens: expected at most 8 tokens, got 11.*example 'long'"):
        encode_split(rows, codec, Limits(8, 8, Overlong.refuse), name="train", cache_dir=None, cache_key=None)
    split = encode_split(rows, codec, Limits(8, 8, Overlong.truncate), name="train", cache_dir=None, cache_key=None)
    assert (split.num_truncated_sources, split.source_lengths.tolist()) == (1, [4, 8])


def test_d15_lengths_are_always_explicit(talkative: Any, exported: Callable[..., Path]) -> None:
    source = [2, 5, 7, 10, 13, 5, 16, 3]
    talkative.decoder.cls.predictions.bias.data[3] = -100  # never ends on its own
    with pytest.warns(UserWarning, match="max_length"):
        theirs = talkative.generate(torch.tensor([source]))
    assert theirs.shape[1] == 1 + 20
    settings = SearchSettings(1, 1.0, max_new_tokens=33, no_repeat_ngram=0, max_batch_tokens=1000)
    assert settings.generation_config(talkative).max_new_tokens == 33
    assert len(decode(talkative, [source], settings)[0]) == 33
    folder = exported(talkative, settings)
    assert json.loads((folder / "generation_config.json").read_text())["max_new_tokens"] == 33
    reloaded = EncoderDecoderModel.from_pretrained(folder)
    assert reloaded.generate(torch.tensor([source])).shape[1] == 1 + 33


def without_head(folder: Path) -> Path:
    """Save only the base model, as sentence encoders do."""
    model = transformers.BertModel.from_pretrained(folder)
    model.save_pretrained(folder)
    return folder


HEAD = [
    "cls.predictions.bias",
    *(
        f"cls.predictions.transform.{name}"
        for name in ("LayerNorm.bias", "LayerNorm.weight", "dense.bias", "dense.weight")
    ),
]


def test_d16_a_head_that_is_not_in_the_checkpoint_is_listed_as_fresh(new_bert: Callable[..., Path]) -> None:
    source = find("model.decoder", str(without_head(new_bert("headless", 1))), None)
    started = build(source, source, Share.none, Init.both, seed=0)
    decoder = started.halves[1]
    assert [name for name in decoder.fresh_tensors if "crossattention" not in name] == HEAD
    assert (decoder.loaded, decoder.fresh) == (20_288, 8_576 + 1_152)
    assert describe(started)[1][1][5] == "20 cross-attention, 5 LM head"


def test_d16_of_a_real_sentence_encoder(minilm: Path) -> None:
    source = find("model.decoder", str(minilm), None)
    started = build(source, source, Share.none, Init.both, seed=0)
    encoder, decoder = started.halves
    assert encoder.fresh == 0
    assert [name for name in decoder.fresh_tensors if "crossattention" not in name] == HEAD
    # 6 layers of cross-attention; the head: dense 384 x 384, layer norm, a bias for each of 30,522 words
    assert decoder.fresh == 6 * (4 * (384 * 384 + 384) + 2 * 384) + (384 * 384 + 384) + 2 * 384 + 30_522


def test_d18_training_builds_no_cache(
    new_model: Callable[..., Any], eight: MicroBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []
    make = EncoderDecoderCache.__init__

    def counting(self: Any, *args: Any, **options: Any) -> None:
        built.append(1)
        make(self, *args, **options)

    monkeypatch.setattr(EncoderDecoderCache, "__init__", counting)
    model = new_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model(**inputs(eight))
    assert built == [1]
    loss_sum(model, eight).backward()
    assert built == [1]
