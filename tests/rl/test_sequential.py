"""Betting on means: capital by hand, exactness by enumeration, coverage by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rl.sequential import corrected, estimate, interval, log_capital, log_evidence, phi, plain

ALPHA = 0.05


def test_capital_of_three_observations_by_hand() -> None:
    """Outcomes 1, 0, 1 of a coin, one gambler tuned for 8 episodes, bets that the mean is above 1/2.

    log(2 / .05) = 3.6889. Before the first outcome v = 1/4, so the bet is sqrt(2 * 3.6889 / (8 * .25)) = 1.9206, cut to
    .9 / .5 = 1.8: capital 1 + 1.8 * .5 = 1.9. Then v = (.25 + (1 - .5)²) / 2 = .25, the bet is again 1.8, and a loss
    leaves 1.9 * (1 - .9) = .19. The mean so far was (.5 + 1) / 2 = .75, so v = (.25 + .25 + .5625) / 3 = .35417, the
    bet sqrt(7.3778 / (8 * .35417)) = 1.6137, and the capital .19 * (1 + 1.6137 / 2) = .34330.
    """
    coin = plain([1, 0, 1], 0.0, 1.0)
    capital = np.exp(log_capital(coin, 0.5, above=True, alpha=ALPHA, sizes=(8,)))
    assert capital == pytest.approx([1.9, 0.19, 0.34330], rel=1e-4)
    # Bets that it is below: the mirror image, 0, 1, 0 against 1/2.
    mirrored = np.exp(log_capital(plain([0, 1, 0], 0.0, 1.0), 0.5, above=False, alpha=ALPHA, sizes=(8,)))
    assert mirrored == pytest.approx(capital)
    # Two gamblers: the mean of their capitals. The second bets sqrt(7.3778 / (128 * .25)) = .48016 at first.
    both = np.exp(log_capital(coin, 0.5, above=True, alpha=ALPHA, sizes=(8, 128)))
    assert both[0] == pytest.approx((1.9 + 1 + 0.48016 / 2) / 2, rel=1e-4)


def test_twins_by_hand() -> None:
    """Outcomes 1, 0, 1; twins 1, 0, 1; the mean of two others is 1/2 each time.

    Surprise: 1/2, -1/2, 1/2. First weight: 0 / 1. Mean before each: .5, .75, .5. Covariance sums: (1 - .5) * .5 = .25,
    then (0 - .75) * -.5 = .375. Variance: prior 4 * .25 = 1, plus .25 each time.
    """
    x = corrected([1, 0, 1], [1, 0, 1], [[1, 0], [0, 1], [1, 0]], 0.0, 1.0)
    weight = [0.0, 0.25 / 1.25, 0.625 / 1.5]
    assert x.twin_weight == pytest.approx(weight)
    assert x.value == pytest.approx([1.0, 0.0 + weight[1] / 2, 1.0 - weight[2] / 2])
    assert x.low == pytest.approx([-w for w in weight]) and x.high == pytest.approx([1 + w for w in weight])


LAW = {(0, 0): 0.2, (0, 1): 0.3, (1, 0): 0.1, (1, 1): 0.4}
"""(outcome, twin) -> probability: a dream that promises .7 where reality gives .5."""


@pytest.mark.parametrize("law", [LAW, {(0, 1): 0.5, (1, 0): 0.5}, {(0, 0): 0.5, (1, 1): 0.5}])
def test_the_mean_is_exact_however_wrong_the_dream_is(law: dict[tuple[int, int], float]) -> None:
    """Over all courses of three episodes with one other dream each; the weights depend on the course."""
    dreamed = [sum(p for (_, t), p in law.items() if t == k) for k in (0, 1)]
    total = np.zeros(3)
    capital = {True: 0.0, False: 0.0}
    for course in itertools.product(itertools.product(law, (0, 1)), repeat=3):
        p = math.prod(law[pair] * dreamed[other] for pair, other in course)
        y, t = zip(*(pair for pair, _ in course), strict=True)
        x = corrected(y, t, [[other] for _, other in course], 0.0, 1.0)
        total += p * x.value
        for above in capital:
            capital[above] += p * math.exp(log_evidence([plain(y, 0, 1), x], 0.5, above, ALPHA)[-1])
    assert total == pytest.approx([0.5] * 3)  # E[Y] = .5 in all three laws
    assert capital[True] == pytest.approx(1.0) and capital[False] == pytest.approx(1.0)  # fair at the true mean


def test_capital_stays_above_zero_at_the_worst() -> None:
    for y, t, o in itertools.product((0.0, 1.0), repeat=3):
        # Weights grow by good twins, then the worst: each value at a bound.
        n = 30
        outcomes = np.append(np.tile([0.0, 1.0], n // 2), y)
        twins = np.append(np.tile([0.0, 1.0], n // 2), t)
        others = np.append(np.full(n, 0.5), o)[:, None]
        x = corrected(outcomes, twins, others, 0.0, 1.0)
        assert x.twin_weight[-1] > 0.5
        for above, mean in itertools.product((True, False), (0.01, 0.5, 0.99)):
            assert np.isfinite(log_capital(x, mean, above, ALPHA)).all()


def test_a_dream_that_says_the_opposite_gets_weight_zero() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(40) < 0.5).astype(float)
    others = (rng.random((40, 4)) < 0.5).astype(float)
    x = corrected(y, 1 - y, others, 0.0, 1.0)
    assert (x.twin_weight[2:] == 0).all()
    alone = plain(y, 0.0, 1.0)
    for both, one in zip(interval([alone, x], 0.0, 1.0), interval([alone], 0.0, 1.0), strict=True):
        assert both == pytest.approx(one, abs=0.01)


def test_the_price_of_a_useless_dream_is_at_most_a_factor_of_two() -> None:
    rng = np.random.default_rng(1)
    y = (rng.random((50, 64)) < 0.8).astype(float)
    t, o = (rng.random(shape) < 0.5 for shape in ((50, 64), (50, 64, 4)))
    alone = plain(y, 0.0, 1.0)
    cost = log_capital(alone, 0.5, True, ALPHA) - log_evidence([alone, corrected(y, t, o, 0.0, 1.0)], 0.5, True, ALPHA)
    assert cost.max() <= math.log(2) + 1e-12


def simulated(dream: str, rate: float, n_cases: int, n: int, k: int = 4) -> tuple[np.ndarray, ...]:
    """Outcomes (n_cases, n), twins and others (n_cases, n, k)."""
    rng = np.random.default_rng(2)
    real = (rng.random((n_cases, n, k + 1)) < rate).astype(float)
    fresh = (rng.random(real.shape) < rate).astype(float)
    biased = np.maximum(real, rng.random(real.shape) < 0.5)
    dreamed = {"perfect": real, "useless": fresh, "opposite": 1 - real, "biased": biased}[dream]
    return real[..., 0], dreamed[..., 0], dreamed[..., 1:]


def test_a_perfect_dream_makes_the_interval_much_narrower() -> None:
    y, t, o = simulated("perfect", 0.6, 1, 64)
    found = estimate(y[0], t[0], o[0], 0.0, 1.0)
    assert found.high - found.low < 0.7 * (found.plain_high - found.plain_low)
    assert found.n_saved > 64 and 0.6 < found.twin_weight < 1
    assert found.plain_mean == y[0].mean() and found.low < found.mean < found.high


@pytest.mark.parametrize("dream", ["perfect", "useless", "opposite", "biased"])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_intervals_hold_at_all_times(dream: str, rate: float) -> None:
    """The true rate is never refuted in at least 95 % of the cases, looked at after each of 48 episodes."""
    y, t, o = simulated(dream, rate, 400, 48)
    processes = [plain(y, 0.0, 1.0), corrected(y, t, o, 0.0, 1.0)]
    worst = [log_evidence(processes, rate, above, ALPHA).max(-1) for above in (True, False)]
    refuted = np.maximum(*worst) >= math.log(2 / ALPHA)
    assert refuted.mean() <= 0.05


def test_the_interval_ends_where_the_capital_reaches_its_bound() -> None:
    y = plain([1, 1, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1] * 2, 0.0, 1.0)
    low, high = interval([y], 0.0, 1.0)
    assert 0 < low < 18 / 24 < high < 1
    assert log_evidence([y], low, True, ALPHA)[-1] == pytest.approx(math.log(40))
    assert log_evidence([y], high, False, ALPHA)[-1] == pytest.approx(math.log(40))
    assert interval([plain([], 0.0, 1.0)], 0.0, 1.0) == (0.0, 1.0)
    assert interval([plain([1.0] * 20, 0.0, 1.0)], 0.0, 1.0)[1] == 1.0


def test_bets_tuned_for_a_known_number_of_episodes_give_narrower_intervals() -> None:
    y = plain(np.tile([1.0, 0.0], 100), 0.0, 1.0)
    any_time, at_200 = (interval([y], 0.0, 1.0, sizes=sizes) for sizes in ((8, 32, 128), (200,)))
    assert at_200[1] - at_200[0] < any_time[1] - any_time[0]


def test_tasks_in_turn_are_one_mean() -> None:
    """Tasks that always succeed and always fail: with bets that change within a cycle, capital could be made of it."""
    y = plain(np.tile([0.0, 1.0], 32), 0.0, 1.0)
    for above in (True, False):
        capital = np.exp(log_capital(y, 0.5, above, ALPHA, cycle=2))
        assert (capital[1::2] <= 1).all()
    x = corrected([0, 1, 0, 1], [0, 1, 0, 1], [[0], [0], [0], [1]], 0.0, 1.0, cycle=2)
    assert x.twin_weight[0] == x.twin_weight[1] == 0 < x.twin_weight[2] == x.twin_weight[3]


def test_shapes_and_bounds_are_checked() -> None:
    with pytest.raises(ValueError, match=r"outcomes \(2,\), twins \(3,\), others \(2, 1\): expected"):
        corrected([0, 1], [0, 1, 1], [[0], [1]], 0.0, 1.0)
    with pytest.raises(ValueError, match=r"expected values from 0\.0 to 1\.0"):
        corrected([0, 1], [0, 2], [[0], [1]], 0.0, 1.0)


def test_phi_compares_single_episodes_within_each_group() -> None:
    assert phi([([1, 0, 1, 0], [1, 0, 1, 0])]) == pytest.approx(1.0)
    assert phi([([1, 0, 1, 0], [0, 1, 0, 1])]) == pytest.approx(-1.0)
    # Between the groups the dream is right, within them it tells nothing.
    assert phi([([1, 1, 1, 0], [1, 1, 1, 1]), ([0, 0, 0, 1], [0, 0, 0, 0])]) is None
    assert phi([([1, 1, 0, 0], [1, 0, 1, 0])]) == pytest.approx(0.0)
    assert phi([]) is None and phi([([1, 1], [0, 1])]) is None
