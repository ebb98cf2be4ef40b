"""Intervals and correlations against known numbers."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from rl.statistics import correlation, describe, holm, paired_gain, rank_violation, sign_test, success_rate, wilson


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


def paired(won: int, lost: int, n: int) -> tuple[float, float, float]:
    """Gain and interval of `n` pairs, of which the others end alike."""
    rest = "1" * (n - won - lost)
    return paired_gain(results("0" * won + "1" * lost + rest), results("1" * won + "0" * lost + rest))


def test_the_interval_of_a_paired_gain_against_published_ones() -> None:
    # Airway hyper-responsiveness of 21 children, Table V of Fagerland, Lydersen, Laake, Statistics in Medicine 33, 2014
    assert paired(1, 7, 21) == pytest.approx((-0.286, -0.517, -0.026), abs=5e-4)
    # Complete response of 161 patients, chapter 8 of their Statistical Analysis of Contingency Tables, 2017
    assert paired(6, 16, 161) == pytest.approx((-0.0621, -0.1240, -0.0054), abs=5e-5)


def test_a_paired_gain_by_hand() -> None:
    gain, low, high = paired(3, 1, 6)
    # At its ends the share of lost pairs is q with 12 q^2 + (10 gain - 4) q - gain (1 - gain) = 0, and 2 - 6 gain is
    # 1.96 sqrt(6 (2 q + gain (1 - gain))) off: at gain 0 that is q = 1/3 and 1.96 * 2, so 0 is well inside.
    assert gain == pytest.approx(1 / 3)
    for end in (low, high):
        b, c = 10 * end - 4, -end * (1 - end)
        q = (math.sqrt(b * b - 48 * c) - b) / 24
        assert abs(2 - 6 * end) == pytest.approx(1.959964 * math.sqrt(6 * (2 * q + end * (1 - end))))
    assert low < 0 < gain < high < 1
    assert paired(1, 3, 6) == pytest.approx((-gain, -high, -low))
    with pytest.raises(ValueError):
        paired_gain(results("01"), results("011"))


@pytest.mark.parametrize("n", [1, 20, 200])
def test_pairs_that_all_end_alike_leave_room_for_a_gain(n: int) -> None:
    # Where all pairs agree, the ends solve n gain^2 = 1.96^2 gain (1 - gain).
    end = 1.959964**2 / (n + 1.959964**2)
    assert paired(0, 0, n) == pytest.approx((0.0, -end, end))
    gain, low, high = paired(n, 0, n)
    assert gain == pytest.approx(1.0) and low < 1 - end and high == pytest.approx(1.0)


@pytest.mark.parametrize(("won", "lost", "clear"), [(4, 0, True), (3, 0, False), (14, 4, True), (13, 5, False)])
def test_the_interval_leaves_out_0_where_mcnemar_is_significant(won: int, lost: int, clear: bool) -> None:
    assert (won - lost > 1.959964 * math.sqrt(won + lost)) == clear
    for n in (won + lost, 200):
        assert (paired(won, lost, n)[1] > 0) == clear
        assert (paired(lost, won, n)[2] < 0) == clear


def test_with_many_discordant_pairs_it_is_the_interval_of_wald() -> None:
    gain, low, high = paired(700, 300, 4000)
    half = 1.959964 * math.sqrt((1000 / 4000 - gain**2) / 4000)
    assert (low, high) == pytest.approx((gain - half, gain + half), abs=2e-4)


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


def test_rank_violation_is_the_mean_of_the_largest_wrongly_ordered_difference() -> None:
    true = np.array([0.1, 0.4, 0.9])
    assert rank_violation(np.array([0.2, 0.3, 0.4]), true) == 0.0
    # The prediction has the last two in the wrong order, by .5; the first one is in order with both: (0 + .5 + .5) / 3.
    assert rank_violation(np.array([0.2, 0.8, 0.5]), true) == pytest.approx(1 / 3)


def test_the_sign_test_and_holm_by_hand() -> None:
    # 3 lost and 1 won: (4 + 1) / 16; only pairs that differ count
    assert sign_test(won=1, lost=3) == pytest.approx(5 / 16)
    assert sign_test(won=0, lost=5) == pytest.approx(1 / 32)
    assert sign_test(won=3, lost=0) == sign_test(won=0, lost=0) == 1.0
    # .01 <= .05 / 3, .02 <= .05 / 2, .06 > .05
    assert holm([0.02, 0.06, 0.01], 0.05) == [True, False, True]
    # .02 > .05 / 3 stops at once, also for .024 <= .05 / 2
    assert holm([0.02, 0.024, 0.9], 0.05) == [False, False, False]
