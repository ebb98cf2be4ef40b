"""Which of several policies is best, from outcomes on the same starts: order, its probability, and what to run next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rl.sequential import Floats


@dataclass(frozen=True)
class Ranking:
    """An order of C policies and how sure it is."""

    order: list[int]  # indices of the policies, the best one first
    is_right: float  # probability that the whole order is right
    beats_next: list[float]  # probability that each, in this order, is better than the next one; C - 1 numbers
    is_best: list[float]  # probability of each policy, by its index, to be the best
    runner_up: int  # index of the policy that most likely is better than the first one


def rank(outcomes: Floats, n_resamples: int = 2000, seed: int = 0) -> Ranking:
    """Order policies by their mean outcome; the probabilities are shares of a bootstrap over starts.

    A resample draws starts, and with them the outcomes of all policies there, since these are paired (Efron 1979).
    Where two policies are equal in a resample, chance decides.

    Args:
        outcomes: (C, n), of at least two policies, each on the same n starts.
        n_resamples: of the bootstrap.
        seed: of its random numbers.
    """
    rng = np.random.default_rng(seed)
    n_policies, n = outcomes.shape
    order = np.argsort(-outcomes.mean(1), kind="stable")
    ranked = [int(i) for i in order]
    drawn = rng.integers(n, size=(n_resamples, n))
    means = outcomes[:, drawn].mean(2) + 1e-9 * rng.random((n_policies, n_resamples))  # (C, n_resamples)
    ordered = means[order]
    beats = ordered[:-1] > ordered[1:]
    best = means.argmax(0)
    over_first = (means > ordered[0]).mean(1)
    return Ranking(
        order=ranked,
        is_right=float(beats.all(0).mean()),
        beats_next=[float(p) for p in beats.mean(1)],
        is_best=[float((best == i).mean()) for i in range(n_policies)],
        runner_up=max(ranked[1:], key=lambda i: float(over_first[i])),
    )


def next_to_run(ranking: Ranking, outcomes: Floats) -> int:
    """Return the index of the policy whose next real episode tells most about which one is best.

    It is one of the top two: the first of the order and the one most likely to be better than it (top-two rules: Russo,
    "Simple Bayesian algorithms for best-arm identification", 2020). Of these it is the one whose further episode
    lowers the variance of their difference most: that with the larger variance, since both have the same number.

    Args:
        ranking: of all policies.
        outcomes: (C, n), as `rank` had them.
    """
    first, second = ranking.order[0], ranking.runner_up
    return first if outcomes[first].var() >= outcomes[second].var() else second
