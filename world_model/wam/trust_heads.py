"""Ensemble of small MLPs that predict the log error of a dreamed chunk; `trust` calibrates and reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from world_model.wam.normalizer import Normalizer

FARTHEST = 5.0
"""Inputs are clamped to so many standard deviations around the mean: beyond, an MLP may return anything."""


class Trust(nn.Module):
    """Heads with different first weights, each fitted to its own batches; the mean of their outputs counts.

    Args:
        dim: size of the input, see `trust.read`.
        n_heads: number of heads.
        width: units of the first layer of a head.
    """

    def __init__(self, dim: int, n_heads: int = 3, width: int = 128) -> None:
        super().__init__()
        self.given = Normalizer((dim,), floor=1e-3, name="what is read of a dreamed chunk")
        self.heads = nn.ModuleList(
            nn.Sequential(
                *(nn.Linear(dim, width), nn.SiLU(), nn.Dropout(0.2)),
                *(nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, 1)),
            )
            for _ in range(n_heads)
        )

    def forward(self, given: Tensor) -> Tensor:
        """What `trust.read` returned (n, dim) -> log error by each head (n_heads, n)."""
        normalised = self.given(given).clamp(-FARTHEST, FARTHEST)
        return torch.stack([head(normalised).squeeze(-1) for head in self.heads])
