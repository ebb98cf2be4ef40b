"""The guard of a gate with several tasks: what was learned on one task must not be lost on another.

A gate tests the mean over tasks, with few pairs of each. A policy that gains on most tasks may pass it although it has
lost one. So before a challenger with several tasks is accepted, the tasks on which it lost more pairs than it won are
looked at again: up to `n_pairs` fresh pairs of each, in two halves. A task without more losses than wins in the first
half is cleared. On the fresh pairs of the others a one-sided sign test asks whether the task got worse, with Holm's
correction over all tasks that were looked at.

The pairs of the gate itself choose the tasks and are not tested, and the first half can only clear a task; so the
probability of calling any task worse although none is stays below alpha. It costs pairs on suspicious tasks alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rl.rounds.evaluate import EpisodeResult, outcomes
from rl.statistics import holm, sign_test

RunTasks = Callable[[list[int], Sequence[str]], list[EpisodeResult]]
"""Called with (seeds, tasks): runs the episodes of all seeds in each of these tasks."""


@dataclass(frozen=True)
class TaskPairs:
    """Pairs of champion and challenger on one task."""

    task: str
    n: int
    champion: int  # episodes that it solved, or without success those in which it got more reward
    challenger: int
    won: int  # that only the challenger solved, or in which it got more reward
    lost: int  # that only the champion solved, or in which it got more reward

    @property
    def is_behind(self) -> bool:
        """Whether the challenger lost more pairs than it won."""
        return self.lost > self.won

    def __str__(self) -> str:
        return f"{self.task} (won {self.won}, lost {self.lost} of {self.n})"

    def __add__(self, other: TaskPairs) -> TaskPairs:
        """Return the pairs of both together, of the same task."""
        return TaskPairs(
            task=self.task,
            n=self.n + other.n,
            champion=self.champion + other.champion,
            challenger=self.challenger + other.challenger,
            won=self.won + other.won,
            lost=self.lost + other.lost,
        )


@dataclass(frozen=True)
class Guard:
    """What looks at single tasks: fresh pairs of each, with seeds of its own."""

    champion: RunTasks
    challenger: RunTasks
    first_seed: int
    n_pairs: int  # of a task at most
    alpha: float  # probability of calling any task worse although none is

    def look(self, tasks: Sequence[str]) -> tuple[list[TaskPairs], list[str]]:
        """Run fresh pairs of `tasks`; return the pairs of each, and those tasks that got worse."""
        half = -(-self.n_pairs // 2)
        found = self._pairs(range(half), tasks)
        left = [task for task, pairs in found.items() if pairs.is_behind]
        if left and self.n_pairs > half:
            more = self._pairs(range(half, self.n_pairs), left)
            found |= {task: found[task] + pairs for task, pairs in more.items()}
        return list(found.values()), worse(list(found.values()), left, self.alpha)

    def _pairs(self, numbers: range, tasks: Sequence[str]) -> dict[str, TaskPairs]:
        seeds = [self.first_seed + i for i in numbers]
        return {of.task: of for of in by_task(self.champion(seeds, tasks), self.challenger(seeds, tasks))}


def worse(pairs: Sequence[TaskPairs], left: Sequence[str], alpha: float) -> list[str]:
    """Return the tasks that got worse by a sign test, Holm over `pairs`; those not in `left` were cleared."""
    p_values = [sign_test(of.won, of.lost) if of.task in left else 1.0 for of in pairs]
    return [of.task for of, rejected in zip(pairs, holm(p_values, alpha), strict=True) if rejected]


def by_task(champion: Sequence[EpisodeResult], challenger: Sequence[EpisodeResult]) -> list[TaskPairs]:
    """Return the pairs of each task, in the order in which tasks occur; both sides ran the same episodes."""
    of_challenger = {(result.task, result.seed): result for result in challenger}
    assert len(of_challenger) == len(champion)
    found: dict[str, TaskPairs] = {}
    in_order = [of_challenger[result.task, result.seed] for result in champion]
    for result, (old, new) in zip(champion, outcomes(champion, in_order).T, strict=True):
        pair = TaskPairs(
            result.task,
            n=1,
            champion=int(old == 1),
            challenger=int(new == 1),
            won=int(new > old),
            lost=int(old > new),
        )
        found[pair.task] = found[pair.task] + pair if pair.task in found else pair
    return list(found.values())
