"""One item of the loader is one optimizer step of one rank."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from encdec_train.batch import StepBatch
from encdec_train.config import Overlong
from encdec_train.data.datamodule import Seq2SeqDataModule, StepDataset, StepSampler
from encdec_train.data.load import Rows
from encdec_train.data.plan import BatchSize, Plan
from encdec_train.data.preprocess import EncodedSplit, Limits, TextCodec, encode_split


@pytest.fixture
def split(codec: TextCodec) -> EncodedSplit:
    """Ten pairs of one to four words."""
    words = ["the", "cat", "dog", "sat", "ran", "and", "a", "b", "c", "it"]
    sources = [" ".join(words[i : i + 1 + i % 4]) for i in range(10)]
    rows = Rows([str(i) for i in range(10)], sources, words, [[word] for word in words])
    return encode_split(rows, codec, Limits(9, 9, Overlong.refuse), name="train", cache_dir=None, cache_key=None)


@pytest.fixture
def plan(split: EncodedSplit) -> Plan:
    """Steps of four examples: 4, 4, 2."""
    return Plan(np.stack([split.source_lengths, split.target_lengths], axis=1), 1, BatchSize(4, None))


@pytest.fixture
def module_of(split: EncodedSplit, codec: TextCodec, plan: Plan) -> Callable[..., Seq2SeqDataModule]:
    """`module_of(steps done, steps in all, num_workers)`."""

    def make(done: int, total: int, num_workers: int = 0) -> Seq2SeqDataModule:
        return Seq2SeqDataModule(split, codec, plan, 1000, (done, total), num_workers)

    return make


def sources_of(item: StepBatch) -> list[list[int]]:
    """List the sources of an item's micro-batches, without padding."""
    found = []
    for micro in item.micro_batches:
        for ids, mask in zip(micro.source_ids_BS, micro.source_mask_BS, strict=True):
            found.append(ids[mask].tolist())
    return sorted(found)


def test_an_item_is_the_step_that_the_plan_says(split: EncodedSplit, codec: TextCodec, plan: Plan) -> None:
    dataset = StepDataset(split, codec, plan, 1000, (0, 1))
    for step in range(1, 7):
        epoch, examples = plan.batch(step)
        item = dataset[step - 1]
        assert (item.step, item.epoch, item.num_examples) == (step, epoch, len(examples))
        assert epoch == (step - 1) // 3
        sources = [split.source_ids[int(i)].tolist() for i in examples]
        assert sources_of(item) == sorted(sources)
        assert item.num_source_tokens == sum(map(len, sources))
        assert item.num_target_tokens == sum(len(split.target_ids[int(i)]) for i in examples)
        assert item.num_target_tokens == sum(len(micro.labels_N) for micro in item.micro_batches)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("budget", [1, 12, 1000])
def test_ranks_together_have_the_global_batch(
    num_ranks: int, budget: int, split: EncodedSplit, codec: TextCodec, plan: Plan
) -> None:
    whole = StepDataset(split, codec, plan, 1000, (0, 1))
    for index in range(3):
        items = [StepDataset(split, codec, plan, budget, (rank, num_ranks))[index] for rank in range(num_ranks)]
        assert {item.num_target_tokens for item in items} == {whole[index].num_target_tokens}
        assert {item.num_examples for item in items} == {whole[index].num_examples}
        assert sum(len(m.labels_N) for item in items for m in item.micro_batches) == whole[index].num_target_tokens
        busy = [item for item in items if any(len(micro.labels_N) for micro in item.micro_batches)]
        assert sorted(source for item in busy for source in sources_of(item)) == sources_of(whole[index])
        assert all(item.micro_batches for item in items)


def test_a_rank_without_examples_has_one_micro_batch_of_no_weight(
    split: EncodedSplit, codec: TextCodec, plan: Plan
) -> None:
    idle = [StepDataset(split, codec, plan, 1000, (rank, 8))[2] for rank in range(2, 8)]  # two examples, eight ranks
    for item in idle:
        assert [micro.source_ids_BS.tolist() for micro in item.micro_batches] == [[[0]]]
        assert item.micro_batches[0].labels_N.shape == (0,)
        assert item.num_examples == 2


def test_the_sampler_goes_on_after_the_steps_that_are_done() -> None:
    sampler = StepSampler(2, 5)
    assert (list(sampler), len(sampler)) == ([2, 3, 4], 5)
    assert list(StepSampler(5, 5)) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_gives_the_steps_in_order(num_workers: int, module_of: Callable[..., Seq2SeqDataModule]) -> None:
    expected = list(module_of(0, 7).train_dataloader())
    assert [item.step for item in expected] == [1, 2, 3, 4, 5, 6, 7]
    rest = list(module_of(4, 7, num_workers).train_dataloader())
    assert [item.step for item in rest] == [5, 6, 7]
    for ours, theirs in zip(rest, expected[4:], strict=True):
        for mine, their in zip(ours.micro_batches, theirs.micro_batches, strict=True):
            assert all(torch.equal(value, vars(their)[name]) for name, value in vars(mine).items())


def test_the_loader_takes_its_rank_from_the_trainer(module_of: Callable[..., Seq2SeqDataModule]) -> None:
    module = module_of(0, 3)
    found = []
    for rank in range(2):
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        found += sources_of(next(iter(module.train_dataloader())))
    module.trainer = None
    assert sorted(found) == sources_of(next(iter(module.train_dataloader())))


def test_only_the_micro_batches_go_to_the_device(module_of: Callable[..., Seq2SeqDataModule]) -> None:
    module: Any = module_of(0, 3)
    item = next(iter(module.train_dataloader()))
    moved = module.transfer_batch_to_device(item, torch.device("meta"), 0)
    assert {value.device.type for micro in moved.micro_batches for value in vars(micro).values()} == {"meta"}
    assert (moved.step, moved.epoch, moved.num_target_tokens) == (item.step, item.epoch, item.num_target_tokens)
    assert {value.device.type for micro in item.micro_batches for value in vars(micro).values()} == {"cpu"}
