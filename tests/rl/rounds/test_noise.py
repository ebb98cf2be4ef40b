"""Which noise of exploration is chosen, and who is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rewards.errors import UserError
from rl.policies.gaussian import GaussianPolicy
from rl.rounds.evaluate import Exploring
from rl.rounds.noise import N_LEVELS, check_noise, fit_noise


class Noisy:
    """A policy whose episodes succeed less often with more noise."""

    noise_std = 0.4

    def __init__(self, without: float = 0.5) -> None:
        self.without = without
        self.asked: list[float] = []

    def encode(self, *_: Any) -> None:
        pass

    def rate(self, acting: Any) -> float:
        if acting is self:
            return self.without
        assert isinstance(acting, Exploring) and acting.policy is self
        self.asked.append(self.noise_std)
        return max(self.without - self.noise_std, 0.0)


def fitted(policy: Any, keeps: float) -> Any:
    return fit_noise(policy, torch.Generator(), 0.4, keeps, policy.rate)


def test_the_largest_noise_that_keeps_enough_success_is_chosen() -> None:
    policy = Noisy()
    found = fitted(policy, keeps=0.7)  # 35 %: noise of at most 0.15
    assert policy.asked == pytest.approx([0.4, 0.2828, 0.2, 0.1414], abs=1e-4)
    assert policy.noise_std == found.noise_std == policy.asked[-1]
    assert found.without == 0.5 and found.exploring == pytest.approx(0.3586, abs=1e-4)
    assert str(found) == "noise of exploration 0.141: 36 % of dreamed episodes succeed with it, 50 % without"


def test_the_search_begins_anew_with_the_largest_noise() -> None:
    policy = Noisy()
    policy.noise_std = 0.05  # of the dream before
    fitted(policy, keeps=0.1)  # 5 %: noise of at most 0.45
    assert policy.noise_std == 0.4


def test_where_no_noise_keeps_enough_the_smallest_is_taken() -> None:
    policy = Noisy()
    fitted(policy, keeps=0.99)
    assert len(policy.asked) == N_LEVELS == 7 and policy.noise_std == pytest.approx(0.05)


def test_without_any_success_the_noise_is_the_largest() -> None:
    policy = Noisy(without=0.0)
    fitted(policy, keeps=0.7)
    assert policy.noise_std == 0.4


def test_a_policy_with_noise_of_its_own_is_refused(make_point: Callable[..., Any]) -> None:
    with pytest.raises(UserError) as error:
        check_noise(GaussianPolicy(make_point(2), chunk_size=2), "gaussian")
    assert str(error.value) == (
        "dream.noise_keeps: the policy gaussian sets its noise itself; leave dream.noise_keeps out"
    )
