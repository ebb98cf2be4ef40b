"""Ensemble of small MLPs that predict the log error of a dreamed chunk; `trust` calibrates and reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from world_model.wam.normalizer import Normalizer

FARTHEST = 5.0
"""Inputs are clamped to this many standard deviations around the mean, because an MLP extrapolates badly."""


class Trust(nn.Module):
    """Ensemble of heads with different initial weights, each fitted to its own batches; their mean is the estimate.

    Args:
        dim: size of the input, see `trust.read`.
        n_heads: number of heads.
        width: units of the first hidden layer of a head.
    """

    def __init__(self, dim: int, n_heads: int = 3, width: int = 128) -> None:
        super().__init__()
        self.given = Normalizer((dim,), floor=1e-3, name="input of the trust heads")
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(dim, width),
                nn.SiLU(),
                nn.Dropout(0.2),
                nn.Linear(width, width // 2),
                nn.SiLU(),
                nn.Linear(width // 2, 1),
            )
            for _ in range(n_heads)
        )

    def forward(self, given: Tensor) -> Tensor:
        """Return the log error predicted by each head (n_heads, n), from the result of `trust.read` (n, dim)."""
        normalised = self.given(given).clamp(-FARTHEST, FARTHEST)
        return torch.stack([head(normalised).squeeze(-1) for head in self.heads])
