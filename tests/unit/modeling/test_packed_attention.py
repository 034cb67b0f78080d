"""Groups of examples attend as each example alone does, with dropout too, and the backward pass is its derivative."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from encdec_train.modeling import packed_attention
from encdec_train.modeling.dropout import drop, keep_mask

QUERIES, KEYS, HEADS, SIZE = (9, 8, 8, 3, 1, 1), (4, 7, 7, 2, 5, 1), 2, 4


def heads(dtype: torch.dtype = torch.float64, keys: tuple[int, ...] = KEYS) -> list[torch.Tensor]:
    """Draw queries, keys and values as the library hands them on: a view of `[1, tokens, heads, size]`."""
    draw = torch.Generator().manual_seed(0)
    counts = sum(QUERIES), sum(keys), sum(keys)
    rows = [torch.randn(1, count, HEADS, SIZE, generator=draw, dtype=torch.float64).to(dtype) for count in counts]
    return [each.transpose(1, 2).requires_grad_() for each in rows]


@pytest.mark.parametrize("causal", [False, True])
def test_without_dropout_it_is_sdpa_of_each_example(causal: bool) -> None:
    keys = QUERIES if causal else KEYS
    torch.manual_seed(0)
    query, key, value = heads(keys=keys)
    parts = zip(query.split(QUERIES, 2), key.split(keys, 2), value.split(keys, 2), strict=True)
    expected = torch.cat([F.scaled_dot_product_attention(*part, is_causal=causal, scale=0.3) for part in parts], 2)
    found = packed_attention.attend(
        (query, key, value), (QUERIES, keys, causal), 0.3, 1e-9
    )  # the least that is dropped
    assert found.shape == (1, 30, HEADS, SIZE)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("causal", "keys"), [(False, KEYS), (True, QUERIES)])
def test_its_gradient_is_the_derivative(causal: bool, keys: tuple[int, ...]) -> None:
    def attend(*inputs: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return packed_attention.attend(inputs, (QUERIES, keys, causal), 0.3, 0.4)

    assert torch.autograd.gradcheck(attend, heads(keys=keys))


@pytest.mark.parametrize("lengths", [(5,), (1,), (5, 5), (5, 3)])
def test_the_gradient_that_comes_in_stays_as_it_is(lengths: tuple[int, ...]) -> None:
    """It may be another branch's too, or a single number spread over all."""
    inputs = [each[:, :, : sum(lengths)] for each in heads(keys=QUERIES)]
    found = packed_attention.attend(inputs, (lengths, lengths, False), 0.3, 0.5)
    upstream = torch.randn(found.shape, dtype=found.dtype)
    before = upstream.clone()
    found.backward(upstream, retain_graph=True)
    assert torch.equal(upstream, before)
    found.sum().backward()


def test_dropout_falls_on_the_weights() -> None:
    """One group of equal lengths: its mask can be drawn again."""
    query, key, value = (each[:, :, 9:25] for each in heads(keys=QUERIES))
    torch.manual_seed(5)
    found = packed_attention.attend((query, key, value), ((8, 8), (8, 8), False), 0.3, 0.5)
    torch.manual_seed(5)
    keep, factor = keep_mask((2 * HEADS, 8, 8), 0.5, torch.float64)
    split = [each.unflatten(2, (2, 8)).transpose(1, 2)[0] for each in (query, key, value)]  # [examples, heads, 8, size]
    weights = (0.3 * split[0] @ split[1].transpose(-1, -2)).softmax(-1) * keep.view(2, HEADS, 8, 8) * factor
    torch.testing.assert_close(found, (weights @ split[2]).transpose(1, 2).reshape(1, 16, HEADS, SIZE))
    assert 0.3 < float((keep == 0).double().mean()) < 0.7


def test_bfloat16_is_close() -> None:
    values = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = heads(dtype)
        torch.manual_seed(7)
        found = packed_attention.attend(inputs, (QUERIES, KEYS, False), 0.5, 0.2)
        found.float().pow(2).sum().backward()
        assert found.dtype is dtype
        values.append([found.detach().float(), *(each.grad.float() for each in inputs)])
    for exact, rounded in zip(*values, strict=True):
        assert (exact - rounded).norm() < 0.02 * exact.norm()


def test_groups_hold_every_token_once_and_little_padding() -> None:
    lengths = tuple(sorted(torch.randint(2, 120, (100,), generator=torch.Generator().manual_seed(1)).tolist())[::-1])
    groups = packed_attention._groups(lengths, lengths, False)
    assert [group.queries.tokens.start for group in groups[1:]] == [group.queries.tokens.stop for group in groups[:-1]]
    assert (groups[0].queries.tokens.start, groups[-1].queries.tokens.stop) == (0, sum(lengths))
    assert sum(g.bias.numel() for g in groups) < 1.3 * sum(n * n for n in lengths)
    assert 13 <= len(groups) <= 40


def test_drop_is_the_same_mask() -> None:
    torch.manual_seed(9)
    keep, factor = keep_mask((5, 7), 0.3, torch.float32)
    torch.manual_seed(9)
    assert torch.equal(drop(torch.ones(5, 7), 0.3), keep * factor)
