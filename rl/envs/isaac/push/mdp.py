"""Observations, rewards, terminations and resets of the puck task.

Positions are in metres, relative to the origin of their environment.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NEAR = 0.03
"""Distance in metres below which the puck has reached the goal."""


def finger_pos(env: Any) -> Tensor:
    """Return the position of the finger. Shape: (num_envs, 3)."""
    robot = env.scene["robot"]
    return robot.data.body_pos_w.torch[:, robot.body_names.index("finger")] - env.scene.env_origins


def object_pos(env: Any, name: str) -> Tensor:
    """Return the position of a rigid object of the scene. Shape: (num_envs, 3)."""
    position: Tensor = env.scene[name].data.root_pos_w.torch - env.scene.env_origins
    return position


def arrived(env: Any) -> Tensor:
    """Return whether the puck is at the goal. Shape: (num_envs,)."""
    return distance_to_goal(env) < NEAR


def distance_to_goal(env: Any) -> Tensor:
    """Return the distance in metres from the puck to the goal. Shape: (num_envs,)."""
    return (object_pos(env, "puck") - object_pos(env, "goal"))[:, :2].norm(dim=1)


def distance_to_puck(env: Any) -> Tensor:
    """Return the distance in metres from the finger to the puck. Shape: (num_envs,)."""
    return (finger_pos(env) - object_pos(env, "puck"))[:, :2].norm(dim=1)


def place(
    env: Any, env_ids: Tensor | slice, name: str, low: float, high: float, away_from: str | None, least: float
) -> None:
    """Place a rigid object at random in a square, at rest, at least `least` metres from the object `away_from`."""
    thing = env.scene[name]
    pose = thing.data.default_root_pose.torch[env_ids].clone()
    n = len(pose)
    offset = low + (high - low) * torch.rand(n, 2, device=env.device)
    if away_from is not None:
        other = object_pos(env, away_from)[env_ids, :2]
        for _ in range(20):  # draw again for those that are too near; each draw leaves fewer of them
            near = (offset - other).norm(dim=1) < least
            offset[near] = low + (high - low) * torch.rand(int(near.sum()), 2, device=env.device)
    pose[:, :2] += offset
    pose[:, :3] += env.scene.env_origins[env_ids]
    thing.write_root_pose_to_sim_index(root_pose=pose, env_ids=env_ids)
    thing.write_root_velocity_to_sim_index(root_velocity=torch.zeros(n, 6, device=env.device), env_ids=env_ids)
