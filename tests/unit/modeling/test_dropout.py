"""Our dropout drops at the wanted rate, keeps the expectation, and is torch's own where it has nothing to add."""

import pytest
import torch
from torch import nn

from encdec_train.modeling import dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_and_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    found = dropout.drop(torch.ones(1000, 999), rate)
    kept = found[found != 0]
    assert 1 - len(kept) / found.numel() == pytest.approx(rate, abs=0.002)  # 4 standard errors and more
    assert found.mean().item() == pytest.approx(1.0, abs=0.015)
    assert kept.unique().tolist() == pytest.approx([1 / (1 - rate)], rel=1e-4)


def test_neighbours_are_independent() -> None:
    torch.manual_seed(1)
    zero = dropout.drop(torch.ones(400_000), 0.5) == 0
    for distance in (1, 2, 3, 4, 5):
        assert (zero[:-distance] & zero[distance:]).float().mean().item() == pytest.approx(0.25, abs=0.004)


def test_the_gradient_passes_where_the_value_does() -> None:
    torch.manual_seed(2)
    values = torch.randn(7, 13, dtype=torch.float64, requires_grad=True)
    found = dropout.drop(values, 0.3)
    found.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad * values.detach(), found.detach())
    assert 10 < (found == 0).sum() < 50


def test_masks_follow_the_seed() -> None:
    layer = dropout.Dropout(0.5)
    seen = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        seen.append(layer(torch.ones(64)))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_nothing_is_dropped_in_eval_mode_and_all_or_nothing_is_torchs() -> None:
    assert torch.equal(dropout.Dropout(0.5).eval()(torch.ones(9)), torch.ones(9))
    assert torch.equal(dropout.Dropout(0.0)(torch.ones(9)), torch.ones(9))
    assert torch.equal(dropout.Dropout(1.0)(torch.ones(9)), torch.zeros(9))


def test_installing_changes_the_class_alone() -> None:
    class Other(nn.Dropout):
        pass

    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2), Other(0.3))
    before = list(model.state_dict())
    dropout.install(model)
    assert [type(module) for module in model] == [nn.Linear, dropout.Dropout, Other]
    assert (model[1].p, list(model.state_dict())) == (0.2, before)
