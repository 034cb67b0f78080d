"""A batch goes to a device whole, as a copy."""

import dataclasses

import pytest
import torch

from encdec_train.batch import MicroBatch
from encdec_train.data.collate import collate


def test_all_tensors_go_to_the_device() -> None:
    micro = collate([[2, 5, 3], [2, 3]], [[5, 3], [3]], 2, (0, 0))
    moved = micro.to("meta")
    assert isinstance(moved, MicroBatch)
    assert {value.device.type for value in vars(moved).values()} == {"meta"}
    assert {name: value.shape for name, value in vars(moved).items()} == {
        "source_ids_BS": (2, 3), "source_mask_BS": (2, 3), "decoder_ids_BT": (2, 2), "target_mask_BT": (2, 2),
        "labels_N": (3,),
    }  # fmt: skip
    assert {value.device.type for value in vars(micro).values()} == {"cpu"}


def test_values_are_kept_and_the_batch_cannot_be_changed() -> None:
    micro = collate([[2, 5, 3]], [[5, 3]], 2, (0, 0))
    same = micro.to(torch.device("cpu"))
    assert all(torch.equal(value, vars(micro)[name]) for name, value in vars(same).items())
    with pytest.raises(dataclasses.FrozenInstanceError):
        micro.labels_N = torch.zeros(1)


def test_halves_hold_the_same_examples_each_padded_to_its_own_longest() -> None:
    sources, targets = [[2, 5, 6, 3], [2, 7, 3], [2, 3]], [[5, 3], [6, 7, 3], [3]]
    first, second = collate(sources, targets, 2, (0, 0)).halves()
    for found, rows in ((first, slice(0, 1)), (second, slice(1, 3))):
        expected = collate(sources[rows], targets[rows], 2, (0, 0))
        assert all(torch.equal(value, vars(found)[name]) for name, value in vars(expected).items())
    assert (first.num_tokens, second.num_tokens) == (6, 12)


def test_the_weightless_batch_is_one_token_a_side_without_a_label() -> None:
    found = collate([[2, 5, 3], [2, 3]], [[5, 3], [3]], 2, (0, 0)).weightless()
    expected = collate([[2]], [[]], 2, (0, 0))
    assert all(torch.equal(value, vars(found)[name]) for name, value in vars(expected).items())
