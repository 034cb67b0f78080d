"""Padding, masks and labels, written out."""

import numpy as np
import pytest
import torch

from encdec_train.data.collate import collate, pad_right


def test_a_micro_batch_written_out() -> None:
    micro = collate([[2, 7, 8, 3], [2, 9, 3]], [[7, 3], [9, 8, 3]], 2, (0, 1))
    assert micro.source_ids_BS.tolist() == [[2, 7, 8, 3], [2, 9, 3, 0]]
    assert micro.source_mask_BS.tolist() == [[True, True, True, True], [True, True, True, False]]
    assert micro.decoder_ids_BT.tolist() == [[2, 7, 3], [2, 9, 8]]
    assert micro.target_mask_BT.tolist() == [[True, True, False], [True, True, True]]
    assert micro.labels_N.tolist() == [7, 3, 9, 8, 3]


def test_types_are_those_that_a_model_takes() -> None:
    micro = collate([np.array([2, 3], dtype=np.int32)], [np.array([3], dtype=np.int32)], 2, (0, 0))
    dtypes = [value.dtype for value in vars(micro).values()]
    assert dtypes == [torch.int64, torch.bool, torch.int64, torch.bool, torch.int64]


def test_an_example_without_target_has_no_label() -> None:
    micro = collate([[0]], [[]], 2, (0, 0))
    assert (micro.source_ids_BS.tolist(), micro.source_mask_BS.tolist()) == ([[0]], [[True]])
    assert (micro.decoder_ids_BT.tolist(), micro.target_mask_BT.tolist()) == ([[2]], [[False]])
    assert micro.labels_N.shape == (0,)


@pytest.mark.parametrize(
    ("rows", "ids", "mask"),
    [
        ([[5], [6, 7]], [[5, 9], [6, 7]], [[True, False], [True, True]]),
        ([[9, 9], [9]], [[9, 9], [9, 9]], [[True, True], [True, False]]),  # pad ids inside a text are tokens
        ([[], [4]], [[9], [4]], [[False], [True]]),
        ([[]], [[9]], [[False]]),
    ],
)
def test_rows_are_padded_on_the_right(rows: list[list[int]], ids: list[list[int]], mask: list[list[bool]]) -> None:
    found = pad_right(rows, 9)
    assert (found[0].tolist(), found[1].tolist()) == (ids, mask)
