import pytest
import torch

from encdec_train.decoding.beams import Beams, best
from encdec_train.decoding.cache import Cache


@pytest.mark.parametrize("size", [3, 64, 700, 5001])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_best_are_those_of_topk(size: int, count: int) -> None:
    torch.manual_seed(size)
    scores = torch.randn(4, 2, size)
    scores[0, 0, -1] = 9.0  # in what is left over behind the last block
    scores[0, 1, : size // 2] = -torch.inf
    scores[1, 1] = -torch.inf
    scores[2, 0, size // 2] = torch.nan
    values, places = best(scores, count)
    wanted = scores.topk(count, -1)
    assert torch.equal(values.nan_to_num(7.0), wanted.values.nan_to_num(7.0))
    assert torch.equal(scores.gather(-1, places).nan_to_num(7.0), wanted.values.nan_to_num(7.0))
    finite = wanted.values.isfinite() | wanted.values.isnan()
    assert torch.equal(places[finite], wanted.indices[finite])


def test_equal_scores_are_all_there() -> None:
    scores = torch.zeros(1, 1000)
    scores[0, [3, 70, 999]] = 1.0
    values, places = best(scores, 3)
    assert values.tolist() == [[1.0, 1.0, 1.0]]
    assert sorted(places[0].tolist()) == [3, 70, 999]


def beams(*indices: int) -> Beams:
    """Make examples whose every number is their own."""
    own = torch.tensor(indices)
    flat, wide = own[:, None].expand(-1, 2).clone(), own[:, None, None].expand(-1, 2, 5).clone()
    cache = Cache([own.float()[:, None, None, None, None].repeat(1, 3, 2, 1, 1)],
                  torch.zeros(len(own), 1, 1, 3), torch.zeros(len(own), 2, 4, dtype=torch.bool))  # fmt: skip
    return Beams(list(indices), own.clone(), flat.clone(), own > 0, wide.clone(), flat.float(), wide.clone(),
                 flat.float(), flat.clone(), own > 0, wide.float(), own > 0, own > 0, cache)  # fmt: skip


def held(batch: Beams) -> list[int]:
    """Return the examples, after a look at every tensor."""
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            wanted = beams(*batch.index)
            assert torch.equal(value, getattr(wanted, name)), name
    assert batch.cache.cross[0][:, 0, 0, 0, 0].tolist() == batch.index
    return batch.index


@pytest.mark.parametrize(
    ("holes", "left"),
    [([], [1, 2, 3, 4, 5]), ([4], [1, 2, 3, 4]), ([0], [5, 2, 3, 4]), ([1, 3], [1, 5, 3]), ([0, 1, 2], [4, 5]),
     ([0, 4], [4, 2, 3]), ([0, 1, 2, 3], [5])],
)  # fmt: skip
def test_the_last_take_the_rows_of_those_that_leave(holes: list[int], left: list[int]) -> None:
    batch = beams(1, 2, 3, 4, 5)
    batch.close_ranks(torch.tensor(holes, dtype=torch.int64))
    assert held(batch) == left


def test_others_enter_in_the_middle_and_at_the_end() -> None:
    batch = beams(1, 2, 3)
    batch.extend(5)
    batch.put(torch.tensor([1, 3, 4]), beams(7, 8, 9))
    assert held(batch) == [1, 7, 3, 8, 9]
    assert held(batch.take(torch.tensor([3, 1]))) == [8, 7]


def test_who_has_finished_is_out_of_the_way() -> None:
    batch = beams(1, 2)
    batch.cache.visible[:] = True
    batch.finish(1)
    assert (batch.live.tolist(), batch.steps.tolist()) == ([True, False], [1, 0])
    assert batch.cache.visible.any(2).any(1).tolist() == [True, False]
