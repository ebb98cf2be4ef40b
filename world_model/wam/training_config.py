"""Config of a training stage, in its own module because it must load without torch."""

from __future__ import annotations

from dataclasses import dataclass

from rewards.checks import at_least, not_negative_finite, positive_finite
from rewards.errors import UserError

ATOMS = ("joint", "policy", "dream", "inverse", "video")
"""Modes of use, for each of which training draws samples; see `sample_noise_levels`."""


@dataclass(frozen=True)
class StageConfig:
    """Settings of a training stage. `atoms` are the sampling weights of the modes, in the order of `ATOMS`."""

    n_steps: int = 10_000  # optimizer steps; 0: skip the stage
    batch_size: int = 256  # windows
    n_parts: int = 1  # of a batch that are computed one after the other, which takes less memory
    recompute: bool = False  # compute activations again in the backward pass: less memory, more time
    learning_rate: float = 1e-3  # its largest value, reached after the warm-up
    read_out_learning_rate: float = 2e-3  # of the success and progress read-outs, which nothing else depends on
    warmup_steps: int = 200  # optimizer steps in which the learning rate rises from 0
    weight_decay: float = 0.01  # of AdamW
    max_grad_norm: float = 1.0  # longer gradients are scaled down to this length
    # how often each mode is trained, relative to the others: joint, policy, dream, inverse, video
    atoms: tuple[float, ...] = (0.1, 0.0, 0.65, 0.15, 0.1)
    log_every: int = 100  # optimizer steps
    save_every: int = 1000  # optimizer steps
    seed: int = 0  # of the batches

    def check(self) -> None:
        """Raise `UserError` if a number is out of range, or `atoms` has not one weight per mode."""
        at_least(self, 0, "n_steps")
        at_least(self, 1, "batch_size", "n_parts", "warmup_steps", "log_every", "save_every")
        not_negative_finite(self, "weight_decay")
        positive_finite(self, "learning_rate", "read_out_learning_rate", "max_grad_norm")
        if len(self.atoms) != len(ATOMS) or min(self.atoms) < 0 or sum(self.atoms) <= 0:
            raise UserError(f"atoms={self.atoms}: expected {len(ATOMS)} weights, of {', '.join(ATOMS)}")
