"""Meta-World tasks with reproducible seeds, unlimited goals and a state of 21 numbers, and their scripted experts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import mujoco
import numpy as np
from metaworld.env_dict import ENV_CLS_MAP
from metaworld.policies import ENV_POLICY_MAP

from rewards.errors import UserError, closest_or_known
from rl.envs.cameras import Cameras, CameraUse, Images
from rl.envs.metaworld.fast_sawyer import fast_class

Array = np.ndarray
Expert = Callable[[Array, Array], Array]
"""(frame (21,), previous frame (21,)) -> action (4,), within bounds."""

TASKS = tuple(sorted(name.removesuffix("-v3") for name in ENV_CLS_MAP))
STATE_DIM = 21
UNIT = "m, gripper opening 0..1, quaternions"
SLICES = {
    "hand_pos": (0, 3),
    "gripper": (3, 4),
    "object_pos": (4, 7),
    "object_quat": (7, 11),
    "object2_pos": (11, 14),
    "object2_quat": (14, 18),
    "goal_pos": (18, 21),
}
ACTION_LOW, ACTION_HIGH = (-1.0,) * 4, (1.0,) * 4
CONTROL_HZ = 80.0  # one action is 5 physics steps of 2.5 ms


def check_task(task: str) -> None:
    """Raise `UserError` with the known names if Meta-World has no such task."""
    if task not in TASKS:
        raise UserError(f"task {task!r} is unknown to Meta-World; {closest_or_known(task, TASKS)}")


class MetaWorldTask:
    """One Meta-World task with the protocol `rl.envs.workers.Task`; frames have 21 numbers, see `SLICES`.

    Pass `looked_at` if it will be rendered: its model then keeps everything that is visible.
    """

    def __init__(self, task: str, looked_at: bool = False) -> None:
        check_task(task)
        self._task = task
        self._env = fast_class(f"{task}-v3")(looked_at)
        self._at_start = False  # of an episode, where bodies have been moved and stock has not computed their poses yet

    @property
    def model(self) -> Any:
        """The MuJoCo model; events change its masses, friction and damping."""
        return self._env.model

    @property
    def data(self) -> Any:
        """State of the MuJoCo model."""
        return self._env.data

    def reset(self, seed: int) -> Array:
        """Begin the episode that stock begins after `env.seed(seed); env.reset()`; return its first frame (21,)."""
        self._at_start = True
        return _frame(self._env.restart(seed))

    def step(self, action: Array) -> tuple[Array, float, bool, bool, bool]:
        """Execute `action` (4,); return frame (21,), reward, success, terminated, truncated."""
        self._at_start = False
        obs, reward, success = self._env.advance(action)
        return _frame(obs), reward, success, False, False

    def images(self, cameras: Cameras) -> Images:
        """Render the scene with each camera; see `rl.envs.workers.Task.images`.

        At the start of an episode stock has moved bodies without computing their poses, so an image would show them
        where they were before: on drawer-open, window-open and faucet-open up to 15 cm away.
        """
        assert self._env.drawn or not cameras, "make the task with looked_at=True to render it"
        if cameras and self._at_start:
            mujoco.mj_kinematics(self._env.model, self._env.data)  # poses alone: the physics goes on to the same bits
        return {name: _camera(self._task, use).render(self._env.data) for name, use in cameras.items()}

    def close(self) -> None:
        """Free the physics, up to 26 MB.

        An environment refers to itself, so without this it would stay in memory until the next garbage collection.
        """
        vars(self._env).clear()


@cache
def _camera(task: str, use: CameraUse) -> Any:
    """Return the one camera for all environments of a task; imported late, as most runs render nothing."""
    from rl.envs.metaworld.camera import Camera

    return Camera(fast_class(f"{task}-v3")(True).model, use.view, use.height, use.width)


def scripted_expert(task: str) -> Expert:
    """Return Meta-World's scripted policy for `task`: (frame (21,), previous frame (21,)) -> action (4,) in [-1, 1]."""
    check_task(task)
    policy = ENV_POLICY_MAP[f"{task}-v3"]()

    def act(frame: Array, previous: Array) -> Array:
        obs = np.concatenate([frame[:18], previous[:18], frame[18:]]).astype(np.float64)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Constant")  # the policy warns that it clips, but does not clip
            return np.clip(policy.get_action(obs), -1.0, 1.0).astype(np.float32)

    return act


def _frame(obs: Array) -> Array:
    """Return the current frame and the goal from stock's 39 numbers; entries 18:36 are the previous frame."""
    return np.concatenate([obs[:18], obs[36:39]]).astype(np.float32)
