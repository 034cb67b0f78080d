"""The search returns what the library's `generate` returns for each sentence alone, in the caller's order."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from encdec_train.config import DecodingConfig
from encdec_train.decoding import search
from encdec_train.decoding.search import SearchSettings, decode
from encdec_train.errors import ConfigError

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
    monkeypatch.setattr(model, "generate", lambda **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decode(model, SOURCES, GREEDY)
    assert model.training


def test_batches_are_longest_first_and_within_the_budget() -> None:
    settings = SearchSettings(2, 1.0, max_new_tokens=4, no_repeat_ngram=0, max_batch_tokens=50)
    batches = [batch.tolist() for batch in search._batches([6, 2, 9, 2, 5, 6, 2], settings)]
    # rows of 2 beams x (longest + 4): 26, 20, 20, 12 tokens, of which 50 hold 1, 2, 2 and 4
    assert batches == [[2], [0, 5], [4, 1], [3, 6]]
    assert list(search._batches([], settings)) == []


def test_an_example_beyond_the_budget_is_a_batch_of_its_own() -> None:
    settings = replace(GREEDY, max_batch_tokens=1)
    assert [batch.tolist() for batch in search._batches([3, 5], settings)] == [[1], [0]]


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


NOTHING_SAID = DecodingConfig(num_beams=None, length_penalty=None, max_new_tokens=None, no_repeat_ngram=None)
ALL_SAID = DecodingConfig(num_beams=3, length_penalty=0.0, max_new_tokens=7, no_repeat_ngram=2)
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
