"""A validation finds the loss of the whole split and the scores of the same few examples every time."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from encdec_train import distributed
from encdec_train.config import OptimConfig, Precision
from encdec_train.data.preprocess import EncodedSplit, TextCodec
from encdec_train.decoding.decoder import supported
from encdec_train.decoding.search import SearchSettings, decode
from encdec_train.training.module import Seq2SeqModule
from encdec_train.training.validation import Validator

GREEDY = SearchSettings(num_beams=1, length_penalty=1.0, max_new_tokens=10, no_repeat_ngram=0, max_batch_tokens=200)


@pytest.fixture
def split(split_of: Callable[[range], EncodedSplit]) -> EncodedSplit:
    """Eleven pairs."""
    return split_of(range(60, 71))


@pytest.fixture
def validator_of(split: EncodedSplit, codec: TextCodec) -> Callable[..., Validator]:
    """`validator_of(num_decoded, metrics, max_micro_tokens)` on the eleven pairs."""

    def make(num_decoded: int = 4, metrics: tuple[str, ...] = ("exact_match",), budget: int = 60) -> Validator:
        return Validator(split, codec, GREEDY, metrics, num_decoded, budget)

    return make


@pytest.fixture
def module(talkative: Any, optim: OptimConfig) -> Seq2SeqModule:
    """A module whose model says different things."""
    return Seq2SeqModule(talkative.train(), optim, 10, 0, Precision.fp32)


def mean_surprise(model: Any, split: EncodedSplit) -> float:
    """The mean over all target tokens in nats, by the library's logits, one pair at a time."""
    total, count = 0.0, 0
    for index in range(len(split)):
        source, target = split.source_ids[index].tolist(), split.target_ids[index].tolist()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[2, *target[:-1]]])).logits
        total -= logits[0].log_softmax(-1)[range(len(target)), target].sum().item()
        count += len(target)
    return total / count


@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_the_loss_is_the_mean_over_the_whole_split(
    budget: int, module: Seq2SeqModule, split: EncodedSplit, validator_of: Callable[..., Validator]
) -> None:
    found = validator_of(num_decoded=0, budget=budget)(module).values
    assert set(found) == {"loss"}  # nothing decoded, nothing scored
    assert found["loss"] == pytest.approx(mean_surprise(module.model.eval(), split), rel=1e-6)


def test_the_examples_are_what_the_model_says(
    module: Seq2SeqModule, split: EncodedSplit, validator_of: Callable[..., Validator], codec: TextCodec
) -> None:
    found = validator_of(num_decoded=11)(module)
    sources = [split.source_ids[index] for index in range(11)]
    texts = [codec.decode(tokens) for tokens in decode(module.model, sources, GREEDY)]
    assert len(set(texts)) > 3
    assert [dict(row) for row in found.examples] == [
        {"source": source, "prediction": text, "reference": reference}
        for source, text, reference in zip(split.rows.sources, texts, split.rows.targets, strict=True)
    ]


def test_scores_are_of_the_decoded_examples(module: Seq2SeqModule, split: EncodedSplit, codec: TextCodec) -> None:
    texts = [codec.decode(tokens) for tokens in decode(module.model, [split.source_ids[i] for i in range(11)], GREEDY)]
    for index in (2, 5, 7):  # right by decree
        split.rows.references[index][:] = ["another", texts[index]]
    found = Validator(split, codec, GREEDY, ["exact_match", "sacrebleu"], 11, 60)(module).values
    assert found["exact_match"] == pytest.approx(100 * 3 / 11)
    import sacrebleu

    references = [[row[0] for row in split.rows.references], [row[-1] for row in split.rows.references]]
    assert found["sacrebleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, references).score)


def test_a_model_in_training_is_decoded_by_our_own_search(
    module: Seq2SeqModule, split: EncodedSplit, codec: TextCodec
) -> None:
    """Layers that training has changed are known to it; the library's search would refuse this setting."""
    assert supported(module.model)
    found = Validator(split, codec, replace(GREEDY, max_length_ratio=0.5), ["exact_match"], 11, 60)(module)
    words = [(len(row["source"].split()), len(row["prediction"].split())) for row in found.examples]
    assert all(output <= (source + 2) // 2 for source, output in words)  # with its two special tokens
    assert any(output for _, output in words)


def test_the_same_examples_are_decoded_in_every_run(
    module: Seq2SeqModule, validator_of: Callable[..., Validator]
) -> None:
    first, again = validator_of()(module), validator_of()(module)
    assert first.examples == again.examples
    assert len(first.examples) == 4
    more = validator_of(num_decoded=6)(module).examples
    assert all(row in more for row in first.examples)
    assert len(validator_of(num_decoded=1000)(module).examples) == 11


def test_the_model_validates_without_dropout_and_trains_on(
    module: Seq2SeqModule, validator_of: Callable[..., Validator]
) -> None:
    first, again = validator_of()(module), validator_of()(module)
    assert first.values == again.values
    assert all(part.training for part in module.model.modules())
    assert all(p.grad is None for p in module.model.parameters())


def test_ranks_share_the_split_out(
    module: Seq2SeqModule, validator_of: Callable[..., Validator], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = validator_of(num_decoded=0)(module).values["loss"]
    parts: list[np.ndarray] = []

    def collected(values: torch.Tensor) -> torch.Tensor:
        parts.append(values.numpy().copy())
        return torch.ones(2)

    monkeypatch.setattr(distributed, "all_sum", collected)
    monkeypatch.setattr(distributed, "gather_ordered", lambda mine: [])
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        validator_of(num_decoded=0)(module)
    assert all(part[1] > 0 for part in parts)
    summed, tokens = sum(parts)
    assert summed / tokens == pytest.approx(alone, rel=1e-9)
