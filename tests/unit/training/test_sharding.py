"""Weights in parts over two ranks make the steps of one: gradients, whole weights, a resumed run, memory."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import EncoderDecoderModel

from benchmarks import splits
from benchmarks.splits import ONE_EXAMPLE, SPLITS, Measured, by_hand, difference, ours
from benchmarks.tiny_pair import Setting, pair
from benchmarks.two_ranks import on_two_ranks
from encdec_train.config import Share
from encdec_train.modeling.sharing import share

TWO = [split for split in SPLITS if split.ranks == 2]
UNEQUAL = next(split for split in TWO if split.name == "2 ranks: 1 + 3")
ALONE = SPLITS[0]
SETTINGS = {
    "float64": Setting(),  # smoothing, clipping and frozen embeddings
    "float64, one example left": Setting(num_examples=33),
    "float32": Setting(dtype=torch.float32),
}
PLAIN = Setting(frozen=False)
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}  # relative, as where nothing is sharded


def one_set_of_layers() -> EncoderDecoderModel:
    model = pair(PLAIN)
    assert share(model, Share.all)
    return model


class Scale(splits.Recorder):
    """Weighs what this rank holds when a step has ended, in bytes, and looks at what became of the model."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *given: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *given)
        states = [value for state in trainer.optimizers[0].state.values() for value in state.values() if value.ndim]
        held = [*pl_module.model.parameters(), *(p.grad for p in pl_module.model.parameters()), *states]
        self.measured.bytes = sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in held if t is not None)
        layers = [*pl_module.model.encoder.encoder.layer, *pl_module.model.decoder.bert.encoder.layer]
        self.measured.units = sum(type(layer).__name__.startswith("FSDP") for layer in layers)


@pytest.fixture(scope="module")
def found(one_thread: None) -> Mapping[Any, list[Any]]:
    """What each rank measured, by case; all cases in one pair of processes."""
    exact = {(name, split.name): (SETTINGS[name], split) for name in SETTINGS for split in TWO}

    def run() -> dict[Any, Any]:
        splits.Recorder = Scale
        measured = {key: ours(*case, sharding=True) for key, case in exact.items()}
        measured["one set"] = ours(PLAIN, UNEQUAL, one_set_of_layers(), sharding=True)
        for sharding in (False, True):
            model = pair(PLAIN)
            if sharding:
                for half in (model.encoder, model.decoder):
                    half.activation_checkpointing_enable({"use_reentrant": False})
            measured["computed again", sharding] = ours(PLAIN, UNEQUAL, model, sharding=sharding)
            measured["weights", sharding] = [p.detach().numpy() for p in model.parameters()]
        return measured

    first, second = on_two_ranks(run)
    return {key: [first[key], second[key]] for key in first}


def assert_equal(rank: Measured, expected: Measured, tolerance: float) -> None:
    assert len(rank.losses) == len(rank.norms) == len(rank.gradients) == 5
    assert rank.losses == pytest.approx(expected.losses, rel=tolerance)
    assert rank.norms == pytest.approx(expected.norms, rel=tolerance)
    assert difference(rank, expected) < tolerance


@pytest.mark.parametrize("split", [split.name for split in TWO])
@pytest.mark.parametrize("name", SETTINGS)
def test_five_steps_are_those_of_one_batch(name: str, split: str, found: Mapping[Any, list[Any]]) -> None:
    expected = by_hand(SETTINGS[name])
    for rank in found[name, split]:
        assert_equal(rank, expected, TOLERANCES[SETTINGS[name].dtype])
        assert rank.units == 4


def test_halves_of_one_set_of_layers_stay_one(found: Mapping[Any, list[Any]]) -> None:
    expected = ours(PLAIN, ALONE, one_set_of_layers())
    for rank in found["one set"]:
        assert_equal(rank, expected, 1e-10)
        assert rank.units == 0  # what is in two layers is held by the whole model's unit
        assert rank.gradients[0].keys() == dict(one_set_of_layers().named_parameters()).keys()


def test_layers_that_are_computed_again_and_the_weights_afterwards(found: Mapping[Any, list[Any]]) -> None:
    for sharded, ddp in zip(found["computed again", True], found["computed again", False], strict=True):
        assert_equal(sharded, ddp, 1e-10)
    for sharded, ddp in zip(found["weights", True], found["weights", False], strict=True):
        for p, q in zip(sharded, ddp, strict=True):  # in the model that was given, tied as it was
            torch.testing.assert_close(torch.from_numpy(p), torch.from_numpy(q), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", ["one set", ("computed again", True)], ids=str)
def test_a_rank_holds_half_of_weights_gradients_and_moments(case: Any, found: Mapping[Any, list[Any]]) -> None:
    model = one_set_of_layers() if case == "one set" else pair(PLAIN)
    everything = 4 * sum(p.nbytes for p in model.parameters())
    held = [rank.bytes for rank in found[case]]
    assert sum(held) == everything
    assert held == pytest.approx([everything / 2] * 2, rel=0.02)  # 40 tokens, 64 units: the halves are rows
    if case != "one set":
        assert [rank.bytes for rank in found["computed again", False]] == [everything] * 2


def test_a_run_validates_decodes_and_goes_on_to_the_bit(
    new_model: Callable[..., Any], make_run: Callable[..., Any], validator: Any
) -> None:
    options = {"devices": 2, "validator": validator, "validate_every_steps": 2, "checkpoint_every_steps": 1}

    def run() -> Any:
        seen: list[Any] = []
        call = type(validator).__call__

        def watched(self: Any, module: Any) -> Any:
            seen.append(call(self, module))
            with module.whole_model() as model:
                seen.append([p.detach().numpy().copy() for p in model.parameters()])
            return seen[-2]

        type(validator).__call__ = watched
        made = {}
        for name, sharding in (("sharded", True), ("ddp", False)):
            ended = make_run(new_model(dropout=0.0), 4, name=name, sharding=sharding, **options)
            made[name] = ended.rows, list(seen), [p.detach().numpy() for p in ended.model.parameters()]
            seen.clear()
        make_run(new_model(), 4, name="whole", sharding=True, **options)  # with dropout
        make_run(new_model(), 3, name="cut", sharding=True, **options)
        make_run(new_model(), 4, name="cut", sharding=True, **options)
        return made

    ranks = on_two_ranks(run)
    for made in ranks:
        (rows, seen, weights), (expected_rows, expected_seen, expected) = made["sharded"], made["ddp"]
        for row, other in zip(rows, expected_rows, strict=True):
            assert row == pytest.approx(other, rel=1e-4)
        assert len(seen) == len(expected_seen) == 4
        for at in (0, 2):
            assert seen[at].examples == expected_seen[at].examples
            assert len(seen[at].examples) == 4
        for p, q in zip(weights, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(p), torch.from_numpy(q), rtol=1e-3, atol=1e-5)
        assert all((p == q).all() for p, q in zip(seen[3], weights, strict=True))
    assert all((p == q).all() for p, q in zip(ranks[0]["sharded"][2], ranks[1]["sharded"][2], strict=True))
