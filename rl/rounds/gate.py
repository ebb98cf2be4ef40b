"""The gate after each phase of a round: run champion and challenger on the same fresh episodes; roll a loss back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

from rl.rounds.evaluate import EpisodeResult


@dataclass(frozen=True)
class Verdict:
    """What a gate measured and decided."""

    accepted: bool
    champion: float  # success rate
    challenger: float  # success rate
    won: int  # episodes that only the challenger solved
    lost: int  # episodes that only the champion solved
    n_episodes: int

    def __str__(self) -> str:
        word = "accepted" if self.accepted else "ROLLED BACK"
        return (
            f"{word}: {100 * self.champion:.0f} % -> {100 * self.challenger:.0f} % on {self.n_episodes} fresh episodes "
            f"(won {self.won}, lost {self.lost})"
        )


def judge(
    run_champion: Callable[[list[int]], list[EpisodeResult]],
    run_challenger: Callable[[list[int]], list[EpisodeResult]],
    first_seed: int,
    block: int,
    most: int,
    alpha: float,
    z_loss: float,
) -> Verdict:
    """Compare on blocks of `block` seeds from `first_seed` on, until the paired difference is clear or `most` are used.

    Only discordant pairs count (McNemar 1947). A difference |won - lost| is clear if it reaches z * sqrt(won + lost),
    where z is chosen so that chance alone makes any of the blocks clear, in either direction, with probability `alpha`
    at most (Bonferroni). A clear loss is rolled back. If no difference is clear when `most` seeds are used, a loss of
    at least z_loss * sqrt(won + lost) is rolled back. A smaller loss is accepted: noise explains it, and the challenger
    was trained on more data.
    """
    # Two-sided, and one test per block.
    z_clear = NormalDist().inv_cdf(1 - alpha / 2 / math.ceil(most / block))
    won = lost = champion_hits = challenger_hits = n = 0
    clear = False
    while n < most and not clear:
        # Both run the same episodes, so each seed gives a pair of results.
        seeds = list(range(first_seed + n, first_seed + n + min(block, most - n)))
        for old, new in zip(run_champion(seeds), run_challenger(seeds), strict=True):
            champion_hits, challenger_hits = champion_hits + old.success, challenger_hits + new.success
            won, lost = won + (new.success and not old.success), lost + (old.success and not new.success)
        n += len(seeds)
        # Under chance alone, won - lost has mean 0 and standard deviation sqrt(won + lost).
        clear = won != lost and abs(won - lost) >= z_clear * math.sqrt(won + lost)
    lost_it = lost > won and (clear or lost - won >= z_loss * math.sqrt(won + lost))
    return Verdict(not lost_it, champion_hits / n, challenger_hits / n, won, lost, n)
