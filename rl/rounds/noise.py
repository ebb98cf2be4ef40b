"""The noise of exploration: as large as a task allows, found in the dream before PPO begins there.

The same noise costs some tasks little and others nearly all success (docs/ablation.md). Where hardly an exploring
episode succeeds, PPO learns another policy than the one that acts without noise. So the noise is lowered until
exploring episodes keep a given share of the success without noise. Dreams are cheap, and no real episode is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator

from rewards.errors import UserError
from rl.policies.api import Policy, TrainablePolicy
from rl.rounds.evaluate import Exploring

FACTOR, N_LEVELS = 0.5**0.5, 7
"""Each level of noise is this times the one before; so many are tried, which go down to an eighth of the largest."""


@dataclass(frozen=True)
class Fitted:
    """A level of noise, and the share of dreamed episodes that succeed without noise and with this."""

    noise_std: float
    without: float
    exploring: float

    def __str__(self) -> str:
        rates = f"{100 * self.exploring:.0f} % of dreamed episodes succeed with it, {100 * self.without:.0f} % without"
        return f"noise of exploration {self.noise_std:.3g}: {rates}"


def fit_noise(
    policy: TrainablePolicy, generator: Generator, largest: float, keeps: float, rate: Callable[[Policy], float]
) -> Fitted:
    """Set `policy.noise_std` to the largest level at which exploring keeps enough of the success; else to the smallest.

    Args:
        policy: with noise that can be set, see `check_noise`.
        generator: draws the noise.
        largest: the first level.
        keeps: share of the success without noise that must be left.
        rate: returns the share of dreamed episodes that succeed with a policy, from the same starts at each call.
    """
    without = rate(policy)
    for level in range(N_LEVELS):
        policy.noise_std = largest * FACTOR**level
        exploring = rate(Exploring(policy, generator))
        if exploring >= keeps * without:
            break
    return Fitted(policy.noise_std, without, exploring)


def check_noise(policy: TrainablePolicy, name: str) -> None:
    """Refuse a policy whose noise is its own, such as `gaussian`.

    Raises:
        UserError: the policy has noise of its own.
    """
    if policy.noise_std == 0:
        raise UserError(f"dream.noise_keeps: the policy {name} sets its noise itself; leave dream.noise_keeps out")
