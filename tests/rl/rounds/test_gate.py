"""The gate's arithmetic, with players whose results are written down."""

import pytest

from rl.rounds.evaluate import EpisodeResult
from rl.rounds.gate import Verdict, judge


def player(solved: set[int], seen: list[list[int]]):
    """Solve the seeds in `solved`; note every block in `seen`."""

    def run(seeds: list[int]) -> list[EpisodeResult]:
        seen.append(seeds)
        return [EpisodeResult("push", seed, seed in solved, 10, 0.0) for seed in seeds]

    return run


def contest(champion: set[int], challenger: set[int], block: int = 4, most: int = 8, first: int = 0, z_loss: float = 1):
    """Compare at z = 1.64 a block, one-sided: alpha is 10 % for each."""
    old, new = [], []
    verdict = judge(player(champion, old), player(challenger, new), first, block, most, 0.1 * -(-most // block), z_loss)
    assert old == new  # paired: the same episodes
    return verdict, new


def test_clear_win_is_accepted_after_one_block() -> None:
    # won 4, lost 0: 4 >= 1.64 * sqrt(4) = 3.28
    verdict, blocks = contest(set(), {0, 1, 2, 3})
    assert verdict == Verdict(True, champion=0.0, challenger=1.0, won=4, lost=0, n_episodes=4)
    assert blocks == [[0, 1, 2, 3]]


def test_clear_loss_is_rolled_back_after_one_block() -> None:
    verdict, blocks = contest({0, 1, 2, 3}, set())
    assert verdict == Verdict(False, champion=1.0, challenger=0.0, won=0, lost=4, n_episodes=4)
    assert len(blocks) == 1
    assert "ROLLED BACK: 100 % -> 0 % on 4 fresh episodes (won 0, lost 4)" in str(verdict)


def test_unclear_difference_takes_another_block() -> None:
    # first block won 2, lost 0: 2 < 1.64 * sqrt(2) = 2.32; then won 3, lost 0: 3 >= 1.64 * sqrt(3) = 2.84
    verdict, blocks = contest({3}, {0, 1, 3, 4}, most=32)
    assert blocks == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert verdict == Verdict(True, champion=1 / 8, challenger=4 / 8, won=3, lost=0, n_episodes=8)


def test_stops_at_the_most_and_cuts_the_last_block() -> None:
    # won 1, lost 2 is never clear: 1 < 1.64 * sqrt(3); and noise explains the loss: 1 < sqrt(3)
    verdict, blocks = contest({0, 5}, {4}, most=6, first=0)
    assert blocks == [[0, 1, 2, 3], [4, 5]]
    assert verdict == Verdict(True, champion=2 / 6, challenger=1 / 6, won=1, lost=2, n_episodes=6)


def test_a_loss_beyond_noise_is_rolled_back_though_unclear() -> None:
    # won 1, lost 4: sqrt(5) = 2.24 <= 3 < 1.64 * sqrt(5) = 3.67
    verdict, blocks = contest({0, 1, 4, 5}, {2}, most=8)
    assert verdict == Verdict(False, champion=4 / 8, challenger=1 / 8, won=1, lost=4, n_episodes=8)
    assert len(blocks) == 2


def test_a_lenient_gate_rolls_back_a_clear_loss_all_the_same() -> None:
    # lost 4 is clear from 1.64 * sqrt(4) = 3.28 on, though no loss is as large as 9 * sqrt(4); won 1, lost 4 is not
    assert contest({0, 1, 2, 3}, set(), z_loss=9)[0] == Verdict(False, 1.0, 0.0, won=0, lost=4, n_episodes=4)
    assert contest({0, 1, 4, 5}, {2}, most=8, z_loss=9)[0].accepted


def test_a_strict_gate_rolls_back_any_loss_and_accepts_a_tie() -> None:
    verdict, _ = contest({0, 5}, {4}, most=6, z_loss=0)
    assert verdict == Verdict(False, champion=2 / 6, challenger=1 / 6, won=1, lost=2, n_episodes=6)
    assert contest({0, 1}, {2, 3}, z_loss=0)[0].accepted


@pytest.mark.parametrize("solved", [set(), {0, 1, 2, 3, 4, 5, 6, 7}])
def test_tie_is_accepted_at_the_most(solved: set[int]) -> None:
    verdict, blocks = contest(solved, solved)
    assert verdict.accepted and verdict.n_episodes == 8 and verdict.won == verdict.lost == 0
    assert len(blocks) == 2


def test_equal_wins_and_losses_are_a_tie() -> None:
    verdict, _ = contest({0, 1}, {2, 3})
    assert verdict.accepted and (verdict.won, verdict.lost) == (2, 2)


def test_alpha_is_split_over_the_blocks() -> None:
    # won 3, lost 0: clear at 10 % two-sided (1.64 * sqrt(3) = 2.85), not when that is for two blocks (1.96: 3.39)
    runs = player(set(), []), player({0, 1, 2}, [])
    assert judge(*runs, first_seed=0, block=4, most=4, alpha=0.1, z_loss=1).n_episodes == 4
    assert judge(*runs, first_seed=0, block=4, most=8, alpha=0.2, z_loss=1).n_episodes == 4
    assert judge(*runs, first_seed=0, block=4, most=8, alpha=0.1, z_loss=1).n_episodes == 8


def test_seeds_begin_where_told() -> None:
    _, blocks = contest(set(), set(), block=2, most=4, first=1_000_000)
    assert blocks == [[1_000_000, 1_000_001], [1_000_002, 1_000_003]]
