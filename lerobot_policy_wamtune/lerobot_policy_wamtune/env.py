"""wamtune's simulated tasks as environments of LeRobot: `--env.type=wamtune --env.task=hammer,drawer-open`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs import EnvConfig
from torch import Tensor

from lerobot_policy_wamtune.configuration_wamtune import one_line
from rewards.errors import UserError
from rewards.plugins import names_file
from rl.config import EnvConfig as Defaults
from rl.config import SimulatorConfig
from rl.envs.cameras import CameraUse
from rl.envs.names import env_of_tasks
from rl.envs.sim import make_spec
from rl.envs.workers import Task, make_task
from world_model.spec import IMAGES, Spec
from world_model.view import View

Array = np.ndarray
Observation = dict[str, Any]

EPISODE_SEED = "observation.episode_seed"
"""Observation that names the episode, so that the noise of wamtune's policies is that of `wamtune eval`."""

PIXELS, PARTS = "pixels_agent_pos", "environment_state_agent_pos"

OBS_TYPES = ("state", PIXELS, PARTS)

ROBOT_SLICES = ("hand_pos", "gripper")
"""Slices of a simulator's state that a real robot measures by itself."""

VIDEO, RENDERED = "images.video", 256
"""Name of the camera of `lerobot-eval`'s videos, and height and width of its images in pixels."""


@EnvConfig.register_subclass("wamtune")
@dataclass
class WamtuneEnv(EnvConfig):
    """Keys of the environments, each with the prefix `--env.`.

    `obs_type` is one of `OBS_TYPES`: the whole state of the simulator as `observation.state`, or the robot's part of it
    with images, or with the rest of the state as `observation.environment_state`.

    Raises:
        DecodingError: a task or an `obs_type` is unknown, or a number is out of range.
    """

    task: str | None = "push"  # of Meta-World, or gymnasium ids; several are separated by commas
    fps: int = 0  # set to the control rate of the task
    episode_length: int = Defaults().max_steps
    obs_type: str = "state"
    image_size: int = 64  # height and width in pixels
    cameras: dict[str, View] = field(default_factory=lambda: {"front": View()})

    def __post_init__(self) -> None:
        with one_line("env"):
            spec = self._checked_spec()
        robot, rest = _columns(spec, self.obs_type)
        self.fps = round(spec.control_hz)
        self.features = {"action": PolicyFeature(FeatureType.ACTION, (spec.action_dim,))}
        self.features["agent_pos"] = PolicyFeature(FeatureType.STATE, (len(robot),))
        self.features_map = {"action": "action", "agent_pos": "observation.state"}
        if self.obs_type == PARTS:
            self.features["environment_state"] = PolicyFeature(FeatureType.ENV, (len(rest),))
            self.features_map["environment_state"] = "observation.environment_state"
        for name in self.cameras if self.obs_type == PIXELS else ():
            key = f"observation.images.{name}"
            self.features[key] = PolicyFeature(FeatureType.VISUAL, (self.image_size, self.image_size, 3))
            self.features_map[key] = key

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return [name.strip() for name in (self.task or "").split(",") if name.strip()]

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Nothing: `create_envs` makes the environments."""
        return {}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, VectorEnv[Any, Any, Any]]]:
        """Return {task: {0: `n_envs` environments of it}}, in processes of their own with `use_async_envs`."""
        envs: dict[str, dict[int, VectorEnv[Any, Any, Any]]] = {}
        for task in self.tasks:
            make = [partial(TaskEnv, task, self)] * n_envs
            if use_async_envs and n_envs > 1:
                # A forked process would inherit OpenGL and threads of torch, which do not survive it.
                vector: VectorEnv[Any, Any, Any] = AsyncVectorEnv(
                    make, autoreset_mode=AutoresetMode.SAME_STEP, context="forkserver"
                )
            else:
                vector = SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP)
            envs[task] = {0: vector}
        return envs

    def _checked_spec(self) -> Spec:
        """Check the keys; return the spec of the first task. The others must have the same sizes."""
        if self.obs_type not in OBS_TYPES:
            raise UserError(f"obs_type={self.obs_type}: expected one of {', '.join(OBS_TYPES)}")
        for name in ("episode_length", "image_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: expected at least 1")
        specs = [make_spec(_id_of(task), [task]) for task in self.tasks]
        if not specs:
            raise UserError(f"task={self.task}: expected names such as hammer,drawer-open")
        for task, spec in zip(self.tasks, specs, strict=True):
            if (spec.state_dim, spec.action_dim) != (specs[0].state_dim, specs[0].action_dim):
                raise UserError(f"task={self.task}: {task} has other sizes than {self.tasks[0]}; name it on its own")
            if self.obs_type == PARTS and not set(ROBOT_SLICES) & spec.slices.keys():
                raise UserError(f"obs_type={PARTS}: {task} does not say which part of its state is the robot's")
        return specs[0]


class TaskEnv(gymnasium.Env[Observation, Array]):
    """One task. A seed begins the same episode as in `wamtune eval`; success ends it.

    Args:
        task: name of the task.
        config: keys of `--env`.
    """

    def __init__(self, task: str, config: WamtuneEnv) -> None:
        self.task, self.config, self._env_id = task, config, _id_of(task)
        spec = make_spec(self._env_id, [task])
        self.task_description, self._max_episode_steps = spec.instruction(task), config.episode_length
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(spec.control_hz)}
        self.render_mode = "rgb_array"
        self.action_space = Box(np.array(spec.action_low, np.float32), np.array(spec.action_high, np.float32))
        self._robot, self._rest = _columns(spec, config.obs_type)
        size = config.image_size
        self._cameras = {IMAGES + name: CameraUse(view, size, size) for name, view in config.cameras.items()}
        view = next(iter(config.cameras.values()), View())
        self._rendered = {VIDEO: CameraUse(view, RENDERED, RENDERED)}
        self.observation_space = self._space()
        self._simulated: Task | None = None  # made at the first reset, as only one task of several runs at a time
        self._seed = self._n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Begin the episode of `seed`, or without one of a random seed."""
        super().reset(seed=seed)
        if self._simulated is None:
            self._simulated = make_task(self._env_id, self.task, events={}, number=0, cameras=self._rendered)
        self._seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self._n_steps = 0
        return self._observation(self._simulated.reset(self._seed)), {"is_success": False}

    def step(self, action: Array) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Execute `action` (action_dim,), within its bounds; the reward is the simulator's own."""
        assert self._simulated is not None, "step() without reset()"
        if not np.isfinite(action).all():
            raise UserError(f"{self.task}: the action {action.tolist()} is not finite; nothing was executed")
        assert isinstance(self.action_space, Box)
        command = np.clip(action, self.action_space.low, self.action_space.high).astype(np.float32)
        state, reward, success, terminated, truncated = self._simulated.step(command)
        self._n_steps += 1
        terminated = terminated or success
        truncated = not terminated and (truncated or self._n_steps >= self._max_episode_steps)
        return self._observation(state), reward, terminated, truncated, {"is_success": success}

    def render(self) -> Array:
        """Return an image of the first camera. Shape: (RENDERED, RENDERED, 3) uint8."""
        assert self._simulated is not None, "render() without reset()"
        return self._simulated.images(self._rendered)[VIDEO]

    def close(self) -> None:
        """Release the simulator."""
        if self._simulated is not None:
            self._simulated.close()
        self._simulated = None

    def _observation(self, state: Array) -> Observation:
        """Return an observation with the keys that LeRobot's programs expect of an environment."""
        assert self._simulated is not None
        obs: Observation = {"agent_pos": state[self._robot], "episode_seed": _pair(self._seed)}
        if self.config.obs_type == PARTS:
            obs["environment_state"] = state[self._rest]
        if self.config.obs_type == PIXELS:
            images = self._simulated.images(self._cameras)
            obs["pixels"] = {name.removeprefix(IMAGES): image for name, image in images.items()}
        return obs

    def _space(self) -> Dict:
        spaces: dict[str, Any] = {
            "agent_pos": Box(-np.inf, np.inf, (len(self._robot),), np.float32),
            "episode_seed": Box(0, 2**24, (2,), np.float32),
        }
        if self.config.obs_type == PARTS:
            spaces["environment_state"] = Box(-np.inf, np.inf, (len(self._rest),), np.float32)
        if self.config.obs_type == PIXELS:
            shape = (self.config.image_size, self.config.image_size, 3)
            spaces["pixels"] = Dict({name: Box(0, 255, shape, np.uint8) for name in self.config.cameras})
        return Dict(spaces)


def seeds_of(pairs: Tensor) -> Tensor:
    """Return the seeds (n,) int64 of the observations `EPISODE_SEED` (n, 2)."""
    high, low = pairs.long().unbind(1)
    return high * 2**16 + low


def sentence_of(task: str) -> str:
    """Return the sentence that the environment of a Meta-World task gives; the name of any other task."""
    try:
        return make_spec("metaworld", [task]).instruction(task)
    except UserError:
        return task


def _pair(seed: int) -> Array:
    """Return a seed as two numbers, because LeRobot converts observations to float32, which is exact up to 2^24."""
    return np.array(divmod(seed, 2**16), np.float32)


def _id_of(task: str) -> str:
    """Return the simulator of a task: a gymnasium id, FILE.py:Class, or Meta-World."""
    if names_file(task):
        return task
    return env_of_tasks(SimulatorConfig(), [task]).id or "metaworld"


def _columns(spec: Spec, obs_type: str) -> tuple[Array, Array]:
    """Return the columns of the state that are `agent_pos`, and the others."""
    every = np.arange(spec.state_dim)
    named = [every[spec.slices[name]] for name in ROBOT_SLICES if name in spec.slices]
    if obs_type == "state" or not named:
        return every, every[:0]
    robot = np.concatenate(named)
    return robot, np.setdiff1d(every, robot)
