"""The search returns what the library's `generate` returns for each sentence alone, in the caller's order."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, ElectraConfig, ElectraForCausalLM, EncoderDecoderModel, GenerationConfig

from encdec_train.config import DecodingConfig, PenaltyForm
from encdec_train.decoding import library
from encdec_train.decoding.decoder import supported
from encdec_train.decoding.search import Engine, SearchSettings, decode
from encdec_train.decoding.settings import TokenRules
from encdec_train.errors import ConfigError, ModelError

# of 3 to 8 tokens, in no order of length
SOURCES = [[2, 6, 8, 3], [2, 5, 7, 10, 13, 5, 16, 3], [2, 9, 3], [2, 5, 5, 5, 5, 3],
           [2, 20, 21, 22, 23, 24, 25, 3], [2, 31, 3], [2, 5, 7, 3], [2, 6, 3]]  # fmt: skip
GREEDY = SearchSettings(num_beams=1, length_penalty=1.0, max_new_tokens=12, no_repeat_ngram=0, max_batch_tokens=100)


def alone(model: Any, source: list[int], settings: SearchSettings) -> list[int]:
    """Ask the library about one sentence, with nothing to pad, and strip start, end and what follows."""
    output = model.generate(
        torch.tensor([source]),
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        max_new_tokens=settings.max_new_tokens,
        no_repeat_ngram_size=settings.no_repeat_ngram,
    )[0].tolist()
    assert output[0] == 2
    return output[1 : output.index(3)] if 3 in output else output[1:]


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize(("length_penalty", "no_repeat_ngram"), [(1.0, 0), (2.0, 2)])
@pytest.mark.parametrize("max_batch_tokens", [1, 200, 100_000])
def test_each_sentence_is_decoded_as_if_alone(
    num_beams: int, length_penalty: float, no_repeat_ngram: int, max_batch_tokens: int, talkative: Any
) -> None:
    penalty = length_penalty if num_beams > 1 else 1.0
    settings = SearchSettings(num_beams, penalty, 12, no_repeat_ngram, max_batch_tokens)
    found = decode(talkative, SOURCES, settings)
    assert found == [alone(talkative, source, settings) for source in SOURCES]
    assert len({tuple(tokens) for tokens in found}) > 6  # so the order is theirs
    assert len({len(tokens) for tokens in found}) > 2


def test_nothing_to_decode_is_nothing(talkative: Any) -> None:
    assert decode(talkative, [], GREEDY) == []


def test_a_model_that_ends_at_once_says_nothing(talkative: Any) -> None:
    talkative.decoder.cls.predictions.bias.data[3] = 100
    assert decode(talkative, SOURCES[:3], GREEDY) == [[], [], []]


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored(training: bool, new_model: Callable[..., Any]) -> None:
    model = new_model(dropout=0.5).train(training)
    assert decode(model, SOURCES, GREEDY) == decode(model, SOURCES, GREEDY)  # without dropout
    assert [module.training for module in (model, model.encoder, model.decoder)] == [training] * 3


def test_the_mode_is_restored_after_an_error(new_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model().train()
    monkeypatch.setattr(model.encoder, "forward", lambda **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decode(model, SOURCES, GREEDY)
    assert model.training


def test_batches_are_longest_first_and_within_the_budget() -> None:
    settings = SearchSettings(2, 1.0, max_new_tokens=4, no_repeat_ngram=0, max_batch_tokens=50)
    batches = [batch.tolist() for batch in library.batches([6, 2, 9, 2, 5, 6, 2], settings)]
    # rows of 2 beams x (longest + 4): 26, 20, 20, 12 tokens, of which 50 hold 1, 2, 2 and 4
    assert batches == [[2], [0, 5], [4, 1], [3, 6]]
    assert list(library.batches([], settings)) == []


def test_an_example_beyond_the_budget_is_a_batch_of_its_own() -> None:
    settings = replace(GREEDY, max_batch_tokens=1)
    assert [batch.tolist() for batch in library.batches([3, 5], settings)] == [[1], [0]]


def test_progress_counts_every_example_once(talkative: Any) -> None:
    told: list[int] = []
    decode(talkative, SOURCES, replace(GREEDY, max_batch_tokens=45), on_done=told.append)
    assert sum(told) == 8
    assert len(told) > 2


def test_what_is_too_long_for_the_model_is_refused(talkative: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"task.max_source_tokens: expected at most 64, the model's positions, got 65"
    ):
        decode(talkative, [[2, *[5] * 63, 3]], GREEDY)
    with pytest.raises(
        ConfigError, match=r"decoding.max_new_tokens: expected at most 64, the model's positions, got 70"
    ):
        decode(talkative, SOURCES, replace(GREEDY, max_new_tokens=70))
    assert len(decode(talkative, [[2, *[5] * 62, 3]], replace(GREEDY, max_new_tokens=64))) == 1


NOTHING_SAID = DecodingConfig(**{f.name: None for f in fields(DecodingConfig)})
ALL_SAID = replace(NOTHING_SAID, num_beams=3, length_penalty=0.0, max_new_tokens=7, no_repeat_ngram=2)
EXPORTED = GenerationConfig(num_beams=5, length_penalty=0.5, max_new_tokens=40, no_repeat_ngram_size=4)


@pytest.mark.parametrize(
    ("decoding", "limit", "exported", "expected"),
    [
        (ALL_SAID, 20, None, (3, 0.0, 7, 2)),
        (ALL_SAID, 20, EXPORTED, (3, 0.0, 7, 2)),
        (replace(ALL_SAID, max_new_tokens=None), 20, None, (3, 0.0, 20, 2)),
        (NOTHING_SAID, None, EXPORTED, (5, 0.5, 40, 4)),
        (NOTHING_SAID, 20, EXPORTED, (5, 0.5, 20, 4)),
        (NOTHING_SAID, None, GenerationConfig(max_length=30), (1, 1.0, 30, 0)),
        (NOTHING_SAID, 20, None, (1, 1.0, 20, 0)),
        (replace(NOTHING_SAID, no_repeat_ngram=0), None, EXPORTED, (5, 0.5, 40, 0)),
    ],
)
def test_config_task_and_export_fill_the_settings_in_this_order(
    decoding: DecodingConfig, limit: int | None, exported: GenerationConfig | None, expected: tuple[Any, ...]
) -> None:
    assert SearchSettings.of(decoding, limit, 99, exported) == SearchSettings(*expected, max_batch_tokens=99)


@pytest.mark.parametrize("exported", [None, GenerationConfig()])
def test_an_output_without_limit_is_refused(exported: GenerationConfig | None) -> None:
    message = r"decoding.max_new_tokens: expected a number of tokens; the checkpoint states no limit\.$"
    with pytest.raises(ConfigError, match=message):
        SearchSettings.of(NOTHING_SAID, None, 99, exported)


def test_the_library_is_told_everything(new_model: Callable[..., Any]) -> None:
    said = SearchSettings(4, 0.6, 9, 3, 100).generation_config(new_model()).to_dict()
    wanted = {"num_beams": 4, "length_penalty": 0.6, "max_new_tokens": 9, "no_repeat_ngram_size": 3,
              "do_sample": False, "early_stopping": False, "decoder_start_token_id": 2, "bos_token_id": 2,
              "eos_token_id": 3, "pad_token_id": 0}  # fmt: skip
    assert {key: said[key] for key in wanted} == wanted


def test_what_is_said_beyond_the_usual_reaches_the_library_and_comes_back(new_model: Callable[..., Any]) -> None:
    rules = TokenRules(7, 3, (5, 6), (9,))
    settings = SearchSettings(
        4, 0.6, 9, 3, 100, PenaltyForm.gnmt, min_new_tokens=2, min_length_ratio=0.5, max_length_ratio=2.0,
        repetition_penalty=1.2, prefix="the cat", rules=rules,
    )  # fmt: skip
    said = settings.generation_config(new_model())
    assert (said.min_new_tokens, said.repetition_penalty, said.suppress_tokens) == (2, 1.2, [5, 6])
    assert (said.forced_bos_token_id, said.forced_eos_token_id, said.begin_suppress_tokens) == (7, 3, [9])
    read = GenerationConfig.from_dict(json.loads(said.to_json_string(use_diff=False)))
    assert SearchSettings.of(NOTHING_SAID, None, 100, read) == settings
    drawn = replace(settings, num_beams=1, temperature=0.7, top_k=5, top_p=0.9, num_return_sequences=2)
    found = drawn.generation_config(new_model())
    assert (found.do_sample, found.temperature, found.top_k, found.top_p) == (True, 0.7, 5, 0.9)


CONTRADICTIONS = [
    ({"temperature": 0.0, "num_beams": 1}, "temperature: expected above 0, got 0.0"),
    ({"temperature": 1.0}, "num_beams: expected 1, got 3; decoding.temperature draws"),
    ({"top_k": 5}, "top_k: expected null, got 5; nothing is drawn"),
    ({"top_p": 0.5}, "top_p: expected null, got 0.5; nothing is drawn"),
    ({"num_return_sequences": 4}, r"num_return_sequences: expected 1\.\.3, got 4; a search returns no more"),
    ({"min_new_tokens": 8}, "min_new_tokens: expected at most decoding.max_new_tokens=7, got 8; no output"),
    (
        {"min_length_ratio": 2.0, "max_length_ratio": 1.5},
        "min_length_ratio: expected at most decoding.max_length_ratio",
    ),
]


@pytest.mark.parametrize(("change", "message"), CONTRADICTIONS)
def test_what_cannot_be_searched_for_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^decoding.{message}"):
        SearchSettings.of(replace(ALL_SAID, **change), 20, 99)


def test_more_beams_than_tokens_are_refused(talkative: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"decoding.num_beams: expected no more than tokens, got 33; the vocabulary has 32"
    ):
        decode(talkative, SOURCES, replace(GREEDY, num_beams=33))


def test_an_empty_source_has_an_empty_output(talkative: Any) -> None:
    told: list[int] = []
    found = decode(talkative, [[], SOURCES[0], []], GREEDY, on_done=told.append)
    assert found == [[], alone(talkative, SOURCES[0], GREEDY), []]
    assert sum(told) == 3


@pytest.mark.parametrize("settings", [GREEDY, replace(GREEDY, num_beams=4, num_return_sequences=4, length_penalty=2.0)])
@pytest.mark.parametrize("prefix", [(), (6, 7)])
def test_the_library_behind_the_same_interface(
    settings: SearchSettings, prefix: tuple[int, ...], talkative: Any
) -> None:
    settings, sources = replace(settings, prefix_ids=prefix), dict(enumerate(SOURCES))
    ours = {one.index: one for one in Engine(talkative).search(sources, settings)}
    theirs = {one.index: one for one in Engine(talkative, own=False).search(sources, settings)}
    assert sorted(theirs) == list(range(8))
    for index, one in theirs.items():
        assert [found.tokens for found in one.hypotheses] == [found.tokens for found in ours[index].hypotheses]


@pytest.mark.parametrize(
    "settings", [GREEDY, replace(GREEDY, num_beams=2), replace(GREEDY, temperature=1.0, num_return_sequences=2)]
)
def test_the_library_names_an_example_whose_logits_are_no_numbers(settings: SearchSettings, talkative: Any) -> None:
    sources = [[2, 6, 3], [2, 7, 3], [2, 8, 3], [2, 9, 3]]
    with torch.no_grad():
        talkative.encoder.embeddings.word_embeddings.weight[8] = torch.nan
    with pytest.raises(ModelError, match=r"^sources\[2\]: expected logits that are numbers, got 'nan'; "):
        list(Engine(talkative, own=False).search(dict(enumerate(sources)), settings))


def test_other_families_go_through_the_library() -> None:
    shape = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 16, "max_position_embeddings": 40}  # fmt: skip
    torch.manual_seed(0)
    encoder: Any = BertModel(BertConfig(**shape))
    decoder: Any = ElectraForCausalLM(
        ElectraConfig(**shape, embedding_size=16, is_decoder=True, add_cross_attention=True)
    )
    model: Any = EncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    ids = model.generation_config
    ids.decoder_start_token_id, ids.eos_token_id, ids.pad_token_id = 2, 3, 0
    assert not supported(model)
    assert decode(model, SOURCES, replace(GREEDY, num_beams=2)) == [
        alone(model, source, replace(GREEDY, num_beams=2)) for source in SOURCES
    ]
    for change, name in (
        ({"length_penalty_form": PenaltyForm.gnmt}, "length_penalty_form"),
        ({"max_length_ratio": 1.0}, "max_length_ratio"),
        ({"min_length_ratio": 1.0}, "min_length_ratio"),
    ):
        with pytest.raises(ConfigError, match=rf"^decoding.{name}: .* the library's generate decodes electra"):
            decode(model, SOURCES, replace(GREEDY, **change))


@pytest.mark.parametrize("own", [True, False])
def test_what_is_drawn_is_a_function_of_the_seed(own: bool, talkative: Any) -> None:
    def drawn(seed: int) -> list[list[int]]:
        settings = replace(GREEDY, temperature=2.0, num_return_sequences=3, seed=seed)
        found = Engine(talkative, own=own).search(dict(enumerate(SOURCES)), settings)
        return [one.tokens for each in sorted(found, key=lambda each: each.index) for one in each.hypotheses]

    before = torch.get_rng_state()
    first, other, again = drawn(1), drawn(2), drawn(1)
    assert first == again
    assert first != other
    assert len({tuple(tokens) for tokens in first[:3]}) > 1
    assert torch.equal(torch.get_rng_state(), before)


def test_adapters_and_hooks_go_through_the_library(talkative: Any) -> None:
    assert supported(talkative)
    hook = talkative.decoder.bert.register_forward_hook(lambda *_: None)
    assert not supported(talkative)
    hook.remove()

    class Adapter(torch.nn.Linear):
        pass

    talkative.decoder.bert.encoder.layer[0].output.dense = Adapter(64, 32)
    assert not supported(talkative)


def test_the_fingerprint_is_that_of_the_weights(new_model: Callable[..., Any]) -> None:
    model, before = new_model(), Engine(new_model()).fingerprint()
    assert Engine(model).fingerprint() == before
    with torch.no_grad():
        model.encoder.encoder.layer[0].output.dense.bias[3] += 1e-6
    assert Engine(model).fingerprint() != before
