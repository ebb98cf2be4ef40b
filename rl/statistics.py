"""Statistics of evaluations, reports and cards: success rates with intervals, paired gains, rank correlations."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from scipy.special import stdtrit
from torch import Tensor

Z95 = 1.959964


class Outcome(Protocol):
    """The end of an episode."""

    @property
    def success(self) -> bool:
        """Whether it succeeded."""


def success_rate(results: Iterable[Outcome]) -> float:
    """Return the share of successes, 0 to 1."""
    outcomes = [r.success for r in results]
    return sum(outcomes) / len(outcomes)


def describe(results: Sequence[Outcome]) -> str:
    """Return text with the success rate and its 95 % interval in percent, and the number of episodes."""
    n, hits = len(results), sum(r.success for r in results)
    low, high = wilson(hits, n)
    return f"{100 * hits / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {n}"


def describe_gain(before: Sequence[Outcome], after: Sequence[Outcome]) -> str:
    """Return text with the gain in success on the same episodes and its 95 % interval, in points."""
    gain, low, high = (100 * value for value in paired_gain(before, after))
    return f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]"


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of a share of `successes` in `n` (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, Z95**2  # observed share, squared quantile
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return middle - half, middle + half


def paired_gain(before: Sequence[Outcome], after: Sequence[Outcome]) -> tuple[float, float, float]:
    """Return the gain in success on the same episodes and its 95 % interval (gain, low, high).

    The interval is the score interval of Tango (1998). With many discordant pairs it approaches the Wald interval of
    paired differences. Without discordant pairs its width is not zero: n episodes that all end as before show that the
    gain is small, within 3.84 / (n + 3.84), but not that it is zero. It excludes 0 exactly if McNemar's test is
    significant.
    """
    pairs = list(zip(before, after, strict=True))
    won, lost = sum(a.success and not b.success for b, a in pairs), sum(b.success and not a.success for b, a in pairs)
    n = len(pairs)
    return (won - lost) / n, _least_gain(won, lost, n), -_least_gain(lost, won, n)


def mean_change(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean change of a number on the same episodes and its 95 % interval (Student's t)."""
    changes = np.subtract(after, before)
    mean = float(changes.mean())
    if (n := len(changes)) < 2:
        return mean, -math.inf, math.inf
    half = float(stdtrit(n - 1, 0.975) * changes.std(ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half


def sign_test(won: int, lost: int) -> float:
    """Return the probability of at least `lost` losses among won + lost pairs if either is as likely (exact McNemar).

    It is the p-value of "worse", one-sided; 1 without a pair that differs.
    """
    n = won + lost
    return sum(math.comb(n, k) for k in range(lost, n + 1)) / 2**n


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Return which hypotheses are rejected, so that any false rejection has probability `alpha` at most (Holm 1979).

    The smallest p-value is compared with alpha / n, the next one with alpha / (n - 1), and so on up to the first that
    is larger.
    """
    rejected = [False] * len(p_values)
    for k, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] > alpha / (len(p_values) - k):
            break
        rejected[i] = True
    return rejected


def share(event: Tensor, among: Tensor) -> float | None:
    """Return the share of the rows in `among` (n,) bool that have the `event` (n,); None if `among` is empty."""
    return float(event[among].float().mean()) if among.any() else None


def spearman(a: Tensor, b: Tensor) -> float:
    """Return Spearman's rank correlation of two samples (n,); NaN if one is constant or n is below 3."""
    if len(a) < 3 or len(a.unique()) < 2 or len(b.unique()) < 2:
        return math.nan
    from scipy.stats import spearmanr  # imported here: scipy.stats takes a second, which every command would wait

    return float(spearmanr(a.cpu().numpy(), b.cpu().numpy()).statistic)


def correlation(a: Tensor, b: Tensor, group: Tensor | None = None) -> dict[str, float]:
    """Return Spearman's rank correlation of two samples (n,) with its 95 % interval by the percentile bootstrap.

    If several values come from one episode, `group` (n,) holds the index of the episode of each; then whole groups are
    resampled, since values of one episode are not independent.
    """
    from scipy.stats import bootstrap, spearmanr  # imported here, see above

    if math.isnan(rho := spearman(a, b)):
        return {"rho": math.nan, "low": math.nan, "high": math.nan}
    x, y = a.cpu().numpy(), b.cpu().numpy()
    # Bootstrap over groups: draw group indices, then take all rows of the drawn groups.
    names = np.arange(len(x)) if group is None else group.cpu().numpy()
    rows = [np.flatnonzero(names == name) for name in np.unique(names)]

    def of(drawn: np.ndarray) -> float:
        index = np.concatenate([rows[i] for i in drawn])
        return float(spearmanr(x[index], y[index]).statistic)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a constant resample has no correlation and is left out
        found = bootstrap((np.arange(len(rows)),), of, vectorized=False, n_resamples=1000, rng=0, method="percentile")
        low, high = np.nanquantile(found.bootstrap_distribution, (0.025, 0.975))
    return {"rho": rho, "low": float(low), "high": float(high)}


def rank_violation(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return the mean maximum rank violation of predicted success rates (n,), in units of the true ones (n,).

    For each policy, the largest difference of true success to a policy with which the prediction has it in the other
    order, then the mean over policies: 1/n Σ_i max_j |t_i - t_j| [(p_i < p_j) ≠ (t_i < t_j)] (SIMPLER, Li et al. 2024).
    """
    wrong = np.less.outer(predicted, predicted) != np.less.outer(true, true)
    return float((wrong * np.abs(np.subtract.outer(true, true))).max(1).mean())


def _least_gain(won: int, lost: int, n: int) -> float:
    """Return the lower end of the 95 % interval of the gain for `won` and `lost` of `n` pairs, by bisection.

    A gain is rejected if won - lost differs from n * gain by more than `Z95` standard deviations, where the variance
    uses the share of lost pairs that is most likely given this gain (Tango, Statistics in Medicine 17, 891-908, 1998).
    """
    # Bisection: `low` is always rejected (or -1), `high` never; 60 halvings reach the precision of a float.
    low, high = -1.0, (won - lost) / n
    for _ in range(60):
        gain = (low + high) / 2
        b = (2 * n - won + lost) * gain - won - lost  # share_lost solves 2 n share_lost² + b share_lost + c = 0
        c = -lost * gain * (1 - gain)
        share_lost = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = max(n * (2 * share_lost + gain * (1 - gain)), 0.0)
        if won - lost - n * gain > Z95 * math.sqrt(variance):
            low = gain
        else:
            high = gain
    return low
