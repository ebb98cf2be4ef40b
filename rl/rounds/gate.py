"""The gate after a phase of a round: champion and challenger on the same fresh episodes, until the decision is settled.

Pairs of real episodes are added in small blocks. After each block the gate may stop, for one of these reasons:

* `clear gain`, `clear loss`: the evidence of `rl.sequential` that the challenger is better, or worse, reaches
  2 / alpha. If neither is better, this happens with probability alpha at most, however often the gate looks.
* `settled`: the rest of the pairs could hardly change the decision. If neither policy were better from here on, they
  would change it with a probability of `UNLIKELY` at most. So a hopeless challenger does not use up the budget, nor
  does one that is ahead for good.
* `unclear`: all pairs are used.

A clear gain is accepted and a clear loss rolled back. Otherwise the estimated gain decides: a loss is rolled back from
z_loss standard errors on. In a run with a dream the estimate is corrected by dreamed twins of the episodes.

Where a simulator reports no success, the policy with the higher reward wins a pair, also in the guard. Such a gate has
no twins.

With several tasks a challenger that would be accepted must also pass the guard, see `rl.rounds.guard`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.rounds.evaluate import EpisodeResult, have_success, outcomes
from rl.rounds.guard import Guard, TaskPairs, by_task
from rl.sequential import Estimate, Floats, corrected, estimate, log_evidence, phi, plain

UNLIKELY = 0.05
"""Probability that the rest of the pairs changes a decision that counts as settled."""

PREDICTS = 0.1
"""Smallest correlation of dreamed and real outcomes with which a dream is said to predict single episodes."""

LOWEST, HIGHEST = -1.0, 1.0
"""Gain of a pair that only the champion won, and of one that only the challenger won; else it is 0."""


@dataclass(frozen=True)
class Dreamed:
    """Outcomes of dreams that belong to n real episodes, from 0 to 1."""

    twins: Floats  # (n,), of the dream with start and policy noise of each real episode
    others: Floats  # (n, K), from fresh starts of the same task as each real episode


@dataclass(frozen=True)
class Side:
    """One of the two policies: how to run the episodes of some seeds, really and in the dream."""

    run: Callable[[list[int]], list[EpisodeResult]]
    dream: Callable[[list[int]], Dreamed] | None = None  # None: the gate has real episodes alone


@dataclass(frozen=True)
class Verdict:
    """What a gate measured and decided. The verdicts of older versions have the first six fields alone."""

    accepted: bool
    champion: float  # success rate, or the mean of `outcomes`
    challenger: float  # the same
    won: int  # episodes that only the challenger solved
    lost: int  # episodes that only the champion solved
    n_episodes: int  # pairs of real episodes
    reason: str = ""  # clear gain, clear loss, settled, unclear
    gain: float | None = None  # estimated gain in success, with twins if there are any
    gain_low: float | None = None  # 95 % interval, valid whenever the gate stops
    gain_high: float | None = None
    twin_weight: float | None = None  # of the twin of the last pair; None: no twins
    phi: float | None = None  # correlation of single dreamed and real episodes; None: no twins, or nothing to correlate
    n_saved: int | None = None  # further pairs that the interval would take without twins; None: no twins
    looked_at: list[TaskPairs] = field(default_factory=list)  # fresh pairs of single tasks, see `rl.rounds.guard`
    worse: list[str] = field(default_factory=list)  # tasks that got worse, for which the challenger is rolled back
    by_reward: bool = False  # the simulator reports no success, so a pair was won by the higher reward

    def __str__(self) -> str:
        word = "accepted" if self.accepted else "ROLLED BACK"
        if self.by_reward:
            text = f"{word}: more reward in {self.won} of {self.n_episodes} fresh episodes, less in {self.lost}"
        else:
            text = (
                f"{word}: {100 * self.champion:.0f} % -> {100 * self.challenger:.0f} % on {self.n_episodes} fresh "
                f"episodes (won {self.won}, lost {self.lost})"
            )
        if self.gain is not None and self.gain_low is not None and self.gain_high is not None:
            gain, low, high = (100 * of for of in (self.gain, self.gain_low, self.gain_high))
            text += f"; {self.reason}: {gain:+.1f} points [{low:+.1f}, {high:+.1f}]"
        return text + self._about_twins() + self._about_tasks()

    def numbers(self) -> dict[str, float]:
        """Return the fields that are numbers, to log, and how many tasks got worse."""
        found = {name: float(value) for name, value in vars(self).items() if isinstance(value, int | float)}
        pairs = sum(pairs.n for pairs in self.looked_at)
        return found | ({"tasks_worse": float(len(self.worse)), "task_pairs": float(pairs)} if pairs else {})

    def _about_twins(self) -> str:
        if self.twin_weight is None:
            return ""
        weight = f"weight {self.twin_weight:.2f}"
        if self.phi is None:
            return f"; dreamed twins: nothing to correlate, {weight}"
        if self.phi < PREDICTS:
            return f"; the dream did not predict single episodes (φ {self.phi:+.2f}, {weight})"
        return f"; dreamed twins: φ {self.phi:+.2f}, {weight}, worth {max(self.n_saved or 0, 0)} more episodes"

    def _about_tasks(self) -> str:
        if not self.looked_at:
            return ""
        worse = ", ".join(str(pairs) for pairs in self.looked_at if pairs.task in self.worse)
        looked = f"; tasks looked at again: {len(self.looked_at)}, "
        return looked + (f"rolled back for {worse}" if worse else "none of them clearly worse")


@dataclass(frozen=True)
class Evidence:
    """What pairs tell after each of them; arrays (..., n) of one gate or of many."""

    log_gain: Floats  # log e-value against "the challenger is no better"
    log_loss: Floats  # against "it is no worse"
    total: Floats  # sum of the gains of single pairs, corrected by twins if there are any
    squares: Floats  # sum of their squares


@dataclass(frozen=True)
class Decision:
    """Whether a gate ends here, for one gate or for many."""

    reason: NDArray[np.str_]  # "": go on; see the head of this file
    accepted: NDArray[np.bool_]  # where it ends


def judge(
    champion: Side,
    challenger: Side,
    first_seed: int,
    block: int,
    most: int,
    alpha: float,
    z_loss: float,
    cycle: int = 1,
    guard: Guard | None = None,
) -> Verdict:
    """Compare on blocks of `block` seeds from `first_seed` on, until the decision is settled or `most` are used.

    Args:
        champion: the best policy so far.
        challenger: the policy that may replace it; with a dream if the champion has one.
        first_seed: names the first episode.
        block: pairs between two looks.
        most: pairs at most.
        alpha: probability that the gate calls anything clear although neither policy is better.
        z_loss: without a clear result, a loss of at least this many standard errors is rolled back; 0: any loss.
        cycle: number of tasks, to which seeds are assigned in turn; see `rl.sequential.log_capital`.
        guard: looks again at tasks that a challenger would lose pairs on; one that got worse rolls it back.
    """
    pairs = Pairs()
    while True:
        seeds = list(range(first_seed + pairs.n, first_seed + min(pairs.n + block, most)))
        # Dream first: once an episode has run, it may become training data of the dream.
        dreamed = [side.dream(seeds) if side.dream is not None else None for side in (champion, challenger)]
        pairs.add(champion.run(seeds), challenger.run(seeds), *dreamed)
        found = evidence(*pairs.gains, alpha=alpha, cycle=cycle)
        decision = decide(found, pairs.n, most, alpha, z_loss)
        if reason := str(decision.reason[-1]):
            accepted = bool(decision.accepted[-1])
            behind = [of.task for of in by_task(*pairs.results) if of.is_behind]
            looked_at, worse = guard.look(behind) if guard is not None and accepted and behind else ([], [])
            verdict = pairs.verdict(accepted and not worse, reason, cycle)
            return replace(verdict, looked_at=looked_at, worse=worse)


def evidence(
    gains: Any, twins: Any | None = None, others: Any | None = None, alpha: float = 0.05, cycle: int = 1
) -> Evidence:
    """Return the evidence after each pair.

    Args:
        gains: (..., n), 1: only the challenger solved it, -1: only the champion did, 0: both or neither.
        twins: (..., n), the same of their dreamed twins; None: there are none.
        others: (..., n, K), the same of dreams from fresh starts.
        alpha: see `judge`.
        cycle: see `judge`.
    """
    processes = [plain(gains, LOWEST, HIGHEST)]
    if twins is not None and others is not None:
        processes.append(corrected(gains, twins, others, LOWEST, HIGHEST, cycle))
    x = processes[-1].value
    return Evidence(
        log_gain=log_evidence(processes, 0.0, above=True, alpha=alpha, cycle=cycle),
        log_loss=log_evidence(processes, 0.0, above=False, alpha=alpha, cycle=cycle),
        total=np.cumsum(x, axis=-1),
        squares=np.cumsum(x * x, axis=-1),
    )


def decide(found: Evidence, n: Any, most: int, alpha: float, z_loss: float) -> Decision:
    """Decide after `n` pairs, a number or an array like those of `found`, of `most`; see `judge`."""
    clear = math.log(2 / alpha)
    left = most - np.asarray(n)
    # The noise of one pair under no difference; one pair is added that differs, for gates without any so far.
    noise = np.sqrt((found.squares + 1) / (np.asarray(n) + 1))
    # The final rule on the sum of gains: at `most` it rolls back below this bound, for which noise explains a loss.
    bound = -z_loss * np.where(left == 0, np.sqrt(found.squares), noise * math.sqrt(most))
    ahead = np.where(left == 0, _at_least(found.total, bound, z_loss), found.total >= bound)
    settled = np.abs(found.total - bound) > NormalDist().inv_cdf(1 - UNLIKELY) * noise * np.sqrt(left)
    gain, loss = found.log_gain >= clear, found.log_loss >= clear
    reason = np.select([gain, loss, left == 0, settled], ["clear gain", "clear loss", "unclear", "settled"], default="")
    return Decision(reason, np.where(gain, True, np.where(loss, False, ahead)))


class Pairs:
    """The pairs of one gate so far, in the order of their seeds."""

    def __init__(self) -> None:
        self.n = 0
        self.results: tuple[list[EpisodeResult], list[EpisodeResult]] = [], []  # of champion and challenger
        self.outcomes: list[NDArray[np.float64]] = []  # (2, block) of champion and challenger, per block
        self.twins: list[NDArray[np.float64]] = []  # (2, block); empty without twins
        self.others: list[NDArray[np.float64]] = []  # (2, block, K)

    def add(
        self,
        champion: Sequence[EpisodeResult],
        challenger: Sequence[EpisodeResult],
        dream_of_champion: Dreamed | None = None,
        dream_of_challenger: Dreamed | None = None,
    ) -> None:
        """Add a block of results, in any order, and its dreams, in the order of the seeds."""
        sides = [sorted(side, key=lambda result: result.seed) for side in (champion, challenger)]
        assert [r.seed for r in sides[0]] == [r.seed for r in sides[1]]  # paired: the same episodes
        self.outcomes.append(outcomes(*sides))
        self.n += len(sides[0])
        for all_results, side in zip(self.results, sides, strict=True):
            all_results += side
        if dream_of_champion is not None and dream_of_challenger is not None:
            dreams = dream_of_champion, dream_of_challenger
            self.twins.append(np.stack([dream.twins for dream in dreams]))
            self.others.append(np.stack([dream.others for dream in dreams]))

    @property
    def gains(self) -> tuple[Floats, Floats | None, Floats | None]:
        """Gains of all pairs (n,), of their twins (n,) and of the other dreams (n, K); the last two may be None."""
        old, new = np.concatenate(self.outcomes, axis=1)
        if not self.twins:
            return new - old, None, None
        twins, others = np.concatenate(self.twins, axis=1), np.concatenate(self.others, axis=1)
        return new - old, twins[1] - twins[0], others[1] - others[0]

    def verdict(self, accepted: bool, reason: str, cycle: int) -> Verdict:
        """Return the verdict with the estimates of all pairs."""
        old, new = np.concatenate(self.outcomes, axis=1)
        found: Estimate = estimate(*self.gains, low=LOWEST, high=HIGHEST, cycle=cycle)
        twins = np.concatenate(self.twins, axis=1) if self.twins else None
        return Verdict(
            accepted=accepted,
            champion=float(old.mean()),
            challenger=float(new.mean()),
            won=int((new > old).sum()),
            lost=int((old > new).sum()),
            n_episodes=self.n,
            reason=reason,
            gain=found.mean,
            gain_low=found.low,
            gain_high=found.high,
            twin_weight=None if twins is None else found.twin_weight,
            phi=None if twins is None else phi([(old, twins[0]), (new, twins[1])]),
            n_saved=None if twins is None else found.n_saved,
            by_reward=not have_success(*self.results),
        )


def _at_least(total: Floats, bound: Floats, z_loss: float) -> NDArray[np.bool_]:
    """Whether a final sum of gains is accepted: no loss, or a smaller one than the bound. 1e-9 is rounding."""
    return (total >= -1e-9) | ((total > bound + 1e-9) if z_loss > 0 else np.zeros_like(total, dtype=bool))
