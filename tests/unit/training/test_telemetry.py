"""The clock of the steps: what it counts, against numbers made by hand."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, BertModel, EncoderDecoderModel, GPT2Config, GPT2LMHeadModel

from encdec_train.batch import StepBatch
from encdec_train.config import Precision
from encdec_train.data.collate import collate
from encdec_train.training import telemetry
from encdec_train.training.telemetry import Telemetry, flops_a_token, matmul_rate

SHAPE = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
         "max_position_embeddings": 20}  # fmt: skip


def pair(tied: bool) -> EncoderDecoderModel:  # noqa: FBT001
    return EncoderDecoderModel(
        encoder=BertModel(BertConfig(**SHAPE), add_pooling_layer=False),
        decoder=BertLMHeadModel(
            BertConfig(**SHAPE, is_decoder=True, add_cross_attention=True, tie_word_embeddings=tied)
        ),
    )


@pytest.fixture
def batch() -> StepBatch:
    """Two pairs of 2 + 3 and 4 + 1 tokens on this rank, of a global batch twice as large."""
    micro = collate([[2, 3], [2, 4, 5, 3]], [[6, 7, 3], [3]], 2, (0, 0))
    return StepBatch(1, 0, 8, 12, 4, [micro], 10, 2 * (4 + 3))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that stands still until it is told to go on."""
    now = [100.0]
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_a_pair_by_hand(tied: bool) -> None:  # noqa: FBT001
    layer = 4 * 8 * 8 + 2 * 8 * 16
    source = 2 * layer + 2 * 2 * 8 * 8  # two layers, and the keys and values of two cross-attentions
    target = 2 * (layer + 2 * 8 * 8) + 8 * 8 + 50 * 8  # queries and outputs of cross-attention, transform, head
    assert flops_a_token(pair(tied)) == (6 * source, 6 * target)


def test_flops_of_a_causal_lm_by_hand() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=3, n_head=2, n_positions=20))
    layer = 4 * 8 * 8 + 2 * 8 * 32
    assert flops_a_token(model) == (6 * 3 * layer, 6 * (3 * layer + 50 * 8))


def test_a_decoder_that_names_no_head_is_counted_by_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pair(tied=True)
    expected = flops_a_token(model)
    monkeypatch.setattr(type(model.decoder), "get_output_embeddings", lambda _: None)
    assert flops_a_token(model) == expected


def test_columns(batch: StepBatch, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "matmul_rate", lambda *_: 1000.0)
    model = pair(tied=True)
    seen = Telemetry(model, Precision.fp32, 2)
    for wait, compute in ((1, 3), (0, 2), (2, 2)):
        clock(wait)
        seen.batch_arrived()
        clock(compute)
        seen.step_ended(batch)
    source, target = flops_a_token(model)
    assert seen.columns() == {
        "time/tokens_per_second": 60 / 10,
        "time/data_wait": 3 / 10,
        "time/padding": 0.0,  # packed
        "time/utilisation": pytest.approx(3 * (12 * source + 8 * target) / 2 / 10 / 1000),
        "time/step_seconds_p50": 4.0,
        "time/step_seconds_p95": 4.0,
    }
    seen.restart()
    clock(5)
    seen.step_ended(batch)
    assert seen.columns()["time/tokens_per_second"] == 4.0
    assert seen.columns()["time/step_seconds_p95"] == pytest.approx(4.85)  # of 4, 2, 4 and 5


def test_padding_is_counted_where_it_is_computed(batch: StepBatch, clock: Callable[[float], None]) -> None:
    model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=20))
    seen = Telemetry(model, Precision.fp32, 1)
    clock(1)
    seen.step_ended(replace(batch))
    assert seen.columns()["time/padding"] == pytest.approx(1 - 10 / 14)


def test_a_matmul_is_measured() -> None:
    rate = matmul_rate(torch.device("cpu"), Precision.fp32)
    assert 1e8 < rate < 1e15


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
