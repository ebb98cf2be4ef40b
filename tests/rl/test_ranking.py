"""Orders of policies with known outcomes."""

from __future__ import annotations

import numpy as np
import pytest

from rl.ranking import next_to_run, rank


def test_an_order_beyond_doubt() -> None:
    n = 20
    outcomes = np.stack([np.zeros(n), np.ones(n), np.tile([0.0, 1.0], n // 2)])
    found = rank(outcomes)
    assert found.order == [1, 2, 0] and found.is_best == [0.0, 1.0, 0.0]
    assert found.is_right == pytest.approx(1.0, abs=0.01) and found.beats_next == pytest.approx([1.0, 1.0], abs=0.01)
    assert found.runner_up == 2


def test_equal_policies_are_a_coin() -> None:
    outcomes = np.tile((np.arange(40) % 2).astype(float), (2, 1))
    found = rank(outcomes, n_resamples=4000)
    assert found.beats_next[0] == pytest.approx(0.5, abs=0.03) and sum(found.is_best) == pytest.approx(1.0)


def test_pairs_tell_more_than_means() -> None:
    """The better one solves what the other does and two starts more: no resample without them contradicts it."""
    worse = (np.arange(30) < 10).astype(float)
    better = (np.arange(30) < 13).astype(float)
    assert rank(np.stack([worse, better])).beats_next[0] > 0.95
    rng = np.random.default_rng(0)
    assert rank(np.stack([worse, rng.permutation(better)])).beats_next[0] < 0.9


def test_the_next_episode_is_that_of_the_more_uncertain_of_the_top_two() -> None:
    coin, sure = np.tile([0.0, 1.0], 8), np.full(16, 0.45)
    outcomes = np.stack([np.zeros(16), sure, coin])
    found = rank(outcomes)
    assert (found.order[0], found.runner_up) == (2, 1)
    assert next_to_run(found, outcomes) == 2
    outcomes = np.stack([np.zeros(16), np.full(16, 0.55), coin])
    found = rank(outcomes)
    assert (found.order[0], found.runner_up) == (1, 2)
    assert next_to_run(found, outcomes) == 2
