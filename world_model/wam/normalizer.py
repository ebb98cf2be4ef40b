"""Mean and standard deviation of features; they are part of the model and do not change after pre-training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rewards.errors import UserError


class Normalizer(nn.Module):
    """Normalise a feature to mean 0 and standard deviation 1, and back.

    Args:
        shape: shape of the statistics, equal to the last dimensions of the feature.
        floor: smallest standard deviation; otherwise a feature that hardly changes would be amplified to noise.
        name: name of the feature in errors.
    """

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, shape: tuple[int, ...], floor: float, name: str) -> None:
        super().__init__()
        self.floor, self.name, self._was_fitted = floor, name, False
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, values: Tensor, centered: bool = True) -> None:
        """Set the statistics from `values` (n, *shape). With `centered=False` the mean stays 0.

        Raises:
            UserError: there are no values, or some are not finite.
        """
        if len(values) == 0 or not torch.isfinite(values).all():
            raise UserError(
                f"statistics of {self.name!r}: expected finite values of at least one frame, got {len(values)}"
            )
        if centered:
            self.mean.copy_(values.mean(0))
        self.std.copy_((values - self.mean).square().mean(0).sqrt().clamp(min=self.floor))
        self.fitted.fill_(True)

    def forward(self, values: Tensor) -> Tensor:
        """Normalise `values` (..., *shape); `UserError` if the statistics are not set."""
        self.check_fitted()
        return (values - self.mean) / self.std

    def invert(self, values: Tensor) -> Tensor:
        """Undo `forward` for normalised `values` (..., *shape)."""
        return values * self.std + self.mean

    def check_fitted(self) -> None:
        """Raise `UserError` if the statistics are not set."""
        if self._was_fitted:  # remember the answer: reading a tensor on a GPU waits for all its work
            return
        if not self.fitted:
            raise UserError(
                f"feature {self.name!r} has no statistics; fit the normaliser or load a pretrained checkpoint"
            )
        self._was_fitted = True
