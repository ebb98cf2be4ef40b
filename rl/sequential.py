"""Anytime-valid estimates of success from few real episodes, sharpened by dreamed ones.

**Betting** (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 2024). A gambler
begins with a capital of 1 and bets before each episode that the mean is above `m`: the capital is multiplied by
1 + bet * (x - m). If the mean is `m` or less, no bet can be expected to win, so the capital reaches 1 / alpha with
probability alpha at most, however often one looks (Ville 1939). So the capital is evidence that may be read after any
episode, and the means against which neither gambler, for above and for below, has reached 2 / alpha are an interval
that holds at all numbers of episodes together with probability 1 - alpha.

**Dreamed twins** (control variate; Angelopoulos et al., "Prediction-powered inference", Science 2023, here in an exact
sequential form). The twin of a real episode is the same start and the same policy noise, dreamed. With its outcome T,
and those of K other dreams from fresh starts of the same kind, the real outcome Y is replaced by

    X = Y - weight * (T - mean of the K others).

Twin and others have the same distribution, and the weight depends on earlier episodes alone, so X has the mean of Y
exactly, however wrong the dream is. If the dream tells the outcome, X varies less than Y. The weight is the regression
of Y on T - mean of the others, shrunk towards 0 and kept within 0 and 1: a dream that says the opposite gets weight 0.

The capital is the mean of that of the real outcomes alone and that of the corrected ones. So a useless dream can cost a
factor of 2 in capital at most. docs/gates.md says why the numbers below are as they are.

All arrays have the episodes along the last axis, in the order in which they ran; axes before it are independent cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SIZES = (8, 32, 128)
"""Numbers of episodes that the bets are tuned for; the capital is the mean over one gambler for each."""

BOLDEST = 0.9
"""Largest bet, as a share of the one that could lose the whole capital."""

PRIOR_TWINS = 4.0
"""Episodes' worth of belief that a twin tells nothing, by which its weight is shrunk towards 0."""

_HALVINGS = 24
"""Bisections of an interval: to 2e-7 of its bounds."""


@dataclass(frozen=True)
class Observations:
    """Values that all have the mean to be estimated, and bounds on each that were known before it."""

    value: Floats  # (..., n)
    low: Floats  # (..., n)
    high: Floats  # (..., n)
    twin_weight: Floats  # (..., n), of the twin in each value; 0 where real outcomes stand alone


@dataclass(frozen=True)
class Estimate:
    """A mean from real episodes and, where there are twins, dreamed ones. The intervals hold at any stopping time."""

    n: int  # real episodes
    mean: float
    low: float
    high: float
    plain_mean: float  # from the real episodes alone, as the next two
    plain_low: float
    plain_high: float
    twin_weight: float  # of the last episode's twin; 0 without twins

    @property
    def n_saved(self) -> int:
        """How many more real episodes would give an interval as narrow without twins; below 0 if twins widened it.

        Widths shrink with the square root of the number of episodes.
        """
        width, plain = self.high - self.low, self.plain_high - self.plain_low
        return round(self.n * ((plain / width) ** 2 - 1)) if width > 0 else 0


def plain(outcomes: Any, low: float, high: float) -> Observations:
    """Return real outcomes (..., n), each from `low` to `high`, as observations of their mean."""
    y = np.asarray(outcomes, dtype=np.float64)
    return Observations(y, np.full_like(y, low), np.full_like(y, high), np.zeros_like(y))


def corrected(outcomes: Any, twins: Any, others: Any, low: float, high: float, cycle: int = 1) -> Observations:
    """Return real outcomes corrected by their dreamed twins, see the head of this file.

    Args:
        outcomes: (..., n) of real episodes, each from `low` to `high`.
        twins: (..., n) of their twins, within the same bounds; may be means over several dreams.
        others: (..., n, K) of dreams from fresh starts, of the same kind (task) as the real episode.
        low: least value of an outcome.
        high: largest value of an outcome.
        cycle: see `log_capital`.

    Raises:
        ValueError: the shapes do not fit together, or a value is out of bounds.
    """
    y, t, o = (np.asarray(of, dtype=np.float64) for of in (outcomes, twins, others))
    if y.shape != t.shape or o.shape[:-1] != y.shape or o.shape[-1] == 0:
        raise ValueError(f"outcomes {y.shape}, twins {t.shape}, others {o.shape}: expected (..., n) twice, (..., n, K)")
    if any(of.size and not (low <= of.min() and of.max() <= high) for of in (y, t, o)):
        raise ValueError(f"outcomes and twins: expected values from {low} to {high}")
    surprise = t - o.mean(-1)  # of mean 0, whatever the dream
    middle, spread = (low + high) / 2, (high - low) / 2
    covariance = _before((y - _before(y, middle, 1.0, cycle)) * surprise, 0.0, PRIOR_TWINS, cycle)
    variance = _before(surprise**2, spread**2, PRIOR_TWINS, cycle)
    weight = np.clip(covariance / variance, 0.0, 1.0)
    most = weight * (high - low)  # the largest correction, in either direction
    return Observations(y - weight * surprise, low - most, high + most, weight)


def log_capital(
    observations: Observations,
    mean: Any,
    above: bool,
    alpha: float,
    sizes: Sequence[int] = SIZES,
    cycle: int = 1,
) -> Floats:
    """Return the log of the capital after each episode (..., n) of bets that the mean is `above` (or below) `mean`.

    It falls (rises) with `mean`. The bet of a gambler who is tuned for s episodes is sqrt(2 log(2 / alpha) / (s v)),
    with v the variance of the values so far (the plug-in bets of Waudby-Smith and Ramdas for a fixed number of
    episodes), at most `BOLDEST` of what keeps the capital above 0. Before there are values, v is that of a fair coin
    between the bounds.

    Args:
        observations: (..., n).
        mean: (...) or a number.
        above: the direction of the bets.
        alpha: level that the bets are tuned for; they are valid at any other.
        sizes: see `SIZES`; (n,) if the number of episodes n is known beforehand.
        cycle: number of tasks, if episode i runs task i mod `cycle`; the mean is then that over the tasks, whatever
            their differences. Weights and bets are constant within a cycle, and the capital is valid at its end: the
            product of 1 + bet * (mean of a task - m) is largest if all tasks have the same mean.
    """
    sign = 1.0 if above else -1.0
    x, m = sign * observations.value, sign * np.asarray(mean, dtype=np.float64)[..., None]
    low, high = (observations.low, observations.high) if above else (-observations.high, -observations.low)
    middle, spread = (low[..., :1] + high[..., :1]) / 2, (high[..., :1] - low[..., :1]) / 2
    variance = _before((x - _before(x, middle, 1.0, cycle)) ** 2, spread**2, 1.0, cycle)
    largest = BOLDEST / np.maximum(m - low, 1e-12)
    logs = []
    for size in sizes:
        bet = np.minimum(np.sqrt(2 * math.log(2 / alpha) / (size * variance)), largest)
        logs.append(np.cumsum(np.log1p(bet * (x - m)), axis=-1))
    return _log_mean(logs)


def log_evidence(
    processes: Sequence[Observations],
    mean: Any,
    above: bool,
    alpha: float,
    sizes: Sequence[int] = SIZES,
    cycle: int = 1,
) -> Floats:
    """Return the log of the mean capital over several ways to observe the same mean (..., n), see `log_capital`.

    Its exponential is an e-value for the hypothesis that the mean is at most (at least) `mean`, at every n.
    """
    return _log_mean([log_capital(of, mean, above, alpha, sizes, cycle) for of in processes])


def interval(
    processes: Sequence[Observations],
    low: float,
    high: float,
    alpha: float = 0.05,
    sizes: Sequence[int] = SIZES,
    cycle: int = 1,
) -> tuple[Floats, Floats]:
    """Return the interval (low, high), each (...), of the mean after all n episodes, at level 1 - `alpha`.

    Intervals after any numbers of episodes hold together with this probability. `low` and `high` bound the mean; the
    others are as in `log_capital`. With no episode the interval is (low, high).
    """
    shape = processes[0].value.shape
    if shape[-1] == 0:
        return np.full(shape[:-1], low), np.full(shape[:-1], high)

    def refuted(mean: Floats, above: bool) -> NDArray[np.bool_]:
        last = log_evidence(processes, mean, above, alpha, sizes, cycle)[..., -1]
        return np.asarray(last >= math.log(2 / alpha))

    # Capital falls with the mean it bets against, so the refuted means end at one point; find it by bisection.
    ends = []
    for above, first, last in ((True, low, high), (False, high, low)):
        out, inside = np.full(shape[:-1], first), np.full(shape[:-1], last)  # refuted, or the bound itself; and not
        for _ in range(_HALVINGS):
            between = (out + inside) / 2
            hit = refuted(between, above)
            out, inside = np.where(hit, between, out), np.where(hit, inside, between)
        ends.append(out)
    return ends[0], ends[1]


def estimate(
    outcomes: Any,
    twins: Any | None,
    others: Any | None,
    low: float,
    high: float,
    alpha: float = 0.05,
    sizes: Sequence[int] = SIZES,
    cycle: int = 1,
) -> Estimate:
    """Estimate one mean from real outcomes (n,) and, unless they are None, twins (n,) and others (n, K).

    The arguments are those of `corrected` and `interval`.
    """
    alone = plain(outcomes, low, high)
    processes = [alone]
    if twins is not None and others is not None:
        processes.append(corrected(outcomes, twins, others, low, high, cycle))
    best, n = processes[-1], alone.value.shape[-1]
    plain_low, plain_high = interval([alone], low, high, alpha, sizes, cycle)
    both = interval(processes, low, high, alpha, sizes, cycle) if len(processes) > 1 else (plain_low, plain_high)
    return Estimate(
        n=n,
        mean=float(best.value.mean()) if n else math.nan,
        low=float(both[0]),
        high=float(both[1]),
        plain_mean=float(alone.value.mean()) if n else math.nan,
        plain_low=float(plain_low),
        plain_high=float(plain_high),
        twin_weight=float(best.twin_weight[-1]) if n else 0.0,
    )


def phi(groups: Sequence[tuple[Any, Any]]) -> float | None:
    """Return the correlation of real and dreamed outcomes of single episodes, each against the mean of its group.

    Args:
        groups: (real outcomes, dreamed outcomes), each (n,), of every policy or task.

    Returns None if all episodes of every group ended the same way, in reality or in the dream.
    """
    pairs = [(np.asarray(real, float), np.asarray(dreamed, float)) for real, dreamed in groups if len(real)]
    if not pairs:
        return None
    real = np.concatenate([of - of.mean() for of, _ in pairs])
    dreamed = np.concatenate([of - of.mean() for _, of in pairs])
    scale = math.sqrt(float(real @ real) * float(dreamed @ dreamed))
    return float(real @ dreamed) / scale if scale > 1e-12 else None


def _before(values: Floats, prior: Any, weight: float, cycle: int) -> Floats:
    """Return the mean of `weight` times the `prior` and all values before the cycle of each episode (..., n)."""
    n = values.shape[-1]
    begun = np.arange(n) // cycle * cycle
    total = np.concatenate([np.zeros_like(values[..., :1]), np.cumsum(values, axis=-1)], axis=-1)
    return np.asarray((weight * prior + total[..., begun]) / (weight + begun))


def _log_mean(logs: Sequence[Floats]) -> Floats:
    """Return the log of the mean of capitals that are given as logs."""
    return np.asarray(np.logaddexp.reduce(np.stack(list(logs)), axis=0) - math.log(len(logs)))
