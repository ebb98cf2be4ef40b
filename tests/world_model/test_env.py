"""The interface of batched environments: what needs no environment to be tested."""

from __future__ import annotations

import torch

from world_model.env import discounted


def test_discounted_sums_to_the_first_step() -> None:
    """1 + .5 * 1 + .25 * 2 = 2 and .5 * 4 = 2."""
    assert discounted(torch.tensor([[1.0, 1.0, 2.0], [0.0, 4.0, 0.0]]), 0.5).tolist() == [2.0, 2.0]
