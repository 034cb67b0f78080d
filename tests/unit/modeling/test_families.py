"""Every family, on either side: built, trained a step, exported, and read back by the library alone."""

import copy
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from encdec_train.batch import MicroBatch
from encdec_train.compose import compose
from encdec_train.config import Group, Init, Share
from encdec_train.data.collate import collate
from encdec_train.data.preprocess import TextCodec
from encdec_train.data.sources import splits_of
from encdec_train.decoding.search import SearchSettings, decode
from encdec_train.errors import ConfigError, ModelError
from encdec_train.modeling import families
from encdec_train.modeling.checkpoints import find, find_pair, special_ids
from encdec_train.modeling.export import export, load
from encdec_train.modeling.loss import loss_sum
from encdec_train.modeling.warm_start import Changes, WarmStart, build
from encdec_train.serving.generate import Generator
from encdec_train.session import open_export, open_session, search_of, warm_start

FAMILIES = ["bert", "roberta", "xlm-roberta", "electra", "camembert", "bert-generation", "gpt2", "xglm"]
SOURCES = ["the old cat sat on a mat", "a dog ran", "the bird", "dog and cat and bird flew under the tree"]
TARGETS = ["a mat", "dog ran and ran", "the", "the house and the old tree"]
PAIRS = [
    *((family, family, {}) for family in FAMILIES),
    ("bert", "gpt2", {}), ("roberta", "gpt2", {}), ("gpt2", "bert", {}), ("gpt2", "roberta", {}),
    ("roberta", "bert", {"hidden_size": 64}), ("bert", "xglm", {"hidden_size": 16}),
]  # fmt: skip
Started = tuple[WarmStart, TextCodec, MicroBatch]


def start(encoder: Path, decoder: Path, share: Any = Share.none, init: Init = Init.both) -> Started:
    left, right = find_pair(((str(encoder), None), (str(decoder), None)), share, init)
    ids = special_ids(right)
    codec = TextCodec(left.tokenizer, right.tokenizer, ids.start, ids.eos, ids.pad, left.tokenizer.pad_token_id)
    started = build(left, right, share, init, seed=3, changes=Changes((0.0, 0.0)))
    pads = (codec.source_pad_id, codec.pad_id)
    batch = collate(codec.encode_sources(SOURCES), codec.encode_targets(TARGETS), codec.decoder_start_id, pads)
    return started, codec, batch


@pytest.mark.parametrize(("encoder", "decoder", "changes"), PAIRS, ids=lambda value: str(value or ""))
def test_a_pair_trains_and_is_what_the_library_reads_back(
    encoder: str, decoder: str, changes: dict[str, int], zoo: Callable[..., Path], tmp_path: Path, plain_sum: Any
) -> None:
    started, codec, batch = start(zoo(encoder, **changes), zoo(decoder))
    model: Any = started.model
    with torch.no_grad():
        for name, p in model.named_parameters():
            if (families.is_cross_attention(name) or "enc_to_dec" in name) and p.ndim > 1:
                p.mul_(20.0)  # so that what is said depends on the source
    wide = "xglm" not in {encoder, decoder}  # whose mask the library writes in float32
    model.to(torch.float64 if wide else torch.float32)
    oracle = copy.deepcopy(model)
    for module in oracle.modules():  # `set_attn_implementation` does not reach the layers of an encoder inside a pair
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"
    torch.testing.assert_close(loss_sum(model, batch), plain_sum(oracle, batch), rtol=1e-9 if wide else 1e-5, atol=1e-9)
    model.float()

    assert getattr(model.encoder(batch.source_ids_BS), "past_key_values", None) is None  # GPT-2 would build one (D18)
    loss_sum(model, batch).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []  # else DDP waits for them
    torch.optim.SGD(model.parameters(), lr=1e-3).step()

    settings = SearchSettings(1, 1.0, max_new_tokens=8, no_repeat_ngram=0, max_batch_tokens=10_000)
    tokenizers = (codec.source_tokenizer, codec.target_tokenizer)
    export(model, tmp_path / "export", tokenizers, settings.generation_config(model), (20, 8), "# A card\n")
    theirs, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert (info["missing_keys"], info["unexpected_keys"]) == (set(), set())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    inputs = tokenizer(SOURCES, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        logits = [
            each(**inputs, decoder_input_ids=batch.decoder_ids_BT).logits for each in (model.eval(), theirs.eval())
        ]
    assert torch.equal(*logits)
    found = theirs.generate(**inputs)[:, 1:].tolist()
    ours = decode(model, codec.encode_sources(SOURCES), settings)
    assert [row[: len(mine)] for row, mine in zip(found, ours, strict=True)] == ours
    assert all(set(row[len(mine) :]) <= {codec.eos_id, codec.pad_id} for row, mine in zip(found, ours, strict=True))
    assert len({tuple(row) for row in ours}) > 1
    assert (tmp_path / "export" / "decoder_tokenizer").is_dir() is (
        encoder != decoder and not {encoder, decoder} <= SAME
    )
    again, (source, target) = load(str(tmp_path / "export"))
    assert (source.pad_token_id, target.pad_token_id) == (codec.source_pad_id, codec.pad_id)
    assert decode(again, codec.encode_sources(SOURCES), settings) == ours


SAME = {"roberta", "xlm-roberta", "camembert", "xglm"}


def test_d10_a_start_token_that_is_pad_and_end_is_seen(zoo: Callable[..., Path]) -> None:
    """GPT-2 has one special token for all three; its first position counts like any other."""
    _, codec, batch = start(zoo("bert"), zoo("gpt2"))
    end = 25  # after the words, and outside of the encoder's vocabulary of 19
    assert (codec.decoder_start_id, codec.eos_id, codec.pad_id) == (end, end, end)
    assert batch.decoder_ids_BT[:, 0].tolist() == [end] * 4
    assert batch.target_mask_BT.sum(1).tolist() == [3, 5, 2, 7]


@pytest.mark.parametrize(
    ("family", "positions"), [("bert", 24), ("roberta", 22), ("camembert", 22), ("gpt2", 24), ("bert-generation", 24)]
)
def test_d14_positions_are_those_that_can_be_used(family: str, positions: int, zoo: Callable[..., Path]) -> None:
    """RoBERTa's first position is the one after its pad id: 514 rows are 512 positions."""
    started, codec, _ = start(zoo(family), zoo(family))
    assert find("model.encoder", str(zoo(family)), None).max_positions == positions
    settings = SearchSettings(1, 1.0, max_new_tokens=4, no_repeat_ngram=0, max_batch_tokens=10_000)
    word = codec.target_tokenizer.convert_tokens_to_ids("cat")
    assert len(decode(started.model, [[word] * positions], settings)) == 1
    with pytest.raises(
        ConfigError, match=f"task.max_source_tokens: expected at most {positions}, .* got {positions + 1}"
    ):
        decode(started.model, [[word] * (positions + 1)], settings)
    with pytest.raises((IndexError, RuntimeError), match="out of|size"):
        families.base_model(started.model.encoder)(input_ids=torch.full((1, positions + 1), word))


def test_the_families_that_count_positions_from_the_pad_id_are_the_librarys() -> None:
    """Those whose code has the function for it, but TrOCR, whose table has rows for its offset."""
    models = Path(transformers.__file__).parent / "models"
    kinds = {**transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES}
    names = transformers.models.auto.modeling_auto
    halves = {*names.MODEL_FOR_MASKED_LM_MAPPING_NAMES, *names.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    found = set()
    for kind in kinds.keys() & halves:
        folder = transformers.models.auto.configuration_auto.model_type_to_module_name(kind)
        text = "".join(path.read_text() for path in (models / folder).glob("modeling_*.py"))
        if re.search(r"def create_position_ids_from_input_ids", text):
            found.add(kind)
    assert found - {"trocr"} == families.COUNTED_FROM_PAD


def test_the_list_of_decoders_is_the_librarys(zoo: Callable[..., Path], tmp_path: Path) -> None:
    kinds = families.decoder_types()
    assert {*FAMILIES} <= {*kinds}
    assert len(kinds) == 33  # of transformers 5.23
    assert "encoder_hidden_states" in inspect.signature(transformers.GPT2LMHeadModel.forward).parameters
    config = transformers.LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=18,
                                      intermediate_size=16)  # fmt: skip
    folder = zoo("gpt2", seed=9)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    with pytest.raises(
        ModelError, match=r"model.decoder: .* attend to an encoder: bart, bert, .* xmod, got 'llama'; .* no cross-"
    ):
        find("model.decoder", str(folder), None)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_set_in_every_family(family: str, zoo: Callable[..., Path]) -> None:
    half = find("model.encoder", str(zoo(family)), None)
    rates = {
        module.p
        for module in build(half, half, Share.none, Init.none, seed=0, changes=Changes((0.25, 0.25))).model.modules()
        if isinstance(module, torch.nn.Dropout)
    }
    assert rates <= {0.25}
    config = build(half, half, Share.none, Init.none, seed=0, changes=Changes((0.3, 0.2))).model.config.encoder
    assert families.set_dropout(config, families.DROPOUT, None)
    assert {getattr(config, name) for name in families.DROPOUT if hasattr(config, name)} == {0.3}
    assert {getattr(config, name) for name in families.ATTENTION_DROPOUT if hasattr(config, name)} == {0.2}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_its_group(family: str, zoo: Callable[..., Path]) -> None:
    """Two self-attention matrices or more a layer, two feed-forward ones, and no group is left empty."""
    started, *_ = start(zoo(family), zoo(family))
    named = dict(families.base_model(started.model.decoder).named_parameters())
    cross = {name for name in named if families.group_of(name) is None}
    assert cross == named.keys() - dict(started.model.encoder.named_parameters()).keys()
    matrices = [name for name, p in named.items() if p.ndim == 2 and families.group_of(name) is Group.feed_forward]
    assert len(matrices) == 2 * 2
    attention = [name for name, p in named.items() if p.ndim == 2 and families.group_of(name) is Group.self_attention]
    assert len(attention) == (2 * 2 if family == "gpt2" else 4 * 2)
    norms = [name for name in named if families.group_of(name) is Group.layer_norm]
    assert norms
    assert all(named[name].ndim == 1 for name in norms)


def test_a_pair_on_the_hub_has_two_tokenizers_too(
    zoo: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network: a cache in the Hub's layout."""
    started, codec, _ = start(zoo("bert"), zoo("gpt2"))
    snapshot = tmp_path / "models--somebody--pair" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "models--somebody--pair" / "refs").mkdir()
    (tmp_path / "models--somebody--pair" / "refs" / "main").write_text("0" * 40)
    settings = SearchSettings(1, 1.0, 8, 0, 10_000).generation_config(started.model)
    export(started.model, snapshot, (codec.source_tokenizer, codec.target_tokenizer), settings, (20, 8), "")
    for module in (transformers.utils.hub.constants, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path))
    _, (source, target) = load("somebody/pair")
    assert (len(source), len(target)) == (19, 26)
    decoder = find("model.decoder", "somebody/pair", None)
    assert (decoder.part, len(decoder.tokenizer), decoder.config.model_type) == ("decoder", 26, "gpt2")
    assert len(find("model.encoder", "somebody/pair", None).tokenizer) == 19


def test_two_tokenizers_go_through_data_export_and_generate(zoo: Callable[..., Path], tmp_path: Path) -> None:
    """BERT's pieces in, GPT-2's out: the codec of a run, and the one that its export is opened with, say the same."""
    pairs = tmp_path / "train.jsonl"
    pairs.write_text("".join(f'{{"source": "{a}", "target": "{b}"}}\n' for a, b in zip(SOURCES, TARGETS, strict=True)))
    config = compose("train", [
        "model=bert2gpt", f"model.encoder={zoo('bert')}", f"model.decoder={zoo('gpt2')}", "task=files",
        f"task.train_file={pairs}", f"run.cache_dir={tmp_path}", "trainer.max_steps=1", "task.max_source_tokens=20",
        "task.max_target_tokens=8",
    ])  # fmt: skip
    sources = splits_of(config.task, tmp_path)
    session = open_session(config, {name: split.load() for name, split in sources.items()}, sources)
    split = session.splits["train"]
    assert split.source_ids[2].tolist() == [2, 4, 8, 3]  # [CLS] the bird [SEP]
    assert split.target_ids[1].tolist() == [3, 6, 13, 6, 25]  # dog ran and ran <|endoftext|>
    model = warm_start(config, session, Init.both).model
    tokenizers = (session.codec.source_tokenizer, session.codec.target_tokenizer)
    export(model, tmp_path / "export", tokenizers, search_of(config).generation_config(model), (20, 8), "")
    opened = open_export(compose("generate", [f"checkpoint={tmp_path}/export"]))
    assert opened.codec.encode_targets(["dog ran"]) == [[3, 6, 25]]
    assert opened.codec.encode_sources(["the bird"]) == [[2, 4, 8, 3]]
    ours = decode(model, [split.source_ids[i] for i in range(4)], search_of(config))
    theirs = Generator(opened.engine, opened.codec, opened.search, opened.max_source_tokens)(SOURCES)
    assert theirs == [session.codec.decode(ids) for ids in ours]
    assert all(set(text.split()) <= set(session.codec.target_tokenizer.get_vocab()) for text in theirs)
