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
from rl.envs.metaworld.scene import Scene
from world_model.view import View

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
        self._shown: Any = None  # a second state of the model, in which earlier scenes are rendered

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

    def images(self, cameras: Cameras, scene: Array | None = None) -> Images:
        """Render the scene with each camera; see `rl.envs.workers.Task.images`.

        `scene` is an earlier one that `scene()` returned; None: as it is now.
        """
        assert self._env.drawn or not cameras, "make the task with looked_at=True to render it"
        data = self._env.data
        if scene is not None:
            data = self._shown = self._shown or mujoco.MjData(self._env.model)
            Scene(data).write(scene)
        elif cameras:
            self._place()
        return {name: _camera(self._task, use).render(data, use.view, use.light) for name, use in cameras.items()}

    def scene(self) -> Array:
        """Return where everything is, which `images` can render later."""
        self._place()
        return Scene(self._env.data).read()

    def _place(self) -> None:
        """Compute the poses that stock has not computed yet.

        At the start of an episode stock has moved bodies without computing their poses, so an image would show them
        where they were before: on drawer-open, window-open and faucet-open up to 15 cm away.
        """
        if self._at_start:
            mujoco.mj_kinematics(self._env.model, self._env.data)  # poses alone: the physics goes on to the same bits

    def close(self) -> None:
        """Free the physics, up to 26 MB.

        An environment refers to itself, so without this it would stay in memory until the next garbage collection.
        """
        vars(self._env).clear()
        self._shown = None


def _camera(task: str, use: CameraUse) -> Any:
    """Return the one camera of its size for all environments of a task, wherever it stands."""
    return _made_camera(task, View(camera=use.view.camera, shows_goal=use.view.shows_goal), use.height, use.width)


@cache
def _made_camera(task: str, view: View, height: int, width: int) -> Any:
    """Return a camera; imported late, as most runs render nothing."""
    from rl.envs.metaworld.camera import Camera

    return Camera(fast_class(f"{task}-v3")(True).model, view, height, width)


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
