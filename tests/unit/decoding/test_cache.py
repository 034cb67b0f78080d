"""Attention over the places of all beams is attention of each beam to its own past."""

import pytest
import torch

from encdec_train.decoding.cache import BLOCK_PLACES, Cache

HEADS, SIZE = 2, 3
NEAR = 1e-6
Past = list[list[list[torch.Tensor]]]  # `[N][W]`: keys and values `[2, H, D]` of each token of a beam


def empty(num: int, width: int, sources: int = 4, seed: int = 0) -> Cache:
    cross = [torch.randn(num, sources, 2, HEADS, SIZE, generator=torch.Generator().manual_seed(seed))]
    visible = torch.zeros(num, width, BLOCK_PLACES, dtype=torch.bool)
    return Cache(cross, torch.zeros(num, 1, 1, sources), visible)


def expected(query: torch.Tensor, past: list[torch.Tensor]) -> torch.Tensor:
    """Attend with one query `[H, D]` to a list of keys and values, head by head."""
    keys, values = torch.stack(past, 1)
    found = [((keys[:, h] @ query[h]) * 0.5).softmax(0) @ values[:, h] for h in range(HEADS)]
    return torch.cat(found)


def read(cache: Cache, past: Past, width: int) -> float:
    """Let every beam read a random token; return how far what it sees is from attention to its own past."""
    num = len(past)
    parts = torch.randn(num, width, 3, HEADS, SIZE)
    cache.start_step(width)
    found = cache.attend_own(0, parts, 0.5)
    apart = torch.zeros(num, width)
    for row in range(num):
        for beam, beams_past in enumerate(past[row]):
            beams_past.append(parts[row, min(beam, width - 1), 1:])
            if beam < width:
                apart[row, beam] = (found[row, beam] - expected(parts[row, beam, 0], beams_past)).abs().max()
    return apart.max().item()


def descend(cache: Cache, past: Past, parents: torch.Tensor) -> None:
    cache.choose(parents)
    past[:] = [[list(beams[parent]) for parent in row] for beams, row in zip(past, parents.tolist(), strict=True)]


@pytest.mark.parametrize("width", [1, 4])
def test_each_beam_sees_its_own_past(width: int) -> None:
    torch.manual_seed(0)
    cache, past = empty(3, width), [[[] for _ in range(width)] for _ in range(3)]  # type: Cache, Past
    for _ in range(2):  # a prompt that is read once for all beams
        assert read(cache, past, 1) < NEAR
    for _ in range(2 * BLOCK_PLACES):
        assert read(cache, past, width) < NEAR
        descend(cache, past, torch.randint(width, (3, width)))


def test_an_example_fills_little_more_than_the_tokens_of_one_beam() -> None:
    torch.manual_seed(0)
    cache, past = empty(5, 4), [[[] for _ in range(4)] for _ in range(5)]  # type: Cache, Past
    for _ in range(60):
        assert read(cache, past, 4) < NEAR
        descend(cache, past, torch.randint(4, (5, 4)))
    different = max(len({id(token) for beam in beams for token in beam}) for beams in past)
    cache.start_step(4)
    assert different <= cache.visible[:, :, : cache._places].shape[2] < 60 + 4 * 8  # of 244 that were written


def test_examples_that_enter_and_leave_keep_their_past() -> None:
    torch.manual_seed(0)
    cache, past = empty(3, 2, sources=5), [[[], []] for _ in range(3)]  # type: Cache, Past
    for _ in range(3):
        assert read(cache, past, 2) < NEAR
        descend(cache, past, torch.randint(2, (3, 2)))
    sources = cache.cross[0].clone()

    cache.forget(1)
    cache.put(torch.tensor([1]), new := empty(1, 2, sources=3, seed=1))
    past[1] = [[], []]
    assert read(cache, past, 2) < NEAR
    assert cache.cross_mask[:, 0, 0].tolist() == [[0.0] * 5, [0.0] * 3 + [-torch.inf] * 2, [0.0] * 5]
    assert torch.equal(cache.cross[0][1, :3], new.cross[0][0])

    cache.extend(4)
    cache.put(torch.tensor([3]), wide := empty(1, 2, sources=6, seed=2))
    past.append([[], []])
    assert read(cache, past, 2) < NEAR
    assert torch.equal(cache.cross[0][3], wide.cross[0][0])
    assert torch.equal(cache.cross[0][[0, 2], :5], sources[[0, 2]])

    cache.put(torch.tensor([0]), cache.take(torch.tensor([1])))
    cache.cut(3)
    past[:] = [[list(beam) for beam in past[1]], past[1], past[2]]
    assert cache.cross[0].shape[1] == 5  # what the longest of the three needs
    assert read(cache, past, 2) < NEAR
    query = torch.randn(3, 2, HEADS, SIZE)
    found = cache.attend_source(0, query, 0.5)
    assert torch.allclose(found[0, 0], expected(query[0, 0], list(new.cross[0][0])), atol=NEAR)
    assert torch.allclose(found[2, 1], expected(query[2, 1], list(sources[2])), atol=NEAR)


def test_a_prompt_that_was_read_enters_too() -> None:
    torch.manual_seed(0)
    cache, past = empty(2, 2), [[[], []] for _ in range(2)]  # type: Cache, Past
    assert read(cache, past, 2) < NEAR
    new, begun = empty(1, 2), [[[], []]]  # type: Cache, Past
    for _ in range(BLOCK_PLACES + 3):
        assert read(new, begun, 1) < NEAR
    cache.put(torch.tensor([0]), new)
    past[0] = begun[0]
    assert read(cache, past, 2) < NEAR
