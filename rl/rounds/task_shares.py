"""Steer a run with several tasks to those with most to gain.

A task that the policy always solves, or never, teaches nothing by reward: all its episodes end alike. So a part `steer`
of the environments is divided in proportion to p (1 - p), where p is the success of a task while it is trained. This is
the variance of the outcome, called learnability by Rutherford et al. ("No Regrets", NeurIPS 2024). The rest is divided
equally, so that no task is left out: what is solved is still practised, and what is not gets its chances.

p is (successes + 1) / (episodes + 2), counted where the task is trained: in the dream for the dream, in the simulator
for the simulator. With each rollout earlier episodes lose weight (`KEPT`). No episode of an evaluation or of a gate is
counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rl.envs.simulator import Simulator
from rl.ppo.buffer import Rollout
from rl.ppo.distributed import Distributed
from rl.rounds.outcome import RunState
from world_model.dream_env import DreamEnv

KEPT = 0.8
"""Factor by which the weight of counted episodes falls with each rollout: about the last five of them count."""


class TaskShares:
    """Count success by task in each place, and give tasks their shares of the environments.

    Args:
        known: the tasks that `obs["task"]` indexes.
        trained: those of the run; with fewer than two nothing is counted or steered.
        steer: see the head of this file; 0: all tasks get the same share.
        state: of the run; `tasks_seen` is updated here, so that a resumed run goes on alike.
        distributed: the processes that train together; each counts the episodes of all.
    """

    def __init__(
        self, known: Sequence[str], trained: Sequence[str], steer: float, state: RunState, distributed: Distributed
    ) -> None:
        self.known, self.trained, self.steer = known, tuple(dict.fromkeys(trained)), steer
        self.state, self.distributed = state, distributed

    def count(self, place: str, rollout: Rollout, fresh: bool) -> dict[str, float]:
        """Count the episodes that ended in a rollout; return the success of each task of the run, to log."""
        if len(self.trained) < 2:
            return {}
        new = self.distributed.sum(rollout.ends_by_task(len(self.known), fresh)).cpu()
        before = self.state.tasks_seen.get(place)
        self.state.tasks_seen[place] = new if before is None else KEPT * before + new
        of = {task: new[self.known.index(task)].tolist() for task in self.trained}
        return {f"rollout/{place}_success/{task}": hits / n for task, (n, hits) in of.items() if n}

    def share_in(self, place: str) -> Tensor | None:
        """Return the share of each task of the run in a place (n_trained,); None: there is nothing to steer by."""
        seen = self.state.tasks_seen.get(place)
        if seen is None or self.steer == 0:
            return None
        return shares(seen[[self.known.index(task) for task in self.trained]], self.steer)

    def steer_dream(self, dream: DreamEnv) -> None:
        """Let the branches of a dream begin in starts of each task by its share."""
        if (found := self.share_in(DreamEnv.place)) is not None:
            dream.task_shares = torch.zeros(len(self.known), dtype=found.dtype)
            dream.task_shares[[self.known.index(task) for task in self.trained]] = found

    def steer_sim(self, sim: Simulator) -> None:
        """Give each task its share of the environments; a simulator that cannot change their tasks stays as it is."""
        found = self.share_in(sim.place)
        if found is None or not sim.assigns_tasks:
            return
        n_all, rank = sim.num_envs * self.distributed.world_size, self.distributed.rank
        tasks = [task for task, n in zip(self.trained, divided(found, n_all), strict=True) for _ in range(n)]
        sim.assign(tasks[rank :: self.distributed.world_size])


def shares(seen: Tensor, steer: float) -> Tensor:
    """Return the share of each task. Shape: (n_tasks,).

    Args:
        seen: (n_tasks, 2), episodes that ended, and those of them that succeeded.
        steer: the part that is divided by p (1 - p); the rest is divided equally.
    """
    p = (seen[:, 1] + 1) / (seen[:, 0] + 2)
    gain = p * (1 - p)  # more than 0, as p is never 0 or 1
    return (1 - steer) / len(seen) + steer * gain / gain.sum()


def divided(share: Tensor, n: int) -> list[int]:
    """Return whole numbers in proportion to `share` (n_tasks,), whose sum is 1, that add up to `n`.

    Each gets its quota rounded down, and what is left goes to those with the largest remainders.
    """
    quota = share.double() * n
    whole = quota.floor()
    order = torch.argsort(quota - whole, descending=True, stable=True)
    whole[order[: n - int(whole.sum())]] += 1
    return [int(of) for of in whole.tolist()]
