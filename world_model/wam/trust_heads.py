"""Ensemble of small networks that predict the log error of a dreamed chunk; `trust` calibrates and reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from world_model.wam.normalizer import Normalizer

FARTHEST = 5.0
"""Inputs are clamped to this many standard deviations around the mean, because an MLP extrapolates badly."""


class Trust(nn.Module):
    """Ensemble of heads with different initial weights, each fitted to its own batches; their mean is the estimate.

    The idea is that of deep ensembles (Lakshminarayanan et al., 1612.01474); only the mean is used.
    Errors accumulate along a dream, so each head has a memory: numbers that it writes after a chunk and reads at the
    next one. They are zero where a dream begins, at a real frame.

    Args:
        dim: size of the input, see `trust.read`.
        n_memory: numbers that each head carries from one chunk to the next; 0: it sees each chunk alone.
        n_heads: number of heads.
        width: units of the first hidden layer of a head.
    """

    def __init__(self, dim: int, n_memory: int = 0, n_heads: int = 3, width: int = 128) -> None:
        super().__init__()
        self.n_memory = n_memory
        self.given = Normalizer((dim,), floor=1e-3, name="input of the trust heads")
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(dim + n_memory, width),
                nn.SiLU(),
                nn.Dropout(0.2),
                nn.Linear(width, width // 2),
                nn.SiLU(),
                nn.Linear(width // 2, 1 + n_memory),
            )
            for _ in range(n_heads)
        )

    def begin(self, n: int) -> Tensor:
        """Return the memory of `n` dreams that begin now (n, n_heads, n_memory): zeros."""
        return self.given.mean.new_zeros(n, len(self.heads), self.n_memory)

    def normalised(self, given: Tensor) -> Tensor:
        """Normalise and clamp the result of `trust.read` (..., dim)."""
        values: Tensor = self.given(given)
        return values.clamp(-FARTHEST, FARTHEST)

    def forward(self, given: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the log error of a chunk.

        Args:
            given: result of `trust.read` (n, dim).
            memory: written after the chunk before (n, n_heads, n_memory).

        Returns:
            The prediction of each head (n_heads, n), and the memory for the next chunk.
        """
        normalised = self.normalised(given)
        found = [_chunk(head, normalised, memory[:, i]) for i, head in enumerate(self.heads)]
        return torch.stack([error for error, _ in found]), torch.stack([written for _, written in found], dim=1)

    def along(self, normalised: Tensor) -> Tensor:
        """Predict the log errors of whole dreams, each head for dreams of its own.

        Args:
            normalised: (n_heads, n, n_chunks, dim), the first chunk begins at a real frame.

        Returns:
            (n_heads, n, n_chunks).
        """
        found = []
        for head, dreams in zip(self.heads, normalised, strict=True):
            memory, errors = dreams.new_zeros(len(dreams), self.n_memory), []
            for chunk in dreams.unbind(1):
                error, memory = _chunk(head, chunk, memory)
                errors.append(error)
            found.append(torch.stack(errors, dim=1))
        return torch.stack(found)


def _chunk(head: nn.Module, normalised: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log error (n,) of a chunk, and the memory after it (n, n_memory), which is between -1 and 1."""
    out = head(torch.cat([normalised, memory], dim=-1))
    return out[:, 0], out[:, 1:].tanh()
