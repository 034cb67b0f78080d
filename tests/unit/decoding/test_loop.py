"""Our own search gives the tokens and scores of the library's `generate`, whatever else is in the batch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pairs
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from encdec_train.config import PenaltyForm
from encdec_train.decoding.decoder import supported
from encdec_train.decoding.loop import Found
from encdec_train.decoding.search import Engine, SearchSettings
from encdec_train.decoding.settings import TokenRules
from encdec_train.errors import ModelError

BEAM = SearchSettings(num_beams=4, length_penalty=1.0, max_new_tokens=12, no_repeat_ngram=0, max_batch_tokens=300)
GREEDY = replace(BEAM, num_beams=1)


def searched(model: Any, sources: Sequence[Sequence[int]], how: SearchSettings) -> list[Found]:
    found = {one.index: one for one in Engine(model).search(dict(enumerate(sources)), how)}
    return [found[index] for index in range(len(sources))]


def differences(model: Any, sources: Sequence[Sequence[int]], how: SearchSettings) -> int:
    """Assert that all examples without a close choice are the library's; count those that had one and differ."""
    close = 0
    for source, one in zip(sources, searched(model, sources, how), strict=True):
        wanted = pairs.generated(model, source, how)
        got = [found.tokens for found in one.hypotheses]
        if got != [tokens for tokens, _ in wanted] and one.close:
            close += 1
            continue
        assert got == [tokens for tokens, _ in wanted], (source, how)
        for found, (_, score) in zip(one.hypotheses, wanted, strict=True):
            assert score is None or found.score == pytest.approx(score, rel=1e-4, abs=1e-4)
    return close


SETTINGS = {
    "greedy": GREEDY,
    "beam": BEAM,
    "beams of 2": replace(BEAM, num_beams=2, num_return_sequences=2),
    "n-best of 8": replace(BEAM, num_beams=8, num_return_sequences=8),
    "no penalty": replace(BEAM, length_penalty=0.0),
    "short": replace(BEAM, length_penalty=-1.0),
    "long": replace(BEAM, length_penalty=2.0),
    "no bigram twice": replace(BEAM, no_repeat_ngram=2),
    "greedily no bigram twice": replace(GREEDY, no_repeat_ngram=2),
    "at least 5": replace(BEAM, min_new_tokens=5),
    "exactly 12": replace(BEAM, min_new_tokens=12),
    "repetition costs": replace(BEAM, repetition_penalty=1.7),
    "repetition costs greedily": replace(GREEDY, repetition_penalty=1.7),
    "begins": replace(BEAM, prefix_ids=(7, 9)),
    "begins greedily": replace(GREEDY, prefix_ids=(7,)),
    "first": replace(BEAM, rules=TokenRules(forced_bos=11)),
    "last": replace(BEAM, max_new_tokens=6, rules=TokenRules(forced_eos=3)),
    "never": replace(BEAM, rules=TokenRules(suppressed=(5, 6, 7, 8, 9, 10, 11))),
    "not first": replace(GREEDY, rules=TokenRules(forced_bos=12, begin_suppressed=(5, 6, 13))),
    "one step": replace(BEAM, max_new_tokens=1),
}


@pytest.mark.parametrize("family", pairs.FAMILIES)
@pytest.mark.parametrize("how", SETTINGS.values(), ids=SETTINGS)
def test_tokens_are_those_of_generate(family: str, how: SearchSettings, one_thread: None) -> None:
    model = pairs.tiny_pair(family, pairs.SEEDS[family])
    assert supported(model)
    assert differences(model, pairs.tiny_sources(5, seed=3), how) == 0


def test_the_oracle_models_say_different_things_of_different_length(one_thread: None) -> None:
    lengths = set[int]()
    for family in pairs.FAMILIES:
        found = searched(pairs.tiny_pair(family, pairs.SEEDS[family]), pairs.tiny_sources(9, seed=3), BEAM)
        texts = {tuple(one.hypotheses[0].tokens) for one in found}
        assert len(texts) > 3, family
        assert len({len(text) for text in texts}) > 1, family
        lengths |= {len(text) for text in texts}
    assert len(lengths) > 5


@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # to shrink one takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    family=st.sampled_from(pairs.FAMILIES),
    seed=st.integers(0, 10_000),
    vocab=st.sampled_from([17, 23, 64]),
    beams=st.integers(1, 8),
    penalty=st.sampled_from([-0.5, 0.0, 0.6, 1.0, 2.0]),
    lengths=st.sampled_from([(0, 9), (3, 9), (0, 2), (9, 9)]),
    ngram=st.sampled_from([0, 0, 1, 2, 3]),
    repetition=st.sampled_from([1.0, 1.0, 1.3]),
    prefix=st.sampled_from([(), (), (7,), (5, 8, 5)]),
    rules=st.sampled_from([TokenRules(), TokenRules(6), TokenRules(None, 3), TokenRules(None, None, (8, 9), (10,))]),
    budget=st.sampled_from([1, 150, 100_000]),
)
def test_tokens_are_those_of_generate_for_any_model_and_setting(
    family: str, seed: int, vocab: int, beams: int, penalty: float, lengths: tuple[int, int], ngram: int,
    repetition: float, prefix: tuple[int, ...], rules: TokenRules, budget: int, one_thread: None,
) -> None:  # fmt: skip
    how = SearchSettings(
        beams, penalty, lengths[1], ngram, budget, min_new_tokens=lengths[0], repetition_penalty=repetition,
        num_return_sequences=beams, prefix_ids=prefix, rules=rules,
    )  # fmt: skip
    close = differences(pairs.tiny_pair(family, seed, vocab), pairs.tiny_sources(4, seed, min(vocab, 31)), how)
    note(f"{close} close choices")
    assert close <= 1


@pytest.mark.parametrize("how", [GREEDY, BEAM, replace(BEAM, temperature=0.8, num_beams=1, num_return_sequences=3)])
def test_the_company_in_the_batch_does_not_matter(how: SearchSettings, one_thread: None) -> None:
    model, sources = pairs.tiny_pair("bert2bert", seed=6), pairs.tiny_sources(30, seed=8)
    texts = []
    for budget in (1, 200, 700, 1_000_000):
        found = searched(model, sources, replace(how, max_batch_tokens=budget))
        texts.append([[one.tokens for one in each.hypotheses] for each in found])
    assert texts[1:] == texts[:1] * 3


def test_a_close_choice_is_counted(one_thread: None) -> None:
    model = pairs.tiny_pair("bert2bert", seed=6)
    sources = pairs.tiny_sources(9, seed=3)
    texts = [one.hypotheses[0].tokens for one in searched(model, sources, BEAM)]
    assert not any(one.close for one in searched(model, sources, BEAM))
    said, twin = texts[-1][0], next(token for token in range(5, 23) if not any(token in text for text in texts))
    head = model.decoder.cls.predictions.decoder
    with torch.no_grad():
        head.weight[twin], head.bias[twin] = head.weight[said], head.bias[said]
    for how in (GREEDY, BEAM):
        close = [one.close for one in searched(model, sources, how) if said in one.hypotheses[0].tokens]
        assert all(close)
        assert close


def test_gnmt_divides_by_five_plus_length_over_six(one_thread: None) -> None:
    gnmt = replace(BEAM, length_penalty=0.6, length_penalty_form=PenaltyForm.gnmt)
    assert gnmt.penalty(7) == pytest.approx(2.0**0.6)
    assert replace(BEAM, length_penalty=0.6).penalty(7) == pytest.approx(7**0.6)
    model, sources = pairs.tiny_pair("bert2bert", seed=6), pairs.tiny_sources(9, seed=3)
    for source, one in zip(sources, searched(model, sources, gnmt), strict=True):
        best = one.hypotheses[0]
        ended = [*best.tokens, pairs.END][: gnmt.max_new_tokens]
        assert best.score == pytest.approx(
            log_probability(model, source, ended) / ((5 + len(ended)) / 6) ** 0.6, abs=1e-5
        )


def log_probability(model: Any, source: list[int], output: list[int]) -> float:
    """Add up what the model's own forward, without any cache, says about each token."""
    start = model.generation_config.decoder_start_token_id
    with torch.no_grad():
        logits = model(torch.tensor([source]), decoder_input_ids=torch.tensor([[start, *output[:-1]]])).logits[0]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(output)[:, None]).sum())


def test_a_greedy_score_is_the_texts_log_probability(one_thread: None) -> None:
    model, sources = pairs.tiny_pair("bert2gpt", seed=1), pairs.tiny_sources(5, seed=3)
    for source, one in zip(sources, searched(model, sources, replace(GREEDY, length_penalty=0.0)), strict=True):
        ended = [*one.hypotheses[0].tokens, pairs.END][:12]
        assert one.hypotheses[0].score == pytest.approx(log_probability(model, source, ended), abs=1e-4)


def test_lengths_follow_the_source(one_thread: None) -> None:
    model, sources = pairs.tiny_pair("bert2bert", seed=6), pairs.tiny_sources(20, seed=3)
    how = replace(BEAM, min_length_ratio=0.5, max_length_ratio=0.9)
    for source, one in zip(sources, searched(model, sources, how), strict=True):
        least, most = -(-len(source) // 2), max(1, int(0.9 * len(source)))
        alone = pairs.generated(
            model, source, replace(how, max_new_tokens=min(12, most), min_new_tokens=min(least, most))
        )
        assert one.hypotheses[0].tokens == alone[0][0]
    assert how.limits(3) == (2, 2)
    assert how.limits(20) == (10, 12)


def test_draws_follow_the_models_probabilities(one_thread: None) -> None:
    model, source = pairs.tiny_pair("bert2bert", seed=6), pairs.tiny_sources(1, seed=3)[0]
    draws = 4000
    how = replace(
        GREEDY, temperature=1.5, top_k=6, max_new_tokens=1, num_return_sequences=draws, max_batch_tokens=10**6
    )
    found = searched(model, [source], how)[0].hypotheses
    counts = torch.zeros(23)
    for one in found:
        counts[one.tokens[0] if one.tokens else pairs.END] += 1
    with torch.no_grad():
        logits = model(torch.tensor([source]), decoder_input_ids=torch.tensor([[2]])).logits[0, 0] / 1.5
    kept = logits.topk(6).indices
    wanted = torch.zeros(23).scatter(0, kept, logits[kept].softmax(-1)) * draws
    assert (counts[wanted == 0] == 0).all()
    chi_square = ((counts - wanted)[kept] ** 2 / wanted[kept]).sum()
    assert chi_square < 20.5  # five degrees of freedom: p = 0.001


def test_draws_depend_on_the_seed_alone(one_thread: None) -> None:
    model, sources = pairs.tiny_pair("bert2bert", seed=6), pairs.tiny_sources(6, seed=3)
    how = replace(GREEDY, temperature=1.0)
    first, again, other = (searched(model, sources, replace(how, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    likely = searched(model, sources, replace(how, top_k=1))
    assert [one.hypotheses[0].tokens for one in likely] == [
        one.hypotheses[0].tokens for one in searched(model, sources, GREEDY)
    ]


def test_logits_that_are_no_numbers_name_the_example(one_thread: None) -> None:
    model, sources = pairs.tiny_pair("bert2bert", seed=6), [[2, 6, 3], [2, 7, 8, 3], [2, 9, 3]]
    with torch.no_grad():
        model.encoder.embeddings.word_embeddings.weight[8] = torch.nan
    for how in (GREEDY, BEAM, replace(GREEDY, temperature=1.0)):
        with pytest.raises(ModelError, match=r"^sources\[1\]: expected logits that are numbers, got 'nan'; the model"):
            searched(model, sources, how)


def test_an_output_that_nothing_may_follow_is_empty(one_thread: None) -> None:
    model = pairs.tiny_pair("bert2bert", seed=6)
    how = replace(BEAM, rules=TokenRules(suppressed=tuple(range(23))))
    assert [one.hypotheses for one in searched(model, pairs.tiny_sources(3, seed=3), how)] == [[], [], []]


def test_states_of_the_encoder_are_used_again(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sources = pairs.tiny_pair("bert2gpt", seed=1), dict(enumerate(pairs.tiny_sources(9, seed=3)))
    engine = Engine(model)
    engine.states = {}
    first = list(engine.search(sources, BEAM))
    assert {index: len(kept) for index, kept in engine.states.items()} == {
        index: len(one) for index, one in sources.items()
    }
    monkeypatch.setattr(model.encoder, "forward", lambda **inputs: 1 / 0)
    again = list(engine.search(sources, BEAM))
    assert [(one.index, one.hypotheses[0].tokens) for one in first] == [
        (one.index, one.hypotheses[0].tokens) for one in again
    ]
