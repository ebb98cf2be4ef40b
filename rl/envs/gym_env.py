"""One gymnasium environment, registered or of a file, for worker processes: this module imports no torch."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from rewards.errors import BadNumbers, UserError, blamed, defined_at, file_of
from rewards.plugins import load, names_file
from rl.envs.cameras import Cameras, CameraUse, Images
from rl.envs.opengl import prepare_opengl
from world_model.data.pixels import shrunk
from world_model.extras import pip_line
from world_model.spec import IMAGES

Array = np.ndarray

SLICES = {"gym_pusht/PushT-v0": {"hand_pos": (0, 2)}}
"""Proprioception in the state of an environment: id -> named slices. gymnasium does not declare it."""


STEP = ("observation", "reward", "terminated", "truncated", "info")
"""What `step` of a gymnasium environment returns."""


class GymTask:
    """One gymnasium environment with the protocol `rl.envs.workers.Task`.

    Its observation is a Box, or a Dict of them. A Box of shape (height, width, 3) and type uint8 is an image, named
    `images.KEY` (`images.main` if the image is the whole observation). All others are flattened and joined to the
    state, float32. Cameras that the observation does not contain are rendered, from the viewpoint that the environment
    defines. Success is `info["is_success"]` or `info["success"]`, and False if neither is reported.

    Args:
        env_id: a registered id, or `path.py:name` of a class or function that makes the environment.
        cameras: what is rendered.

    Raises:
        UserError: the environment does not exist, its code raised an exception, or a space has another type.
    """

    def __init__(self, env_id: str, cameras: Cameras | None = None) -> None:
        self._env = _make(env_id)
        self._blamed = f"environment {env_id!r}", file_of(self._env.unwrapped)
        spaces: list[Any] = [getattr(self._env, name, None) for name in ("observation_space", "action_space")]
        observation, action = spaces
        boxes = dict(observation.spaces) if isinstance(observation, gymnasium.spaces.Dict) else {"": observation}
        for what, space in (*((f"observation {name}".strip(), box) for name, box in boxes.items()), ("action", action)):
            if not isinstance(space, gymnasium.spaces.Box):
                kind = "not set" if space is None else type(space).__name__
                raise UserError(
                    f"environment {env_id!r}: its {what} space is {kind}, expected Box; "
                    f"wrap it or choose another environment"
                )
        assert isinstance(action, gymnasium.spaces.Box)
        if not action.is_bounded() or len(action.shape) != 1:
            raise UserError(f"environment {env_id!r}: its action space is {action}, expected a bounded one-axis Box")
        self._n_steps = 0
        self.reports_success = False  # whether its info has had an entry for success so far
        self._obs: Mapping[str, Any] = {}
        # Key of the observation -> size; the key is empty if the observation is no Dict.
        self._vectors = {key: int(np.prod(box.shape or (1,))) for key, box in boxes.items() if not _is_image(box)}
        self._images = {IMAGES + (key or "main"): key for key, box in boxes.items() if _is_image(box)}
        if cameras and not self._images:  # the only image is then what the environment renders
            if len(cameras) > 1:
                raise UserError(f"environment {env_id!r}: it has one camera, the checkpoint reads {', '.join(cameras)}")
            self._env.close()
            with warnings.catch_warnings():  # that it cannot render is said in one line where an image is needed
                warnings.simplefilter("ignore", UserWarning)
                self._env = _make(env_id, renders=True)
        self.image_shapes: dict[str, tuple[int, ...]] = {
            name: boxes[key].shape or () for name, key in self._images.items()
        }
        self.state_dim = sum(self._vectors.values())
        ends = np.cumsum([0, *self._vectors.values()]).tolist()
        self.slices = {key: (ends[i], ends[i + 1]) for i, key in enumerate(self._vectors) if key}
        self.action_low, self.action_high = action.low.tolist(), action.high.tolist()
        # gymnasium has no entry for the control rate; the frame rate for rendering is the nearest one.
        self.control_hz = float(self._env.metadata.get("render_fps") or 1.0)

    def reset(self, seed: int) -> Array:
        """Begin the episode of `seed`; return its first frame (state_dim,)."""
        with blamed(*self._blamed):
            result = self._env.reset(seed=seed)
        obs, _ = self._parts("reset", result, ("observation", "info"))
        self._n_steps = 0
        return self._state(obs)

    def step(self, action: Array) -> tuple[Array, float, bool, bool, bool]:
        """Execute `action` (action_dim,); return frame (state_dim,), reward, success, terminated, truncated."""
        with blamed(*self._blamed):
            result = self._env.step(action)
        obs, reward, terminated, truncated, info = self._parts("step", result, STEP)
        self._n_steps += 1
        frame, rewards = self._state(obs), self._numbers(reward, "reward", 1)
        success = info.get("is_success", info.get("success", False))
        self.reports_success = self.reports_success or "is_success" in info or "success" in info
        is_terminated, is_truncated = self._flag(terminated, "terminated"), self._flag(truncated, "truncated")
        is_success = self._flag(success, "success in its info")
        return frame, float(rewards[0]), is_success, is_terminated, is_truncated

    def images(self, cameras: Cameras) -> Images:
        """Return images of the newest observation, or rendered ones; larger ones are cropped and scaled down."""
        return {name: self._image(name, use) for name, use in cameras.items()}

    def _parts(self, method: str, result: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
        """Return what `reset` or `step` of the environment returned, which must be `names`, with a dict of infos last.

        Raises:
            UserError: it returned something else, such as what older versions of gym did.
        """
        got = f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"
        if isinstance(result, tuple) and len(result) == len(names):
            if isinstance(result[-1], Mapping):
                return result
            got = f"a {type(result[-1]).__name__} as info"
        at = defined_at(getattr(self._env.unwrapped, method))
        expected = f"{len(names)} values ({', '.join(names)}), info a dict"
        raise UserError(
            f"{self._blamed[0]}: {method} returned {got}, expected {expected}" + (f"; see {at}" if at else "")
        )

    def _state(self, obs: Any) -> Array:
        """Keep an observation, and return its vectors joined to one (state_dim,)."""
        if not isinstance(self._env.observation_space, gymnasium.spaces.Dict):
            obs = {"": obs}
        self._obs = obs if isinstance(obs, Mapping) else {}
        what = {key: f"observation {key}".strip() for key in self._vectors}
        parts = [self._numbers(self._obs.get(key), what[key], size) for key, size in self._vectors.items()]
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def _image(self, name: str, use: CameraUse) -> Array:
        """Return the image of a camera in the size that is asked for."""
        where = f"environment {self._env.spec.id if self._env.spec else self._env}"
        if self._images and name not in self._images:
            raise UserError(f"{where}: it has {', '.join(self._images)}, the checkpoint reads {name}")
        image = self._obs.get(self._images[name]) if self._images else self._env.render()
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(f"{where}: {name} is no image in colour; choose a checkpoint that reads none")
        if image.shape[:2] == (use.height, use.width):
            return image.copy()
        if image.shape[0] < use.height or image.shape[1] < use.width:
            raise UserError(f"{where}: {name} is {image.shape[:2]}, expected at least {use.height} x {use.width}")
        return shrunk(image, use.height, use.width)

    def _numbers(self, value: Any, what: str, size: int) -> Array:
        """Return `value` as float32 (size,) if its type and size fit; `BatchedEnv` checks later that it is finite."""
        array = _array(value)
        if array.size != size:
            raise self._bad(value, what, f"{size} number{'s' * (size > 1)}")
        with np.errstate(over="ignore"):  # an overflow to infinity is reported by that later check
            return array.astype(np.float32).reshape(-1)

    def _flag(self, value: Any, what: str) -> bool:
        array = _array(value)
        if array.size != 1 or array.item() not in (0, 1):
            raise self._bad(value, what, "true or false")
        return bool(array.item())

    def _bad(self, value: Any, what: str, expected: str) -> BadNumbers:
        got = " ".join(repr(value).split())[:60]
        where = f"{self._env.spec.id if self._env.spec else self._env} returned {got} as {what} at step {self._n_steps}"
        return BadNumbers(f"{where}; expected {expected}; nothing was learned from it")

    def close(self) -> None:
        """Release the resources of the environment."""
        self._env.close()


def _is_image(box: Any) -> bool:
    return bool(box.dtype == np.uint8 and len(box.shape) == 3 and box.shape[2] == 3)


def _make(env_id: str, renders: bool = False) -> gymnasium.Env[Any, Any]:
    if renders:
        prepare_opengl()
    options: dict[str, Any] = {"render_mode": "rgb_array"} if renders else {}
    if names_file(env_id):
        return _make_of_file(env_id, options)
    module, _, attribute = env_id.partition(":")
    if attribute and Path(f"{module}.py").is_file():  # gymnasium reads it as a module that registers an id
        raise UserError(f"environment {env_id!r}: for the file in this folder write env.id={module}.py:{attribute}")
    try:
        if env_id.startswith("gym_pusht/"):
            import gym_pusht  # noqa: F401 - registers the id
        return gymnasium.make(env_id, disable_env_checker=True, **options)
    except ImportError as error:  # gymnasium's DependencyNotInstalled as well
        if env_id.startswith("gym_pusht/"):
            raise UserError(f"environment {env_id!r} needs a package: {pip_line('pusht')}") from error
        raise UserError(f"environment {env_id!r} needs a package that is not installed: {_line(error)}") from error
    except gymnasium.error.Error as error:
        raise UserError(
            f"environment {env_id!r} cannot be made: {_line(error)}; expected a registered gymnasium id, or for your "
            "own FILE.py:Class"
        ) from error


def _make_of_file(env_id: str, options: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """Make the environment of `path.py:name`, a class or a function that returns an environment."""
    found = load("simulator", env_id, {}, key="env.id")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise UserError(
            f"environment {env_id!r}: {error}; it is made without arguments, so give that one a default, or write a "
            f"function that returns the environment: env.id={env_id.rpartition(':')[0]}:make_env"
        ) from error
    except ValueError:  # compiled code may have no signature
        pass
    with blamed(f"environment {env_id!r}", file_of(found)):
        spec = gymnasium.envs.registration.EnvSpec(env_id.rpartition(":")[2], entry_point=found)
        return gymnasium.make(spec, disable_env_checker=True, **options)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _array(value: Any) -> Array:
    """Return real numbers or truth values as an array, and an empty array for anything else."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different length
        return np.zeros(0)
    return array if array.dtype.kind in "biuf" else np.zeros(0)
