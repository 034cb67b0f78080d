"""One causal LM reads `source + eos` and writes `target + eos`; the oracle is the library on each pair alone."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import encdec_train
from encdec_train.batch import MicroBatch
from encdec_train.compose import compose
from encdec_train.config import Init
from encdec_train.data.collate import collate
from encdec_train.data.preprocess import TextCodec
from encdec_train.data.sources import splits_of
from encdec_train.decoding.search import SearchSettings, decode
from encdec_train.doctor import examine
from encdec_train.doctor.patient import Status, admit
from encdec_train.errors import ConfigError, ModelError
from encdec_train.modeling.causal import build, ends_sources, find_alone
from encdec_train.modeling.export import export, load
from encdec_train.modeling.loss import loss_sum
from encdec_train.modeling.warm_start import Changes
from encdec_train.session import checkpoint_fingerprints, open_export, open_session

EOS = 25  # of the tiny GPT-2, its only special token; `word0` … `word9` are 15 … 24
SOURCES = [[0, 2, 5, EOS], [7, EOS], [1, 3, 6, 8, 9, 13, EOS], [4, 4, EOS]]
TARGETS = [[3, EOS], [0, 2, 5, 8, EOS], [EOS], [1, 4, 6, EOS]]
GREEDY = SearchSettings(1, 1.0, 8, 0, 10_000)


@pytest.fixture(params=["gpt2", "llama", "opt"])
def folder(request: pytest.FixtureRequest, zoo: Callable[..., Path], tmp_path: Path) -> Path:
    """A causal LM: with learned positions, rotary ones, or such as are counted from the mask."""
    if request.param == "gpt2":
        return zoo("gpt2")
    place = tmp_path / request.param
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    wide = {"llama": {"intermediate_size": 48}, "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32}}[request.param]
    ids = {"eos_token_id": EOS, "max_position_embeddings": 24}
    config = AutoConfig.for_model(request.param, vocab_size=26, **ids, **shape, **wide)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6.0 if p.ndim > 1 else 1.0)
    model.save_pretrained(place)
    AutoTokenizer.from_pretrained(zoo("gpt2")).save_pretrained(place)
    return place


@pytest.fixture
def gpt2(zoo: Callable[..., Path]) -> Any:
    """The tiny GPT-2, without dropout, in eval mode."""
    return started(zoo("gpt2")).model.eval()


def started(folder: Path, init: Init = Init.decoder, seed: int = 0, **changes: Any) -> Any:
    return build(find_alone(str(folder), None), init, seed=seed, changes=Changes((None, None), **changes))


def micro_of(sources: Sequence[Any], targets: Sequence[Any]) -> MicroBatch:
    return collate(sources, targets, EOS, (EOS, EOS))


def by_hand(model: Any, source: list[int], target: list[int]) -> torch.Tensor:
    """The library's forward on one pair, with nothing to pad; logits of the target's labels picked out one by one."""
    logits = model(input_ids=torch.tensor([source + target])).logits[0]
    places = range(len(source) - 1, len(source) - 1 + len(target))
    return sum((-logits[at].log_softmax(0)[label] for at, label in zip(places, target, strict=True)), start=0)


def test_the_loss_is_that_of_each_pair_alone(folder: Path, one_thread: None) -> None:
    model = started(folder).model.double().eval()
    words = [[token for token in row if token != EOS] + [EOS] for row in SOURCES]
    expected = sum(by_hand(model, *pair) for pair in zip(words, TARGETS, strict=True))
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    for cuts in ([4], [1, 3], [2, 1, 1]):  # micro-batches
        model.zero_grad()
        found, start = torch.zeros((), dtype=torch.float64), 0
        for size in cuts:
            found = found + loss_sum(model, micro_of(words[start : start + size], TARGETS[start : start + size]))
            start += size
        assert found.item() == pytest.approx(expected.item(), rel=1e-12)
        found.backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, wanted[name], rtol=1e-9, atol=1e-11)


def test_an_example_without_a_target_has_no_weight(gpt2: Any) -> None:
    loss = loss_sum(gpt2, micro_of([[EOS]], [[]]))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in gpt2.parameters())


def test_what_is_padding_does_not_matter(gpt2: Any) -> None:
    micro = micro_of(SOURCES, TARGETS)
    other = replace(
        micro,
        source_ids_BS=torch.where(micro.source_mask_BS, micro.source_ids_BS, 11),
        decoder_ids_BT=torch.where(micro.target_mask_BT, micro.decoder_ids_BT, 11),
    )
    assert loss_sum(gpt2, other).item() == loss_sum(gpt2, micro).item()


def test_a_row_is_as_wide_as_the_plan_counts(gpt2: Any) -> None:
    widths: list[int] = []
    gpt2.transformer.wte.register_forward_hook(lambda _, given, __: widths.append(given[0].shape[1]))
    loss_sum(gpt2, micro_of(SOURCES, TARGETS))
    assert widths == [max(map(len, SOURCES)) + max(map(len, TARGETS)) - 1]  # the start token is the source's eos


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("max_batch_tokens", [1, 60, 10_000])
def test_each_source_is_decoded_as_if_alone(num_beams: int, max_batch_tokens: int, folder: Path) -> None:
    model, draw = started(folder).model.train(), torch.Generator().manual_seed(1)
    with torch.no_grad():  # larger weights: what is written does not only repeat itself
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * 0.3 if p.ndim > 1 else p)
    found = decode(model, SOURCES, SearchSettings(num_beams, 1.0, 8, 0, max_batch_tokens))
    assert model.training
    expected = []
    for source in SOURCES:
        said = model.eval().generate(
            torch.tensor([source]), attention_mask=torch.ones(1, len(source), dtype=torch.long), num_beams=num_beams,
            max_new_tokens=8, do_sample=False,
        )  # fmt: skip
        row = said[0, len(source) :].tolist()
        expected.append(row[: row.index(EOS)] if EOS in row else row)
    assert found == expected
    assert len({tuple(row) for row in found}) == len(SOURCES)  # so the order is theirs


def test_prefix_and_output_have_to_fit_together(gpt2: Any) -> None:
    decode(gpt2, [[1] * 16], GREEDY)
    with pytest.raises(
        ConfigError, match=r"^decoding.max_new_tokens: expected at most 7, got 8; the longest source ha"
    ):
        decode(gpt2, [[1] * 17], GREEDY)


def test_the_sources_n_grams_are_not_forbidden(gpt2: Any) -> None:
    with pytest.raises(ConfigError, match=r"^decoding.no_repeat_ngram: expected 0, got 2; without an encoder"):
        decode(gpt2, SOURCES, replace(GREEDY, no_repeat_ngram=2))


def test_the_tokenizer_ends_sources_once(zoo: Callable[..., Path], tmp_path: Path) -> None:
    tokenizer = find_alone(str(zoo("gpt2")), None).tokenizer
    codec = TextCodec(tokenizer, tokenizer, EOS, EOS, EOS, EOS)
    assert codec.encode_sources(["the bird"]) == [[0, 4, EOS]]
    assert codec.encode_targets(["the bird"]) == [[0, 4, EOS]]
    assert codec.cut_source([0, 1, 2, 3, EOS], 3) == [0, 1, EOS]
    assert codec.num_source_specials == 1
    assert not ends_sources(AutoTokenizer.from_pretrained(zoo("gpt2")))
    started(zoo("gpt2")).model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = find_alone(str(tmp_path), None).tokenizer
    assert again("the bird").input_ids == [0, 4, EOS]
    assert again(["the", "the bird"], padding=True).input_ids == [[EOS, 0, EOS], [0, 4, EOS]]  # on the left


def test_everything_comes_from_the_checkpoint(zoo: Callable[..., Path]) -> None:
    found = started(zoo("gpt2"))
    file = load_file(zoo("gpt2") / "model.safetensors")
    named = dict(found.model.named_parameters())
    assert all(torch.equal(p, file[name]) for name, p in named.items())
    assert set(found.warm) == set(named)
    (half,) = found.halves
    assert (half.name, half.loaded, half.fresh, found.shared) == ("decoder", found.total, 0, 0)
    assert found.total == sum(p.numel() for p in named.values())
    assert not any("crossattention" in name for name in named)
    assert (found.model.training, found.model.config._attn_implementation) == (True, "sdpa")


def test_random_weights_and_fewer_layers(zoo: Callable[..., Path]) -> None:
    one, two, other = (started(zoo("gpt2"), Init.none, seed) for seed in (1, 1, 2))
    assert (one.warm, one.halves[0].loaded, one.halves[0].checkpoint) == ([], 0, "random")
    weights = [found.model.transformer.h[0].attn.c_attn.weight for found in (one, two, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    half = started(zoo("gpt2"), layers=(None, [2])).model
    assert torch.equal(half.transformer.h[0].ln_1.weight, started(zoo("gpt2")).model.transformer.h[1].ln_1.weight)
    assert len(half.transformer.h) == half.config.n_layer == 1


def test_the_export_is_a_plain_causal_lm(zoo: Callable[..., Path], tmp_path: Path) -> None:
    source = find_alone(str(zoo("gpt2")), None)
    model = started(zoo("gpt2"), Init.none).model.eval()
    settings = replace(GREEDY, num_beams=2).generation_config(model)
    place = tmp_path / "run" / "export"
    place.parent.mkdir()
    export(model, place, (source.tokenizer, source.tokenizer), settings, (6, 8), "# A card\n")
    assert len(load_file(place / "model.safetensors")) == len(list(model.named_parameters()))  # the head is tied
    assert json.loads((place / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    plain, info = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
    assert not any(info.values())
    ids = torch.tensor([[3, 1, 4, EOS, 5]])
    assert torch.equal(plain.eval()(ids).logits, model(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(place)
    texts = ["the cat sat", "dog", "old bird flew under the tree and on"]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
    assert inputs.input_ids.tolist()[2] == tokenizer("old bird flew under the").input_ids  # 5 tokens, and eos
    outputs = plain.generate(**inputs)[:, inputs.input_ids.shape[1] :]
    theirs = tokenizer.batch_decode(outputs, skip_special_tokens=True)
    assert list(encdec_train.generate(texts, str(tmp_path / "run"), "trainer.accelerator=cpu")) == theirs
    opened = open_export(compose("generate", [f"checkpoint={place}", "trainer.accelerator=cpu"]))
    assert (opened.codec.decoder_start_id, opened.codec.eos_id, opened.max_source_tokens) == (EOS, EOS, 6)
    again = started(tmp_path / "run")  # of a run's folder
    assert torch.equal(again.model.eval()(ids).logits, model(ids).logits)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Thirty pairs of words that the tiny tokenizer has; the target is the source in reverse."""
    words = "the a cat dog bird sat ran flew on under mat tree house and old".split()  # noqa: SIM905
    texts = [[words[(number + 4 * place) % 15] for place in range(3 + number % 4)] for number in range(30)]
    rows = [json.dumps({"source": " ".join(text), "target": " ".join(text[::-1])}) + "\n" for text in texts]
    (tmp_path / "train.jsonl").write_text("".join(rows))
    return tmp_path / "train.jsonl"


def configured(folder: Path, pairs: Path, *overrides: str) -> Any:
    given = ["task=files", f"task.train_file={pairs}", "model=gpt", f"model.decoder={folder}", "trainer.max_steps=9",
             f"run.cache_dir={pairs.parent}/c", "trainer.accelerator=cpu", "task.max_source_tokens=12",
             "task.max_target_tokens=12"]  # fmt: skip
    return compose("train", [*given, *overrides])


def test_a_family_is_well(folder: Path, pairs: Path, one_thread: None) -> None:
    findings = examine(admit(configured(folder, pairs)))
    odd = {name: one.status for name, one in findings.items() if one.status is not Status.ok}
    assert odd == {"start token": Status.not_run, "sharing": Status.not_run}


def test_the_doctor_sees_a_source_that_is_not_read(zoo: Callable[..., Path], pairs: Path) -> None:
    patient = admit(configured(zoo("gpt2"), pairs))

    def blind(module: Any, args: Any, given: dict[str, Any]) -> Any:
        ids = given["input_ids"].clone()
        ids[:, :3] = 1
        return args, {**given, "input_ids": ids}

    patient.exact.transformer.register_forward_pre_hook(blind, with_kwargs=True)
    found = examine(patient)
    assert found["cross-attention"].status is Status.ok  # later tokens of the source are still read
    patient.model.generation_config.eos_token_id = 3
    assert examine(patient)["end token"].status is Status.fail


def opened(config: Any) -> Any:
    sources = splits_of(config.task, Path(config.run.cache_dir))
    return open_session(config, {name: one.load() for name, one in sources.items()}, sources)


def test_the_session_reads_one_checkpoint(zoo: Callable[..., Path], pairs: Path) -> None:
    config = configured(zoo("gpt2"), pairs)
    session = opened(config)
    assert session.halves[0] is session.halves[1]
    assert list(checkpoint_fingerprints(config.model)) == ["decoder"]
    assert {int(ids[-1]) for ids in session.splits["train"].source_ids} == {EOS}


def test_both_limits_have_to_fit_together(zoo: Callable[..., Path], pairs: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        opened(configured(zoo("gpt2"), pairs, "task.max_source_tokens=13"))
    assert str(raised.value) == (
        "task.max_source_tokens: expected at most 24 together with task.max_target_tokens, got '13 + 12'; source and "
        f"target are one sequence, and {zoo('gpt2')} has 24 positions. Lower one of them."
    )
    assert not (pairs.parent / "c").exists()
    assert opened(configured(zoo("gpt2"), pairs))  # 12 + 12 of 24


REFUSED = [
    (["model.share=embeddings"], r"^model.share: expected none, got 'embeddings'; there is no encoder"),
    (["model.share=[self_attention]"], r"^model.share: expected none, got 'self_attention'; there is no encoder"),
    (["model.init=both"], r"^model.init: expected decoder or none, got 'both'; there is no encoder"),
    (["model.encoder_layers=[1]"], r"^model.encoder_layers: expected null, got '\[1\]'; there is no encoder"),
    (["model.encoder_revision=v1"], r"^model.encoder_revision: expected null, got 'v1'; there is no encoder"),
    (["model.decoder=demo"], r"^model.decoder: expected a GPT-2, a folder or a Hub id, got 'demo'; the demo pretrains"),
    (["model.encoder=bert"], r"^model.encoder: expected null, got 'bert'; model=gpt has .* Set model.encoder=null\."),
    (["decoding.no_repeat_ngram=3"], r"^decoding.no_repeat_ngram: expected 0, got 3; without an encoder the source's"),
    (["optim.freeze_warm_steps=2"], r"^optim.freeze_warm_steps: expected 0, got 2; without an encoder everything com"),
    (["task=demo"], r"^model.encoder: expected null, got 'demo'"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[" ".join(row[0]) for row in REFUSED])
def test_contradictions_are_one_message(overrides: list[str], message: str) -> None:
    given = ["task=files", "task.train_file=x", "trainer.max_steps=9", "model=gpt"]
    with pytest.raises(ConfigError, match=message) as raised:
        compose("train", [*(given[3:] if "task=demo" in overrides else given), *overrides])
    assert len(raised.value.faults) == 1


def test_all_contradictions_come_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        compose("train", ["task=files", "task.train_file=x", "model=gpt", "model.share=all", "model.init=encoder"])
    assert [text.partition(":")[0] for text in raised.value.faults] == ["model.share", "model.init"]


def test_checkpoints_that_do_not_write_are_refused(zoo: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^model.decoder: expected a causal language model such as gpt2, got 'bert'"):
        find_alone(str(zoo("bert")), None)
    place = tmp_path / "endless"
    started(zoo("gpt2")).model.save_pretrained(place)
    tokenizer = AutoTokenizer.from_pretrained(zoo("gpt2"))
    tokenizer.eos_token = None
    tokenizer.pad_token = "word1"
    tokenizer.save_pretrained(place)
    with pytest.raises(ModelError, match=r"^model.decoder: expected a tokenizer with an end token \(eos\), got"):
        find_alone(str(place), None)


def test_a_pretrained_gpt2_is_no_export(zoo: Callable[..., Path]) -> None:
    with pytest.raises(
        ModelError, match=r"^checkpoint: expected an encoder-decoder model, got 'gpt2'; .* is no export"
    ):
        load(str(zoo("gpt2")))


def test_there_is_no_pipeline_for_it(zoo: Callable[..., Path], tmp_path: Path, gpt2: Any) -> None:
    tokenizer = find_alone(str(zoo("gpt2")), None).tokenizer
    export(gpt2, tmp_path / "export", (tokenizer, tokenizer), GREEDY.generation_config(gpt2), (6, 8), "")
    with pytest.raises(
        ModelError, match=r"a sequence-to-sequence model, got 'gpt2'; .* has no encoder\. `encdec gener"
    ):
        encdec_train.pipeline("summarization", str(tmp_path / "export"))
    with pytest.raises(
        ModelError, match=r"^model: expected a sequence-to-sequence model, got 'gpt2'; it has no encoder"
    ):
        encdec_train.pipeline("summarization", gpt2, tokenizer)
