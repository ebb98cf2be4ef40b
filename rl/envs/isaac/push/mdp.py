"""What the puck task observes, pays, and ends with. Positions are in metres, in the frame of their environment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NEAR = 0.03
"""Metres from the goal at which the puck has arrived."""


def finger_pos(env: Any) -> Tensor:
    """Position of the finger (num_envs, 3)."""
    robot = env.scene["robot"]
    return robot.data.body_pos_w.torch[:, robot.body_names.index("finger")] - env.scene.env_origins


def object_pos(env: Any, name: str) -> Tensor:
    """Position of a rigid object of the scene (num_envs, 3)."""
    position: Tensor = env.scene[name].data.root_pos_w.torch - env.scene.env_origins
    return position


def arrived(env: Any) -> Tensor:
    """Whether the puck is at the goal (num_envs,)."""
    return distance_to_goal(env) < NEAR


def distance_to_goal(env: Any) -> Tensor:
    """Metres from the puck to the goal (num_envs,)."""
    return (object_pos(env, "puck") - object_pos(env, "goal"))[:, :2].norm(dim=1)


def distance_to_puck(env: Any) -> Tensor:
    """Metres from the finger to the puck (num_envs,)."""
    return (finger_pos(env) - object_pos(env, "puck"))[:, :2].norm(dim=1)


def place(
    env: Any, env_ids: Tensor | slice, name: str, low: float, high: float, away_from: str | None, least: float
) -> None:
    """Put a rigid object anywhere in a square, at rest, at least `least` metres from another one."""
    thing = env.scene[name]
    pose = thing.data.default_root_pose.torch[env_ids].clone()
    n = len(pose)
    offset = low + (high - low) * torch.rand(n, 2, device=env.device)
    if away_from is not None:
        other = object_pos(env, away_from)[env_ids, :2]
        for _ in range(20):  # each time a good part of those that are too near get away
            near = (offset - other).norm(dim=1) < least
            offset[near] = low + (high - low) * torch.rand(int(near.sum()), 2, device=env.device)
    pose[:, :2] += offset
    pose[:, :3] += env.scene.env_origins[env_ids]
    thing.write_root_pose_to_sim_index(root_pose=pose, env_ids=env_ids)
    thing.write_root_velocity_to_sim_index(root_velocity=torch.zeros(n, 6, device=env.device), env_ids=env_ids)
