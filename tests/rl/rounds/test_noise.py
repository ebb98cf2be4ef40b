"""The noise of exploration that a task allows, computed by hand from measured successes."""

from __future__ import annotations

import pytest

from rewards.errors import UserError
from rl.config import DreamConfig, TrainConfig
from rl.rounds.evaluate import EpisodeResult
from rl.rounds.noise import SMALLEST, fit_noise


def episodes(n: int, n_successes: int, has_success: bool = True) -> list[EpisodeResult]:
    return [EpisodeResult("push", i, i < n_successes, 10, 0.0, has_success) for i in range(n)]


def test_noise_falls_until_the_share_of_success_is_left() -> None:
    """Rates of 16/32 and 4/32 are exp(-c 0.4^2) = 1/4 apart, so half is left where c noise^2 = log 2."""
    fitted = fit_noise(0.4, episodes(30, 15), episodes(30, 3), keeps=0.5, largest=0.4)
    assert fitted.noise_std == pytest.approx(0.4 / 2**0.5)
    assert str(fitted) == (
        "exploring: 3 of 30 episodes succeed with noise of 0.4, 15 of 30 without; noise of the next dream: 0.283"
    )


def test_noise_that_costs_little_grows_up_to_the_largest() -> None:
    """Rates of 16/32 and 8/32: half is left, and a quarter is left with sqrt(2) times the noise."""
    grown = fit_noise(0.2, episodes(30, 15), episodes(30, 7), keeps=0.25, largest=0.4)
    assert grown.noise_std == pytest.approx(0.2 * 2**0.5)
    assert fit_noise(0.2, episodes(30, 15), episodes(30, 7), keeps=0.25, largest=0.25).noise_std == 0.25
    assert fit_noise(0.2, episodes(30, 15), episodes(30, 15), keeps=0.7, largest=0.4).noise_std == 0.4
    assert fit_noise(0.2, episodes(30, 0), episodes(30, 9), keeps=0.7, largest=0.4).noise_std == 0.4


def test_noise_is_never_so_small_that_nothing_is_learned() -> None:
    fitted = fit_noise(0.06, episodes(998, 998), episodes(998, 0), keeps=0.99, largest=0.4)
    assert fitted.noise_std == SMALLEST * 0.4


def test_without_reported_success_the_noise_stays() -> None:
    none = [episodes(4, 0, has_success=False)] * 2
    assert fit_noise(0.2, *none, keeps=0.7, largest=0.4).noise_std == 0.2


def test_a_policy_with_noise_of_its_own_is_refused() -> None:
    dream = DreamConfig(world_model="mine.py:Model", noise_keeps=0.7, n_episodes=8)
    with pytest.raises(UserError) as error:
        TrainConfig(policy="gaussian", dream=dream).check()
    assert str(error.value) == "dream.noise_keeps: policy=gaussian learns its noise; leave dream.noise_keeps out"
