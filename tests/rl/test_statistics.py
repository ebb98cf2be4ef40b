"""Intervals and correlations against known numbers."""

import math
from dataclasses import dataclass

import pytest
import torch

from rl.statistics import correlation, describe, paired_gain, success_rate, wilson


@dataclass
class Ended:
    """An episode of which nothing is known but its end."""

    success: bool


def results(outcomes: str) -> list[Ended]:
    return [Ended(outcome == "1") for outcome in outcomes]


def test_wilson_against_known_numbers() -> None:
    # p = 0.1, n = 10: middle (0.1 + 3.8415 / 20) / 1.38415 = 0.2110, half 0.1932
    assert wilson(1, 10) == pytest.approx((0.01788, 0.40415), abs=1e-4)
    assert wilson(50, 100) == pytest.approx((0.40383, 0.59617), abs=1e-4)
    low, high = wilson(0, 20)
    assert low == pytest.approx(0.0, abs=1e-12) and high == pytest.approx(0.16113, abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_paired_gain_by_hand() -> None:
    # differences 1, 0, 0, -1, 1, 1 -> mean 1/3, variance (3 * (2/3)^2 + 2 * (1/3)^2 + (4/3)^2) / 5 = 2/3
    gain, low, high = paired_gain(results("010100"), results("110011"))
    assert gain == pytest.approx(1 / 3)
    assert high - gain == pytest.approx(1.959964 * math.sqrt(2 / 3 / 6))
    assert gain - low == pytest.approx(high - gain)
    with pytest.raises(ValueError):
        paired_gain(results("01"), results("011"))


def test_describe() -> None:
    assert success_rate(results("1100")) == 0.5
    assert describe(results("1" * 50 + "0" * 50)) == "50.0 % [40.4, 59.6] of 100"


def test_correlation_has_an_interval_and_says_when_there_is_nothing() -> None:
    x = torch.arange(40.0)
    found = correlation(x, x.square())
    assert found["rho"] == pytest.approx(1.0) and found["low"] == pytest.approx(1.0)
    noisy = correlation(x, torch.randn(40, generator=torch.Generator().manual_seed(0)))
    assert noisy["low"] < noisy["rho"] < noisy["high"] and noisy["high"] - noisy["low"] > 0.3
    assert math.isnan(correlation(x, torch.ones(40))["rho"])
    fourfold = [t.repeat_interleave(4) for t in (x, torch.randn(40, generator=torch.Generator().manual_seed(0)))]
    assert correlation(*fourfold, torch.arange(40).repeat_interleave(4)) == pytest.approx(noisy)  # 40 are 40
    rare = correlation(x, (x == 30).float())  # absent from a third of the resamples
    assert -1 <= rare["low"] < rare["high"] <= 1
