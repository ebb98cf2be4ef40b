"""Any registered gymnasium environment with Box spaces, one at a time. No torch: it runs in worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from rewards.errors import UserError
from rl.envs.opengl import prepare_opengl
from world_model.extras import pip_line
from world_model.view import View

Array = np.ndarray

SLICES = {"gym_pusht/PushT-v0": {"hand_pos": (0, 2)}}
"""What a robot knows of itself in the state of an environment, which gymnasium has no word for."""


class GymTask:
    """One gymnasium environment behind the internal protocol of `SimEnv`; observations are flattened to float32.

    One that is looked at `renders` pictures, as its own camera sees it. Success is `info["is_success"]` or
    `info["success"]`, and False where neither is reported.
    """

    def __init__(self, env_id: str, renders: bool = False) -> None:
        self._env = _make(env_id, renders)
        observation, action = self._env.observation_space, self._env.action_space
        for name, space in (("observation", observation), ("action", action)):
            if not isinstance(space, gymnasium.spaces.Box):
                raise UserError(
                    f"environment {env_id!r}: its {name} space is {type(space).__name__}, expected Box; "
                    f"wrap it or choose another environment"
                )
        assert isinstance(action, gymnasium.spaces.Box)
        if not action.is_bounded() or len(action.shape) != 1:
            raise UserError(f"environment {env_id!r}: its action space is {action}, expected a bounded one-axis Box")
        self._n_steps = 0
        self.state_dim = int(np.prod(observation.shape or (1,)))
        self.action_low, self.action_high = action.low.tolist(), action.high.tolist()
        self.control_hz = float(self._env.metadata.get("render_fps") or 1.0)  # the rate that gymnasium lets it declare

    def reset(self, seed: int) -> Array:
        """Begin the episode that `seed` names; return its first frame (state_dim,)."""
        obs, _ = self._env.reset(seed=seed)
        self._n_steps = 0
        return self._numbers(obs, "observation", self.state_dim)

    def step(self, action: Array) -> tuple[Array, float, bool, bool, bool]:
        """Execute `action` (action_dim,); return frame (state_dim,), reward, success, terminated, truncated."""
        obs, reward, terminated, truncated, info = self._env.step(action)
        self._n_steps += 1
        frame, paid = self._numbers(obs, "observation", self.state_dim), self._numbers(reward, "reward", 1)
        success = info.get("is_success", info.get("success", False))
        ends = self._flag(terminated, "terminated"), self._flag(truncated, "truncated")
        return frame, float(paid[0]), self._flag(success, "success in its info"), *ends

    def pictures(self, views: Sequence[View], size: int) -> Array:
        """Cut what the environment renders to a square and shrink it. Shape: (1, size, size, 3) uint8."""
        where = self._env.spec.id if self._env.spec else self._env
        if len(views) != 1:
            raise UserError(f"environment {where}: it has one camera, model.views has {len(views)}")
        picture = self._env.render()
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            raise UserError(f"environment {where}: it renders no picture in colour; choose a checkpoint that sees none")
        if min(picture.shape[:2]) < size:
            raise UserError(f"environment {where}: it renders {picture.shape[:2]}, model.picture_size is {size}")
        return _shrunk(picture, size)[None]

    def _numbers(self, value: Any, what: str, size: int) -> Array:
        """Return `value` as float32 (size,) after a look at its kind and size; how large it is, is looked at later."""
        array = _array(value)
        if array.size != size:
            raise self._bad(value, what, f"{size} number{'s' * (size > 1)}")
        with np.errstate(over="ignore"):  # infinity is found where the sizes of all environments are looked at
            return array.astype(np.float32).reshape(-1)

    def _flag(self, value: Any, what: str) -> bool:
        array = _array(value)
        if array.size != 1 or array.item() not in (0, 1):
            raise self._bad(value, what, "true or false")
        return bool(array.item())

    def _bad(self, value: Any, what: str, expected: str) -> ValueError:
        got = " ".join(repr(value).split())[:60]
        where = f"{self._env.spec.id if self._env.spec else self._env} returned {got} as {what} at step {self._n_steps}"
        return UserError(f"{where}; expected {expected}; nothing was learned from it")

    def close(self) -> None:
        """Release what the environment holds."""
        self._env.close()


def _shrunk(picture: Array, size: int) -> Array:
    """Mean colour of each of size x size areas of the square around the middle (size, size, 3) uint8."""
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    edges = np.arange(size + 1) * side // size
    sums = picture[top : top + side, left : left + side].astype(np.float64)
    for axis in (0, 1):
        sums = np.add.reduceat(sums, edges[:-1], axis)
    areas = np.outer(np.diff(edges), np.diff(edges))
    return (sums / areas[..., None]).round().astype(np.uint8)


def _make(env_id: str, renders: bool) -> gymnasium.Env[Any, Any]:
    if renders:
        prepare_opengl()
    try:
        if env_id.startswith("gym_pusht/"):
            import gym_pusht  # noqa: F401 - registers the id
        options: dict[str, Any] = {"render_mode": "rgb_array"} if renders else {}
        return gymnasium.make(env_id, disable_env_checker=True, **options)
    except ImportError as error:  # gymnasium's DependencyNotInstalled as well
        if env_id.startswith("gym_pusht/"):
            raise UserError(f"environment {env_id!r} needs a package: {pip_line('pusht')}") from error
        raise UserError(f"environment {env_id!r} needs a package that is not installed: {_line(error)}") from error
    except gymnasium.error.Error as error:
        raise UserError(
            f"environment {env_id!r} cannot be made: {_line(error)}; expected 'metaworld' or a registered gymnasium id"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _array(value: Any) -> Array:
    """Return real numbers or truth values as they are, and anything else as no number at all."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different length
        return np.zeros(0)
    return array if array.dtype.kind in "biuf" else np.zeros(0)
