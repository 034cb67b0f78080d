"""bfloat16 is computed in, float32 is kept."""

import pytest
import torch

from encdec_train.config import Precision
from encdec_train.modeling.precision import autocast


@pytest.mark.parametrize(("precision", "dtype"), [(Precision.fp32, torch.float32), (Precision.bf16, torch.bfloat16)])
def test_matrix_products_are_computed_in_the_precision(precision: Precision, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(4, 4)
    with autocast(precision, "cpu"):
        product = layer(torch.ones(1, 4))
    assert product.dtype == dtype
    product.sum().backward()
    assert (layer.weight.dtype, layer.weight.grad.dtype) == (torch.float32, torch.float32)
