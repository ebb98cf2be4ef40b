"""Reward terms of your own: functions of a batched transition, and a class that remembers something between steps.

`gentle_grasp.yaml` shows how a config uses one. On the command line:

    wamtune check mix rewards.reach.func=examples/my_rewards.py:reach rewards.reach.weight=-0.1
"""

import torch
from torch import Tensor

from rewards import Transition, reward


@reward(requires=("gripper", "hand_pos", "object_pos"))
def gentle_grasp(t: Transition, near: float = 0.06) -> Tensor:
    """How fast the gripper closes within `near` (m) of the object; give it a negative weight. Shape: (num_envs,)."""
    closed = (t.state - t.next_state)[:, t.slices["gripper"]].sum(-1).clamp(min=0.0)
    distance = (t["hand_pos"] - t["object_pos"]).square().sum(-1).sqrt()
    return closed * (distance < near)


@reward(requires=("hand_pos", "object_pos"))
def reach(t: Transition) -> Tensor:
    """Distance of the hand to the object (m); give it a negative weight. Shape: (num_envs,)."""
    return (t["hand_pos"] - t["object_pos"]).square().sum(-1).sqrt()


@reward(requires=("object_pos",))
def lifted(t: Transition, above: float = 0.05) -> Tensor:
    """1 while the object is more than `above` (m) over the table, else 0. Shape: (num_envs,)."""
    return (t["object_pos"][:, 2] > above).to(t.next_state.dtype)


@reward(requires=("hand_pos",))
class Idle:
    """For how many steps in a row the hand has moved less than `least` (m); give it a negative weight."""

    def __init__(self, least: float = 0.002) -> None:
        self.least = least
        self.steps = torch.zeros(0)

    def reset(self, mask: Tensor) -> None:
        """Begin to count anew where `mask` (num_envs,) holds: an episode begins there."""
        self.steps = (
            torch.where(mask, 0.0, self.steps) if len(self.steps) else torch.zeros_like(mask, dtype=torch.float32)
        )

    def __call__(self, t: Transition) -> Tensor:
        """Return the number of steps. Shape: (num_envs,)."""
        hand = t.slices["hand_pos"]
        moved = (t.next_state - t.state)[:, hand].square().sum(-1).sqrt()
        self.steps = torch.where(moved < self.least, self.steps.to(moved) + 1, 0.0)
        return self.steps
