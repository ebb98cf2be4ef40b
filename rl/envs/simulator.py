"""The base class of all simulators: built from a config, episodes named by seeds, and episodes recorded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from rewards.errors import UserError, blamed, closest_or_known, file_of
from rl.config import TrainConfig
from rl.envs.cameras import Cameras
from rl.envs.recorder import Recorder
from world_model.data.episodes import Episode
from world_model.env import BatchedEnv, ChunkStep
from world_model.spec import Feature, Spec
from world_model.view import View


def usable_device(key: str, device: str) -> str:
    """Return the device that the config key `key` asks for; "auto" means the GPU if there is one, else the CPU.

    Raises:
        UserError: torch cannot use the device.
    """
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the exception depends on the device and the build of torch
        raise UserError(f"{key}={device}: torch cannot use that here; expected cpu, cuda:0, ... or auto") from error
    return device


IDLE = -1
"""Seed of an environment without an episode: all named episodes have already started in other environments."""


Array = np.ndarray
OwnTerms = Mapping[str, tuple[Callable[..., Any], Mapping[str, Any]]]
"""Reward functions that a simulator computes itself: name -> (function, params)."""


@dataclass(frozen=True)
class Request:
    """What a config asks of a simulator, beside the arguments that every `BatchedEnv` takes."""

    id: str  # of the environment; empty for a simulator without ids
    tasks: tuple[str, ...]  # to run, at least one, spread evenly over the environments
    n_envs: int
    options: Mapping[str, Any]  # `env.options`
    known_tasks: tuple[str, ...]  # all tasks that the policy knows: `spec.tasks`, which `obs["task"]` indexes
    n_workers: int = 0  # processes, for a simulator of single environments
    features: Mapping[str, Feature] | None = None  # what the policy reads, see `given_spec`; None: all that there are
    cameras: Mapping[str, View] = field(default_factory=dict)  # where the cameras of its images are, by name
    model: Any = None  # the world model, for a simulator that is a dream of it; None: there is none
    own_rewards: OwnTerms = field(default_factory=dict)  # terms that only the simulator can compute, see `provides`
    run: TrainConfig | None = None  # config of the run, if there is one
    tick: Callable[[float], None] = lambda share: None  # called with the finished share of what takes minutes to build


class Simulator(BatchedEnv):
    """A batch of simulated environments, in contrast to dreamed ones.

    A subclass implements `_restart`, which starts episodes with the seeds from `_next_seeds`, and `_advance`. Its
    constructor takes `id`, `tasks`, `known_tasks` and `n_envs`, then its own options by name (the keys of
    `env.options`), and passes all other arguments to `BatchedEnv`:

        def __init__(self, id, tasks, known_tasks, n_envs, radius=0.1, **common):
            super().__init__(Spec(..., tasks=known_tasks, ...), n_envs, **common)

    The class attributes and class methods describe the simulator, so that other code never checks its name.
    """

    place = "sim"
    """Set it to `dream` if a world model takes the simulator's place: a policy is evaluated there, but no episodes
    can be collected."""

    id_is_task = False
    """True: each id is one task of the same name, as in gymnasium. False: `env.tasks` chooses the tasks."""

    vectorised = True
    """True: all environments advance in one computation, so many episodes run in parallel. False: a few at a time."""

    provides: frozenset[str] = frozenset({"task_reward"})
    """What reward terms may require from it, in addition to the slices of its state."""

    robot_slices: tuple[str, ...] = ()
    """Slices of its state that a robot measures itself, such as the position of its hand; names that the state lacks
    are ignored. For a policy of LeRobot they are the state, and all else is `environment_state`; see `given_spec`."""

    max_steps: int = 150
    """Steps after which an episode is truncated, unless the config sets another number."""

    alone = False
    """True: a process can hold only one, so training and evaluation share it."""

    assigns_tasks = False
    """True: `assign` can give its environments other tasks, as steering a run with several tasks needs."""

    wave: int | None = None
    """Number of episodes that can be named at once, namely those that a `reset` starts. None: any number, in turn."""

    _seeds: list[int] | None = None  # seeds of the named episodes that have not started; None: draw seeds at random
    recorder: Recorder | None = None  # see `record`

    @classmethod
    def build(cls, request: Request, **common: Any) -> Self:
        """Build `request.n_envs` environments from the values of a config.

        A subclass overrides it only if its constructor takes other arguments than the class docstring lists.

        Args:
            request: what to build.
            common: arguments of `BatchedEnv`.

        Raises:
            UserError: an option, id or task is unknown, or its value does not fit.
        """
        cls.check_options(request.options)
        own = {name: getattr(request, name) for name in ("id", "tasks", "known_tasks", "n_envs")}
        # If the constructor of a user's class raises, the error names its file and line.
        with blamed(f"simulator {cls.__name__}", file_of(cls)):
            return cls(**own, **request.options, **common)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse an option that is not a named argument of the constructor.

        Raises:
            UserError: an option is unknown.
        """
        given = {"self", "id", "tasks", "known_tasks", "n_envs"}
        named = [p.name for p in inspect.signature(cls.__init__).parameters.values() if p.kind is not p.VAR_KEYWORD]
        known = [name for name in named if name not in given]
        for name in options:
            if name not in known:
                raise UserError(
                    f"unknown key 'env.options.{name}' of simulator {cls.__name__}; " + closest_or_known(name, known)
                )

    @classmethod
    def early_spec(cls, *, id: str, tasks: Sequence[str]) -> Spec | None:
        """Return the spec without building anything, to refuse a wrong checkpoint early; None: not known before."""
        return None

    @classmethod
    def pick_device(cls, device: str, options: Mapping[str, Any]) -> str:
        """Return the device that model, dream and simulator share; "auto" means the simulator's best device.

        Raises:
            UserError: torch cannot use the device.
        """
        return "cpu" if device == "auto" else usable_device("device", device)

    @classmethod
    def replay(cls, *, id: str, episode: Episode, cameras: Cameras) -> tuple[dict[str, Tensor], Array]:
        """Run an episode again and render it.

        Args:
            id: of the environment; empty for a simulator without ids.
            episode: its seed, task and actions are used.
            cameras: image feature, such as `images.front` -> camera; one with `every=1` renders each frame.

        Returns:
            The images of each camera (rows, height, width, 3) uint8, as `Episode.obs` has them, and the last state
            (state_dim,), with all that the simulator has.

        Raises:
            UserError: the simulator renders no images.
        """
        raise UserError(
            f"{cls.__name__} renders no images; choose a checkpoint that reads none, or leave the cameras out"
        )

    @classmethod
    def fit(cls, task: str, episodes: Sequence[Episode], **search: Any) -> Any:
        """Fit the simulator to recorded episodes of a task; see `rl.envs.metaworld.fit`, also for the arguments.

        Raises:
            UserError: this simulator cannot be fitted.
        """
        raise UserError(f"{cls.__name__} cannot be fitted to episodes; set env.simulator=metaworld, which can")

    def expert_actions(self) -> Tensor:
        """Return the actions of a scripted expert in the current state. Shape: (num_envs, action_dim).

        Raises:
            UserError: the simulator has no scripted expert.
        """
        raise UserError("sim: there is no scripted expert here; only Meta-World tasks have one")

    def reports_success(self) -> bool:
        """Whether its steps have reported success, true or false, so far; if not, there is no success rate."""
        return True

    def set_episode_seeds(self, seeds: Sequence[int]) -> None:
        """Name the next episodes by seed: each restart takes the next seed, then `IDLE`. Empty: draw seeds again."""
        self._seeds = [int(seed) for seed in seeds] or None

    def assign(self, tasks: Sequence[str]) -> None:
        """Give environment i the task `tasks[i]`; the next rollout begins new episodes. See `assigns_tasks`."""
        raise NotImplementedError

    def record(self, on: bool) -> list[Episode]:
        """Return the episodes that ended since the last call, then start, continue or stop recording."""
        episodes = self.recorder.take() if self.recorder else []
        self.recorder = (self.recorder or Recorder(self.spec)) if on else None
        return episodes

    def state_dict(self) -> dict[str, Any]:
        """Return the state of `BatchedEnv` and the recorder's episodes."""
        return super().state_dict() | {"recorder": None if self.recorder is None else self.recorder.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.record(state["recorder"] is not None)
        if self.recorder is not None:
            self.recorder.load_state_dict(state["recorder"])

    def step_chunk(self, actions: Tensor) -> ChunkStep:
        """Execute a chunk as every `BatchedEnv` does, and record it if recording is on."""
        if self.recorder is None:
            return super().step_chunk(actions)
        # Copies from before the chunk: an ended episode is replaced by the next one within the call.
        first, elapsed = {name: frames[:, -1].clone() for name, frames in self.context.items()}, self.elapsed.clone()
        task, seed = self.task.clone(), self.episode_seed.clone()
        step = super().step_chunk(actions)
        self.recorder.add(first=first, elapsed=elapsed, task=task, seed=seed, step=step)
        return step

    def _next_seeds(self, n: int) -> Tensor:
        if self._seeds is None:
            return torch.randint(2**31, (n,), generator=self.generator, device=self.device)
        seeds = (self._seeds + [IDLE] * n)[:n]  # idle once the named seeds are used up
        self._seeds = self._seeds[n:]
        return torch.tensor(seeds, device=self.device)
