"""The gate's decisions, with players whose results, and dreams, are written down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rl.rounds.evaluate import EpisodeResult
from rl.rounds.gate import Dreamed, Side, Verdict, decide, evidence, judge

Run = Callable[[list[int]], list[EpisodeResult]]


def player(solved: set[int], seen: list[list[int]]) -> Run:
    """Solve the seeds in `solved`; note every block in `seen`. Results come in the opposite order of the seeds."""

    def run(seeds: list[int]) -> list[EpisodeResult]:
        seen.append(seeds)
        return [EpisodeResult("push", seed, seed in solved, 10, 0.0) for seed in reversed(seeds)]

    return run


def contest(
    champion: set[int], challenger: set[int], block: int = 8, most: int = 64, alpha: float = 0.1, z_loss: float = 0.0
) -> tuple[Verdict, list[list[int]]]:
    old: list[list[int]] = []
    new: list[list[int]] = []
    verdict = judge(Side(player(champion, old)), Side(player(challenger, new)), 0, block, most, alpha, z_loss)
    assert old == new  # paired: the same episodes
    return verdict, new


def brief(verdict: Verdict) -> tuple[Any, ...]:
    return verdict.accepted, verdict.reason, verdict.won, verdict.lost, verdict.n_episodes


def test_a_clear_gain_is_accepted_after_one_block() -> None:
    verdict, blocks = contest(set(), set(range(8)))
    assert brief(verdict) == (True, "clear gain", 8, 0, 8) and blocks == [[*range(8)]]
    assert (verdict.champion, verdict.challenger, verdict.gain) == (0.0, 1.0, 1.0)
    assert verdict.gain_low is not None and 0 < verdict.gain_low < 1 == verdict.gain_high


def test_a_clear_loss_is_rolled_back_after_one_block() -> None:
    verdict, blocks = contest(set(range(8)), set())
    assert brief(verdict) == (False, "clear loss", 0, 8, 8) and len(blocks) == 1


def test_a_difference_that_is_not_clear_takes_another_block() -> None:
    # 5 won of 8 is no e-value of 20; 10 of 16 is, without a loss
    solved = {i for i in range(64) if i % 8 < 5}
    verdict, blocks = contest(set(), solved)
    assert brief(verdict) == (True, "clear gain", 10, 0, 16)
    assert blocks == [[*range(8)], [*range(8, 16)]]


def test_a_hopeless_challenger_does_not_use_up_the_budget() -> None:
    """Loses two of each block: after 16 of 40 pairs, lost 4, the noise of a pair is sqrt(5 / 17) = .54.

    Then 24 pairs are left: 1.645 * .54 * sqrt(24) = 4.37 > 4. After 24, lost 6: sqrt(7 / 25) = .53 and 16 left give
    1.645 * .53 * 4 = 3.48 < 6. An e-value of 100 takes more.
    """
    verdict, _ = contest({i for i in range(64) if i % 8 < 2}, set(), most=40, alpha=0.02)
    assert brief(verdict) == (False, "settled", 0, 6, 24)
    verdict, _ = contest(set(), {i for i in range(64) if i % 8 < 2}, most=40, alpha=0.02)
    assert brief(verdict) == (True, "settled", 6, 0, 24)  # nor does one that is ahead for good


def test_stops_at_the_most_and_cuts_the_last_block() -> None:
    verdict, blocks = contest({0, 9}, {4}, most=12)
    assert blocks == [[*range(8)], [8, 9, 10, 11]]
    assert brief(verdict) == (False, "unclear", 1, 2, 12)
    assert verdict.gain == pytest.approx(-1 / 12)


def test_a_lenient_gate_accepts_a_loss_that_noise_explains() -> None:
    # one standard error of 3 discordant pairs is sqrt(3) = 1.73 > 1, of 5 it is sqrt(5) = 2.24 < 3
    assert contest({0, 9}, {4}, most=12, block=12, z_loss=1)[0].accepted
    assert not contest({0, 1, 4, 5}, {2}, most=12, block=12, z_loss=1)[0].accepted
    assert contest({0, 1, 4, 5}, {2}, most=12, block=12, z_loss=9)[0].accepted
    # but a clear loss is rolled back all the same
    assert brief(contest(set(range(8)), set(), z_loss=9)[0])[:2] == (False, "clear loss")


@pytest.mark.parametrize("solved", [set(), set(range(16))])
def test_a_tie_is_accepted_at_the_most(solved: set[int]) -> None:
    assert brief(contest(solved, solved, most=16)[0]) == (True, "unclear", 0, 0, 16)
    assert brief(contest({0, 1}, {2, 3}, most=16)[0]) == (True, "unclear", 2, 2, 16)


def test_without_success_the_higher_reward_wins_a_pair() -> None:
    def rewarded(rewards: list[float]) -> Run:
        return lambda seeds: [EpisodeResult("pole", seed, False, 10, rewards[seed], False) for seed in seeds]

    low, high = [1.0] * 8, [3.0, 2.0, 5.0, 4.0, 2.0, 1.5, 1.0, 0.5]
    verdict = judge(Side(rewarded(low)), Side(rewarded(high)), 0, block=8, most=8, alpha=0.1, z_loss=0.0)
    assert brief(verdict) == (True, "unclear", 6, 1, 8) and verdict.by_reward
    assert (verdict.champion, verdict.challenger, verdict.gain) == (1.5 / 8, 6.5 / 8, 5 / 8)  # a tie counts half
    assert str(verdict).startswith("accepted: more reward in 6 of 8 fresh episodes, less in 1; unclear: +62.5 points [")
    worse = judge(Side(rewarded(high)), Side(rewarded(low)), 0, block=8, most=8, alpha=0.1, z_loss=0.0)
    assert brief(worse) == (False, "unclear", 1, 6, 8)


def test_more_gates_in_a_run_need_more_evidence() -> None:
    solved = {i for i in range(64) if i % 8 < 5}
    n = [contest(set(), solved, most=192, alpha=alpha)[0].n_episodes for alpha in (0.2, 0.02, 0.002)]
    assert n == sorted(n) and n[0] < n[-1]


def test_seeds_begin_where_told() -> None:
    seen: list[list[int]] = []
    judge(Side(player(set(), seen)), Side(player(set(), [])), 1_000_000, 2, 4, 0.1, 0.0)
    assert seen == [[1_000_000, 1_000_001], [1_000_002, 1_000_003]]


def dreamer(solved: set[int], order: list[str], k: int = 4) -> Callable[[list[int]], Dreamed]:
    """Dream a success on the seeds in `solved`; others succeed as often as three in four seeds of the block."""

    def dream(seeds: list[int]) -> Dreamed:
        order.append(f"dream {seeds[0]}")
        twins = np.array([float(seed in solved) for seed in seeds])
        return Dreamed(twins, np.tile(twins.mean(), (len(seeds), k)))

    return dream


def with_dreams(
    champion: set[int], challenger: set[int], dream: Callable[[set[int]], set[int]], **others: Any
) -> Verdict:
    order: list[str] = []

    def side(solved: set[int]) -> Side:
        def run(seeds: list[int]) -> list[EpisodeResult]:
            order.append(f"run {seeds[0]}")
            return player(solved, [])(seeds)

        return Side(run, dreamer(dream(solved), order))

    verdict = judge(side(champion), side(challenger), 0, 8, others.get("most", 32), others.get("alpha", 0.1), 0.0)
    # The twins of a block are dreamed before its episodes run, and may be learned from.
    n_blocks = len(order) // 4
    expected = [f"{what} {8 * i}" for i in range(n_blocks) for what in ("dream", "dream", "run", "run")]
    assert order == expected
    return verdict


HALF, SOME = {i for i in range(64) if i % 2}, {i for i in range(64) if i % 4 == 0}
EVERY = set(range(64))


def test_a_dream_that_tells_single_episodes_narrows_the_estimate() -> None:
    verdict = with_dreams(SOME, HALF, lambda solved: solved, alpha=1e-6)
    alone, _ = contest(SOME, HALF, most=32, alpha=1e-6)
    assert verdict.phi == pytest.approx(1.0) and verdict.twin_weight is not None and verdict.twin_weight > 0.5
    assert verdict.n_saved is not None and verdict.n_saved > 0
    for v in (verdict, alone):
        assert v.gain_low is not None and v.gain_high is not None
    assert verdict.gain_high - verdict.gain_low < alone.gain_high - alone.gain_low  # type: ignore[operator]
    assert f"dreamed twins: φ +1.00, weight {verdict.twin_weight:.2f}, worth {verdict.n_saved} more ep" in str(verdict)


def test_a_dream_that_says_the_opposite_shows_and_hardly_counts() -> None:
    verdict = with_dreams(SOME, HALF, lambda solved: EVERY - solved, alpha=1e-6)
    alone, _ = contest(SOME, HALF, most=32, alpha=1e-6)
    assert brief(verdict) == brief(alone) and verdict.gain == alone.gain
    assert verdict.phi == pytest.approx(-1.0) and verdict.twin_weight == 0
    assert str(verdict).endswith("; the dream did not predict single episodes (φ -1.00, weight 0.00)")


def test_a_dream_in_which_all_succeed_has_nothing_to_correlate() -> None:
    verdict = with_dreams(SOME, HALF, lambda solved: EVERY, alpha=1e-6)
    assert verdict.phi is None and verdict.twin_weight == 0
    assert str(verdict).endswith("; dreamed twins: nothing to correlate, weight 0.00")


def test_twins_correct_a_small_loss_by_luck_of_the_starts() -> None:
    """The challenger loses one pair more than it wins; the last three losses are dreamed as well, on unlucky starts."""
    gains = np.array([[1, 1, *([1, -1] * 6), -1, -1, -1]], dtype=float)
    others = np.zeros((1, 17, 4))  # elsewhere the dream sees no difference
    alone, both = (decide(evidence(gains, *twins), 17, 17, 0.1, 0.0) for twins in ((), (gains, others)))
    assert gains.sum() == -1 and not alone.accepted[0, -1] and both.accepted[0, -1]


def test_decisions_of_many_gates_at_once_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    gains = rng.integers(-1, 2, (20, 32)).astype(float)
    found = evidence(gains, alpha=0.2)
    decision = decide(found, np.arange(1, 33), 32, 0.2, 0.0)
    for i, row in enumerate(gains):
        champion, challenger = ({*np.flatnonzero(row == sign)} for sign in (-1, 1))
        verdict, _ = contest(champion, challenger, most=32, alpha=0.2)
        looks = decision.reason[i, 7::8]
        first = int(np.flatnonzero(looks != "")[0])
        assert (first + 1) * 8 == verdict.n_episodes and looks[first] == verdict.reason
        assert decision.accepted[i, 7::8][first] == verdict.accepted


def test_the_line_of_a_gate() -> None:
    verdict = Verdict(True, 0.4, 0.625, 8, 2, 24, "clear gain", 0.25, 0.041, 0.44, 0.31, 0.45, 3)
    assert str(verdict) == (
        "accepted: 40 % -> 62 % on 24 fresh episodes (won 8, lost 2); clear gain: +25.0 points [+4.1, +44.0]; "
        "dreamed twins: φ +0.45, weight 0.31, worth 3 more episodes"
    )
    assert str(Verdict(False, 1.0, 0.0, 0, 4, 4)) == "ROLLED BACK: 100 % -> 0 % on 4 fresh episodes (won 0, lost 4)"
