"""The built-in reward terms.

Signs: a term for something unwanted returns a positive magnitude, and its weight in the config is negative. No term is
scaled by the duration of a step.
`wamtune ls rewards` prints the first line of each docstring, so it says what the term measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rewards.api import Transition, reward
from rewards.errors import UserError


@reward(requires=("success",))
def success(t: Transition) -> Tensor:
    """1 at every step whose state solves the task, else 0. Shape: (num_envs,)."""
    return t.success.to(t.next_state.dtype)


@reward(requires=("progress",))
def progress(t: Transition, gamma: float = 1.0) -> Tensor:
    """Potential difference `gamma * next_progress - progress`. Shape: (num_envs,).

    With gamma 1, its sum over an episode is the progress made. With the gamma of PPO, moving in circles gains nothing
    (potential-based shaping, Ng et al. 1999). Unlike there, the potential of the last state is not set to 0, so an
    early success gets slightly more.
    """
    assert t.progress is not None and t.next_progress is not None  # checked by `requires`
    return gamma * t.next_progress - t.progress


@reward(requires=("task_reward",))
def task_reward(t: Transition) -> Tensor:
    """The simulator's own reward; not available in a dream. Shape: (num_envs,)."""
    assert t.task_reward is not None  # checked by `requires`
    return t.task_reward


@reward
def time_cost(t: Transition) -> Tensor:
    """1 at every step; give it a negative weight. Shape: (num_envs,)."""
    return torch.ones_like(t.next_state[:, 0])


@reward(requires=("action",))
def action_l2(t: Transition) -> Tensor:
    """Squared length of the action; give it a negative weight. Shape: (num_envs,)."""
    return t.action.square().sum(-1)


@reward(requires=("action_history",))
def action_rate(t: Transition) -> Tensor:
    """Squared difference of the last two actions; give it a negative weight. Shape: (num_envs,)."""
    _, a1, a2 = t.action_history.unbind(1)
    return (a2 - a1).square().sum(-1)


@reward(requires=("action_history",))
def action_jerk(t: Transition) -> Tensor:
    """Squared second difference of the last three actions; give it a negative weight. Shape: (num_envs,)."""
    a0, a1, a2 = t.action_history.unbind(1)
    return (a2 - 2 * a1 + a0).square().sum(-1)


class WorkspaceLimit:
    """Distance of a slice of the state to the box [low, high], 0 inside; give it a negative weight.

    Args:
        low: lower corner, one number per dimension of the slice, in its unit.
        high: upper corner.
        slice_name: slice of the state.

    Raises:
        ValueError: the corners have different lengths, or `low` exceeds `high`.
    """

    def __init__(self, low: Sequence[float], high: Sequence[float], slice_name: str = "hand_pos") -> None:
        self.low, self.high = torch.tensor(list(low)), torch.tensor(list(high))
        self.slice_name = slice_name
        self.requires = (slice_name,)  # depends on a param, so this term is a class and not a function
        if self.low.shape != self.high.shape or not bool((self.low <= self.high).all()):
            raise ValueError(f"low {list(low)} must have the length of high {list(high)} and not exceed it")

    def __call__(self, t: Transition) -> Tensor:
        """Return the distance to the box. Shape: (num_envs,)."""
        position = t[self.slice_name]
        if position.shape[1] != len(self.low):
            raise UserError(
                f"low and high have {len(self.low)} numbers, "
                f"the slice {self.slice_name!r} has {position.shape[1]}; give one a dimension"
            )
        low, high = self.low.to(position), self.high.to(position)
        distance: Tensor = torch.linalg.vector_norm(position - position.clamp(low, high), dim=-1)
        return distance


class GoalImage:
    """Distance of the image from a goal image, in the latents of the model; give it a negative weight.

    Args:
        path: the goal image, a PNG taken from the position of the camera.
        view: number of the camera, from 0.
    """

    requires = ("latents",)

    def __init__(self, path: str, view: int = 0) -> None:
        self.path, self.view = path, view
        self.goal: Tensor | None = None

    def __call__(self, t: Transition) -> Tensor:
        """Return the root mean square difference of the latents. Shape: (num_envs,)."""
        assert t.images is not None  # checked by `requires`
        n_cameras = t.images.n_cameras
        if not 0 <= self.view < n_cameras:
            raise UserError(f"view={self.view}: the model has {n_cameras} cameras, counted from 0")
        if self.goal is None:  # encode on the first call: the model is not known earlier
            self.goal = t.images.encode_file(self.path)[self.view]
        latents = t["latents"].view(len(t.state), n_cameras, -1)[:, self.view]
        distance: Tensor = (latents - self.goal).square().mean(1).sqrt()
        return distance


BUILTIN: dict[str, Callable[..., object]] = {
    "success": success,
    "progress": progress,
    "task_reward": task_reward,
    "time_cost": time_cost,
    "action_l2": action_l2,
    "action_rate": action_rate,
    "action_jerk": action_jerk,
    "workspace_limit": WorkspaceLimit,
    "goal_image": GoalImage,
}
