"""Weights in parts over two ranks make the steps of one: gradients, whole weights, a resumed run, memory."""

import copy
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import EncoderDecoderModel, GPT2Config, GPT2LMHeadModel

from benchmarks import splits
from benchmarks.splits import SPLITS, Measured, by_hand, difference, ours
from benchmarks.tiny_pair import EOS, VOCABULARY, Setting, pair
from benchmarks.two_ranks import on_two_ranks
from encdec_train import distributed
from encdec_train.batch import MicroBatch
from encdec_train.config import OptimConfig, Precision, Share
from encdec_train.errors import EncDecError
from encdec_train.modeling.loss import loss_sum
from encdec_train.modeling.sharing import share
from encdec_train.training import sharding as sharding_file
from encdec_train.training.module import Seq2SeqModule
from encdec_train.training.validation import Validator

SPLIT = {split.name: split for split in SPLITS}
ALONE, UNEQUAL = SPLIT["1 rank: 1"], SPLIT["2 ranks: 1 + 3"]
PLAIN = Setting(frozen=False)
CASES = {  # settings and splits: ranks with other numbers of micro-batches, one without any
    "float64, 1 + 3": (Setting(), UNEQUAL),  # smoothing, clipping and frozen embeddings
    "float64, none + 2": (Setting(), SPLIT["2 ranks: none + 2"]),
    "float64, one example left": (Setting(num_examples=33), SPLIT["2 ranks: 4 + 4"]),
    "float32, 1 + 3": (Setting(dtype=torch.float32), UNEQUAL),
}
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}  # relative, as where nothing is sharded
Found = Mapping[Any, list[Any]]


def one_set_of_layers() -> EncoderDecoderModel:
    model = pair(PLAIN)
    assert share(model, Share.all)
    return model


def without_encoder() -> GPT2LMHeadModel:
    sizes = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(**sizes, **rates, eos_token_id=EOS, bos_token_id=EOS)).double().train()


class Scale(splits.Recorder):
    """Weighs what this rank holds when a step has ended, in bytes, and looks at what became of the layers."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *given: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *given)
        states = [value for state in trainer.optimizers[0].state.values() for value in state.values() if value.ndim]
        held = [*pl_module.model.parameters(), *(p.grad for p in pl_module.model.parameters()), *states]
        local = [t.to_local() if isinstance(t, DTensor) else t for t in held if t is not None]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}
        self.measured.bytes = sum(storages.values())
        self.measured.units = sum(type(layer).__name__.startswith("FSDP") for layer in pl_module.model.modules())


@pytest.fixture(scope="module")
def found(one_thread: None) -> Found:
    """What each rank measured, by case; all cases in one pair of processes."""

    def run() -> dict[Any, Any]:
        splits.Recorder, shard, left = Scale, distributed.shard, []

        def watched_shard(units: Any, device: Any) -> None:
            for unit in units:
                whole = [weakref.ref(p) for p in unit.parameters() if not isinstance(p, DTensor)]
                shard([unit], device)
                left.append(sum(p() is not None for p in whole))

        distributed.shard = watched_shard
        measured: dict[Any, Any] = {"left": left}
        measured |= {name: ours(*case, sharding=True) for name, case in CASES.items()}
        measured["gpt"] = ours(PLAIN, UNEQUAL, without_encoder(), sharding=True)
        measured["one set"] = ours(PLAIN, UNEQUAL, one_set_of_layers(), sharding=True)
        for sharding in (False, True):
            model = pair(PLAIN)
            for half in (model.encoder, model.decoder) if sharding else ():
                half.activation_checkpointing_enable({"use_reentrant": False})
            measured["all", sharding] = ours(PLAIN, UNEQUAL, model, sharding=sharding)
            measured["weights", sharding] = [p.detach().numpy() for p in model.parameters()]
        return measured

    first, second = on_two_ranks(run)
    return {key: [first[key], second[key]] for key in first}


def assert_equal(rank: Measured, expected: Measured, tolerance: float) -> None:
    assert len(rank.losses) == len(rank.norms) == len(rank.gradients) == 5
    assert rank.losses == pytest.approx(expected.losses, rel=tolerance)
    assert rank.norms == pytest.approx(expected.norms, rel=tolerance)
    assert difference(rank, expected) < tolerance


@pytest.mark.parametrize("case", CASES)
def test_five_steps_are_those_of_one_batch(case: str, found: Found) -> None:
    expected = by_hand(CASES[case][0])
    for rank in found[case]:
        assert_equal(rank, expected, TOLERANCES[CASES[case][0].dtype])
        assert rank.units == 4


def test_a_units_weights_are_gone_when_its_part_is_there(found: Found) -> None:
    assert (
        found["left"] == [[0] * (5 * (4 + 1) + (2 + 1) + 1)] * 2
    )  # layers and the rest; of one set of layers only a rest


def test_halves_of_one_set_of_layers_stay_one(found: Found) -> None:
    expected = ours(PLAIN, ALONE, one_set_of_layers())
    for rank in found["one set"]:
        assert_equal(rank, expected, 1e-10)
        assert rank.units == 0  # what two layers have in common is held by the unit of the whole model
        assert rank.gradients[0].keys() == dict(one_set_of_layers().named_parameters()).keys()


def test_a_model_without_an_encoder(found: Found) -> None:
    expected = ours(PLAIN, ALONE, without_encoder())
    for rank in found["gpt"]:
        assert_equal(rank, expected, 1e-10)
        assert rank.units == 2


def test_they_are_those_of_ddp_though_layers_are_computed_again(found: Found) -> None:
    for sharded, ddp in zip(found["all", True], found["all", False], strict=True):
        assert_equal(sharded, ddp, 1e-10)
    for sharded, ddp in zip(found["weights", True], found["weights", False], strict=True):
        for p, q in zip(sharded, ddp, strict=True):  # in the model that was given, tied as it was
            torch.testing.assert_close(torch.from_numpy(p), torch.from_numpy(q), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", ["one set", ("all", True)], ids=str)
def test_a_rank_holds_half_of_weights_gradients_and_moments(case: Any, found: Found) -> None:
    model = one_set_of_layers() if case == "one set" else pair(PLAIN)
    everything = 4 * sum(p.nbytes for p in model.parameters())
    assert [rank.bytes for rank in found[case]] == pytest.approx([everything / 2] * 2, rel=0.02)
    if case != "one set":
        assert [rank.bytes for rank in found["all", False]] == pytest.approx([everything] * 2, rel=0.02)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, optim: OptimConfig) -> list[Any]:
    """Validations, each beside one of a plain model with the same weights."""
    call, seen = Validator.__call__, list[Any]()

    def watch(self: Validator, module: Any) -> Any:
        found = call(self, module)
        with module.whole_model() as model:
            plain = Seq2SeqModule(copy.deepcopy(model), optim, 1, 0, Precision.fp32)
        seen.append((found, call(self, plain)))
        return found

    monkeypatch.setattr(Validator, "__call__", watch)
    return seen


Run = Callable[..., Any]


def test_a_run_validates_freezes_and_leaves_a_step_out_as_ddp_does(
    new_model: Run, make_run: Run, validator: Validator, optim: OptimConfig, watched: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fresh = frozenset(name for name, _ in new_model().named_parameters() if "crossattention" in name)
    options = {
        "devices": 2,
        "validate_every_steps": 2,
        "validator": validator,
        "optim": replace(optim, freeze_warm_steps=1),
        "fresh": fresh,
    }
    step = [0]

    def broken(model: Any, micro: MicroBatch, *given: Any, **more: Any) -> torch.Tensor:
        found = loss_sum(model, micro, *given, **more)
        return found * float("nan") if (step[0], distributed.rank()) == (3, 1) else found

    def run() -> Any:
        made = {}
        for file in (sharding_file, sys.modules[Seq2SeqModule.__module__]):
            monkeypatch.setattr(file, "loss_sum", broken)
        for name in ("sharded", "ddp"):
            watch = lambda batch, _: step.__setitem__(0, batch.step)  # noqa: E731
            ended = make_run(new_model(dropout=0.0), 4, name=name, sharding=name == "sharded", watch=watch, **options)
            weights = [p.detach().numpy() for p in ended.model.parameters()]
            made[name] = ended.rows, weights, ended.callback.progress, list(watched)
            watched.clear()
        return made

    for made in on_two_ranks(run):
        (rows, weights, progress, seen), (expected_rows, expected, _, _) = made["sharded"], made["ddp"]
        assert progress.skipped_steps == 1
        assert [len(found.examples) for found, _ in seen] == [4, 4]
        assert all(found == plain for found, plain in seen)
        for row, other in zip(rows, expected_rows, strict=True):
            numbers = {key: value for key, value in other.items() if value is not None}  # the loss that is none
            assert {key: row[key] for key in numbers} == pytest.approx(numbers, rel=1e-4)
            assert row.keys() == other.keys()
        for p, q in zip(weights, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(p), torch.from_numpy(q), rtol=1e-3, atol=1e-5)


def test_a_pass_that_does_not_fit_is_not_split(
    new_model: Callable[..., Any], make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: Any, micro: MicroBatch, *given: Any, **more: Any) -> torch.Tensor:
        if distributed.rank() == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss_sum(model, micro, *given, **more)

    def run() -> str:
        monkeypatch.setattr(sharding_file, "loss_sum", full)
        try:
            make_run(new_model(), 2, devices=2, sharding=True)
        except EncDecError as error:
            return str(error)
        except RuntimeError:
            return "the other rank is lost"
        return "nothing"

    first, second = on_two_ranks(run)
    assert first == "the other rank is lost"
    assert second.startswith("data.max_micro_tokens: expected below ")
    assert "step 1: memory ran out in a pass that all ranks make together (trainer.sharding). Lower it" in second
