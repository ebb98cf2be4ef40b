"""Attention of a single query is that of torch, with its gradients."""

import pytest
import torch
import torch.nn.functional as F

from world_model.wam.layers import FEW, attend


@pytest.mark.parametrize("n_keys", [1, 3, FEW, FEW + 1])
def test_attention_of_one_query_and_its_gradients_are_those_of_torch(n_keys):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(4, 5, n, 32, generator=generator).requires_grad_() for n in (1, n_keys, n_keys)]
    found, expected = attend(*parts), F.scaled_dot_product_attention(*parts)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(4, 5, 1, 32, generator=generator)
    gradients = [torch.autograd.grad((weights * y).sum(), parts) for y in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_attention_without_rows_has_none():
    q, keys = torch.zeros(0, 5, 1, 32), torch.zeros(0, 5, 3, 32)
    assert attend(q, keys, keys).shape == (0, 5, 1, 32)
