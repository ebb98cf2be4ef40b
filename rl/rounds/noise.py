"""The noise of exploration: as much as a task allows, measured on the exploring episodes before each dream.

The same noise costs some tasks little and others nearly all success (docs/ablation.md). Where hardly an exploring
episode succeeds, PPO learns another policy than the one that acts without noise. So half of the exploring episodes act
without noise, and the noise of the next dream is what leaves a given share of their success. The dream cannot measure
this: after a refit it shows less of the difference than there is. The episodes without noise are also where the policy
is judged, so a refit on both kinds is better there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rl.rounds.evaluate import EpisodeResult, have_success

SMALLEST = 0.125
"""The noise is at least this share of `ppo.noise_std`: with less, PPO hardly moves the policy."""


@dataclass(frozen=True)
class Fitted:
    """The noise of the next dream, and the episodes that it was chosen from."""

    noise_std: float
    measured: float  # noise of the exploring episodes
    without: Sequence[EpisodeResult]
    exploring: Sequence[EpisodeResult]

    def __str__(self) -> str:
        return (
            f"exploring: {_successes(self.exploring)} episodes succeed with noise of {self.measured:.3g}, "
            f"{_successes(self.without)} without; noise of the next dream: {self.noise_std:.3g}"
        )


def fit_noise(
    noise_std: float,
    without: Sequence[EpisodeResult],
    exploring: Sequence[EpisodeResult],
    keeps: float,
    largest: float,
) -> Fitted:
    """Choose the noise with which the share `keeps` of the success without noise is left.

    It follows from the two measured rates if success falls as exp(-c noise_std^2), which fits the image policies that
    were measured. A rate counts one success and one failure more than there were, so that it is never 0. Where the
    environment reports no success, the noise stays.

    Args:
        noise_std: of the exploring episodes.
        without: episodes without noise.
        exploring: episodes with noise.
        keeps: share of the success, in (0, 1).
        largest: noise that is chosen at most; the smallest is `SMALLEST` times this.
    """
    chosen = noise_std
    if have_success(without, exploring):
        lost = math.log(_rate(without) / _rate(exploring))
        # Noise that costs nothing may be as large as possible.
        factor = math.sqrt(-math.log(keeps) / lost) if lost > 0 else math.inf
        chosen = min(max(factor * noise_std, SMALLEST * largest), largest)
    return Fitted(chosen, noise_std, without, exploring)


def _rate(results: Sequence[EpisodeResult]) -> float:
    return (sum(result.success for result in results) + 1) / (len(results) + 2)


def _successes(results: Sequence[EpisodeResult]) -> str:
    return f"{sum(result.success for result in results)} of {len(results)}"
