"""Success of the five test tasks of ML45 as a reward, computed from the state alone: the same in simulator and dream.

These are Meta-World's own conditions: the object is near its goal, for the two locks along one axis. A dream of an
unseen task needs this, because what the model has learned to call a success it has learned on other tasks, until a
refit has an episode with a success.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.api import Transition, reward

WITHIN = {"bin-picking": 0.05, "box-close": 0.08, "door-lock": 0.02, "door-unlock": 0.02, "hand-insert": 0.05}
"""Task -> distance of object and goal at which Meta-World calls it solved, in metres."""

AXES = {"door-lock": (2,), "door-unlock": (0,)}
"""Task -> axes along which the distance counts; all three for the others."""


@reward(requires=("object_pos", "goal_pos"))
def reached(t: Transition, task: str) -> Tensor:
    """1 at a step by which the task becomes solved, -1 at one by which it is undone, else 0. Shape: (num_envs,)."""
    return solved(t, t.next_state, task).float() - solved(t, t.state, task).float()


@reward(requires=("hand_pos", "object_pos", "goal_pos"))
def closer(t: Transition, task: str) -> Tensor:
    """How much closer a step brings the object to its goal and, at half weight, the hand to the object; in metres.

    A shaping term: the change of a potential (Ng, Harada and Russell, 1999). Shape: (num_envs,).
    """
    return to_go(t, t.state, task) - to_go(t, t.next_state, task)


def solved(t: Transition, state: Tensor, task: str) -> Tensor:
    """Whether states (num_envs, state_dim) solve the task. Shape: (num_envs,)."""
    return distance(t, state, task) <= WITHIN[task]


def to_go(t: Transition, state: Tensor, task: str) -> Tensor:
    """Return the distance of object and goal, and half that of hand and object. Shape: (num_envs,)."""
    reach = torch.linalg.vector_norm(state[:, t.slices["hand_pos"]] - state[:, t.slices["object_pos"]], dim=1)
    return distance(t, state, task) + 0.5 * reach


def distance(t: Transition, state: Tensor, task: str) -> Tensor:
    """Return the distance of object and goal in the states (num_envs, state_dim). Shape: (num_envs,)."""
    gap = state[:, t.slices["object_pos"]] - state[:, t.slices["goal_pos"]]
    return torch.linalg.vector_norm(gap[:, list(AXES.get(task, (0, 1, 2)))], dim=1)
