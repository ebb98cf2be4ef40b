"""A simulator of your own in torch: a point that moves to a goal. It needs no change in the toolkit.

    wamtune train gaussian env.simulator=examples/own_simulator.py:PointSim env.max_steps=40 rewards.success.weight=1

docs/bring_your_own_simulator.md explains each part, and how to pretrain a world model on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rl.envs.simulator import Simulator
from world_model.env import Advance, Start, repeated
from world_model.flow import seeded_noise
from world_model.spec import Feature, Spec


class PointSim(Simulator):
    """A point in the plane must reach a goal; within `radius` metres of the goal is a success."""

    def __init__(
        self,
        id: str,
        tasks: Sequence[str],
        known_tasks: Sequence[str],
        n_envs: int,
        radius: float = 0.1,
        **common: Any,
    ) -> None:
        state = Feature((4,), "m", slices={"point_pos": (0, 2), "goal_pos": (2, 4)})
        low, high = (-1.0, -1.0), (1.0, 1.0)  # m/s
        super().__init__(Spec({"state": state}, low, high, tuple(known_tasks), control_hz=10.0), n_envs, **common)
        self.radius = radius

    def _restart(self, mask: Tensor) -> Start:
        """Begin the episodes of the next seeds; the same seed gives the same start."""
        seeds = self._next_seeds(int(mask.sum()))
        first = seeded_noise(seeds, torch.zeros_like(seeds), (4,)).tanh()
        return Start({"state": repeated(first, self.n_context_frames)}, torch.zeros_like(seeds), seeds)

    def _advance(self, actions: Tensor, limit: Tensor) -> Advance:
        """Execute a chunk of `actions` (num_envs, k, 2), all environments at once."""
        point, goal = self.context["state"][:, -1].split(2, dim=1)
        points = point[:, None] + (actions / self.spec.control_hz).cumsum(1)
        goals = goal[:, None].expand_as(points)
        distance = (points - goals).norm(dim=2)
        never = torch.zeros_like(distance, dtype=torch.bool)
        frames = torch.cat([points, goals], dim=2)
        return Advance({"state": frames}, distance < self.radius, never, never, task_reward=-distance)

    def expert_actions(self) -> Tensor:
        """Return actions that go straight to the goal, slower near it. Shape: (num_envs, 2)."""
        point, goal = self.context["state"][:, -1].split(2, dim=1)
        return ((goal - point) * self.spec.control_hz).clamp(-1.0, 1.0)
