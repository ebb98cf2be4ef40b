"""Dreamed twins of real episodes: the same starts and the same policy noise, in the dream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from rl.config import TrainConfig
from rl.envs.simulator import Simulator
from rl.policies.api import Policy, TrainablePolicy
from rl.rounds.dreams import Dreams
from rl.rounds.eval_envs import EvalEnvs
from rl.rounds.evaluate import evaluate_dream, whole_episodes
from rl.rounds.gate import Dreamed
from rl.seeds import TWIN
from world_model.dream_env import DreamEnv, StartStates
from world_model.tree import join


class Twins:
    """Dream the twins of real episodes, and for each `n_others` more episodes from fresh starts of the same task.

    The starts are those of the simulator for the seeds; only the simulator is reset, no step is executed.

    Args:
        starts: returns the first states of the episodes of some seeds, which it assigns to `n_tasks` tasks in turn.
        make_dream: builds the dream of one episode from each start, in order.
        n_others: K, the number of other dreams for each real episode.
        n_tasks: see `starts`.
        first: smallest seed of the other dreams, which nothing else uses; episode i of the run has those from
            first + i * n_others on.
        first_real: seed of episode 0 of the run.
    """

    def __init__(
        self,
        starts: Callable[[Sequence[int]], StartStates],
        make_dream: Callable[[StartStates], DreamEnv],
        n_others: int,
        n_tasks: int,
        first: int,
        first_real: int,
    ) -> None:
        self.starts, self.make_dream = starts, make_dream
        self.n_others, self.n_tasks, self.first, self.first_real = n_others, n_tasks, first, first_real
        self._last: tuple[list[int], StartStates] | None = None  # both sides of a gate dream from the same starts

    def dream(self, policy: Policy, seeds: list[int]) -> Dreamed:
        """Dream the twins of the episodes of `seeds`, and the others; both in the order of `seeds`."""
        groups = [seeds, *([self._other_seed(seed, k) for seed in seeds] for k in range(self.n_others))]
        results = evaluate_dream(policy, self.make_dream(self._starts_of(groups)))
        success = {result.seed: result.success for result in results}
        twins, *others = ([float(success[seed]) for seed in group] for group in groups)
        return Dreamed(np.array(twins), np.array(others).T)

    def _other_seed(self, seed: int, k: int) -> int:
        return self.first + (seed - self.first_real) * self.n_others + k

    def _starts_of(self, groups: list[list[int]]) -> StartStates:
        """Return the starts of all groups of seeds; seed i of each group has the same task."""
        if self._last is None or self._last[0] != groups[0]:
            # Tasks are assigned in turn, so whole cycles may be asked for at once.
            whole = len(groups[0]) % self.n_tasks == 0
            asked = [[seed for group in groups for seed in group]] if whole else groups
            self._last = groups[0], join([self.starts(part) for part in asked])
        return self._last[1]


def make_twins(
    config: TrainConfig, dreams: Dreams | None, eval_envs: EvalEnvs, sim: Simulator, policy: TrainablePolicy
) -> Twins | None:
    """Return what dreams the twins of gates; None in a run without dreams, or if the gate itself runs in a dream."""
    if dreams is None or sim.place != "sim" or config.gate.n_dreams == 0:
        return None
    return Twins(
        starts=eval_envs.starts,
        make_dream=partial(whole_episodes, dreams.model, sim, policy),
        n_others=config.gate.n_dreams,
        n_tasks=len(eval_envs.envs),
        first=TWIN.start,
        first_real=config.gate.seed,
    )
