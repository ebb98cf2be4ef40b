"""How a training stage is configured, apart from the training itself, so that it can be read without torch."""

from __future__ import annotations

from dataclasses import dataclass

from rewards.checks import at_least, not_negative_finite, positive_finite
from rewards.errors import UserError

ATOMS = ("joint", "policy", "dream", "inverse", "video")
"""Corners of the square (t_video, t_action) that training visits on purpose; see `sample_noise_levels`."""


@dataclass(frozen=True)
class StageConfig:
    """How long and on what a stage trains. `atoms` weigh the training samples of each mode, in the order of `ATOMS`."""

    n_steps: int = 10_000  # of the optimizer; 0: the stage is left out
    batch_size: int = 256  # windows
    learning_rate: float = 1e-3
    read_out_learning_rate: float = 2e-3  # of the success and progress read-outs, which nothing else depends on
    warmup_steps: int = 200
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    atoms: tuple[float, ...] = (0.1, 0.0, 0.65, 0.15, 0.1)
    log_every: int = 100
    save_every: int = 1000
    seed: int = 0

    def check(self) -> None:
        """Refuse sizes and weights that mean nothing."""
        at_least(self, 0, "n_steps")
        at_least(self, 1, "batch_size", "warmup_steps", "log_every", "save_every")
        not_negative_finite(self, "weight_decay")
        positive_finite(self, "learning_rate", "read_out_learning_rate", "max_grad_norm")
        if len(self.atoms) != len(ATOMS) or min(self.atoms) < 0 or sum(self.atoms) <= 0:
            raise UserError(f"atoms={self.atoms}: expected {len(ATOMS)} weights, of {', '.join(ATOMS)}")
