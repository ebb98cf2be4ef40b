"""What every simulator offers beside the batched contract: how it is built, named episodes, and a record of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from rewards.errors import UserError, blamed, closest_or_known, defined_at
from rl.config import TrainConfig
from rl.envs.recorder import Recorder
from world_model.data.episodes import Episode
from world_model.env import BatchedEnv, ChunkStep
from world_model.spec import Spec
from world_model.view import View


def usable_device(key: str, device: str) -> str:
    """Return `device`, which `key` of a config asks for, or if that is "auto" the GPU if there is one.

    Raises:
        UserError: there is no such device.
    """
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch has many words for it
        raise UserError(f"{key}={device}: torch cannot use that here; expected cpu, cuda:0, ... or auto") from error
    return device


IDLE = -1
"""Seed of an environment that has nothing to do: all episodes that were named have begun elsewhere."""


Array = np.ndarray
OwnTerms = Mapping[str, tuple[Callable[..., Any], Mapping[str, Any]]]
"""Reward functions that a simulator computes itself: name -> (function, params)."""


class Simulator(BatchedEnv):
    """A place where episodes are simulated, not dreamed.

    A subclass implements `_restart`, which begins episodes with the seeds that `_next_seeds` hands out, and `_advance`.
    Its constructor takes `id`, `tasks`, `known_tasks` and `n_envs`, then the options of its own by name (the keys of
    `env.options`), and hands all others to `BatchedEnv`:

        def __init__(self, id, tasks, known_tasks, n_envs, radius=0.1, **common):
            super().__init__(Spec(..., tasks=known_tasks, ...), n_envs, **common)

    The class attributes and class methods describe the simulator, so that no other code asks which one it is.
    """

    place = "sim"
    """`dream` where nothing is simulated: a policy is judged there, but no episodes can be collected."""

    id_is_task = False
    """Each id is one task of the same name, as in gymnasium; else `env.tasks` chooses among the tasks there are."""

    vectorised = True
    """All environments advance in one computation, so many episodes are run side by side; else a few at a time."""

    provides: frozenset[str] = frozenset({"task_reward"})
    """What reward terms may require of it beside the slices of its state."""

    max_steps: int = 150
    """Steps after which an episode is truncated, where a config does not say."""

    alone = False
    """There can be only one at a time in a process: training and evaluation share it."""

    wave: int | None = None
    """Episodes that can be named at once: those that a `reset` begins. None: any number, one after the other."""

    picture_every = 1
    """Steps between new pictures, where frames end in codes of them."""

    _executed: Tensor  # (num_envs, k, action_dim), of the last chunk, after any delay
    _seeds: list[int] | None = None  # of the named episodes, those that have not begun; None: seeds are drawn
    recorder: Recorder | None = None  # see `record`

    @classmethod
    def build(
        cls,
        *,
        id: str,
        tasks: Sequence[str],
        n_envs: int,
        options: Mapping[str, Any],
        known_tasks: Sequence[str],
        n_workers: int = 0,
        model: Any = None,
        own_rewards: OwnTerms | None = None,
        run: TrainConfig | None = None,
        **common: Any,
    ) -> Self:
        """Build `n_envs` environments as a config asks for them.

        A subclass overrides it only where its constructor takes other arguments than `Simulator` says.

        Args:
            id: of one environment; empty where the simulator has no ids.
            tasks: to run, at least one, spread evenly over the environments.
            n_envs: number of environments.
            options: `env.options`.
            known_tasks: all tasks that the policy knows: `spec.tasks`, which `obs["task"]` indexes.
            n_workers: processes, for a simulator of single environments.
            model: the world-action model that acts, for a simulator that draws what it sees; None: another policy.
            own_rewards: reward functions that only the simulator can compute, see `provides`.
            run: config of the run, where there is one.
            common: arguments of `BatchedEnv`.

        Raises:
            UserError: an option, id or task is unknown, or its value does not fit.
        """
        cls.check_options(options)
        own: dict[str, Any] = {"id": id, "tasks": tuple(tasks), "known_tasks": tuple(known_tasks), "n_envs": n_envs}
        # An exception of a constructor, such as one about an option, names its file and line.
        with blamed(f"simulator {cls.__name__}", defined_at(cls).rpartition(":")[0]):
            return cls(**own, **options, **common)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse an option that is none of the named arguments of the constructor.

        Raises:
            UserError: naming it.
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
    def early_spec(cls, *, id: str, tasks: Sequence[str], known_tasks: Sequence[str] | None = None) -> Spec | None:
        """Return the spec before anything is built, to refuse a checkpoint early; None: only `build` knows it."""
        return None

    @classmethod
    def pick_device(cls, device: str, options: Mapping[str, Any]) -> str:
        """Return where model, dream and simulator meet: `device`, or if that is "auto" where the simulator is best.

        Raises:
            UserError: there is no such device.
        """
        return "cpu" if device == "auto" else usable_device("device", device)

    @classmethod
    def describe_tasks(cls) -> str:
        """Return in a line which tasks there are, for `wamtune ls`."""
        return (cls.__doc__ or "").partition("\n")[0]

    @classmethod
    def film(cls, *, id: str, episode: Episode, views: Sequence[View], size: int) -> tuple[Tensor, Array]:
        """Run an episode again before cameras.

        Returns the images (T + 1, n_views, size, size, 3) uint8, and the last frame (state_dim,) as simulated.

        Raises:
            UserError: the simulator draws no images.
        """
        raise UserError(f"{cls.__name__} draws no images; choose a checkpoint that sees none, or set model.views={{}}")

    @classmethod
    def fit(cls, task: str, episodes: Sequence[Episode], **search: Any) -> Any:
        """Fit the simulator to recorded episodes of a task; see `rl.envs.metaworld.fit`.

        Raises:
            UserError: this simulator cannot be fitted.
        """
        raise UserError(f"{cls.__name__} cannot be fitted to episodes; set env.simulator=metaworld, which can")

    def expert_actions(self) -> Tensor:
        """Return what a scripted expert does in the present state (num_envs, action_dim).

        Raises:
            UserError: there is none.
        """
        raise UserError("sim: there is no scripted expert here; only Meta-World tasks have one")

    def set_episode_seeds(self, seeds: Sequence[int]) -> None:
        """Name the episodes to come: each restart takes the next seed, then `IDLE`. Empty: seeds are drawn again."""
        self._seeds = [int(seed) for seed in seeds] or None

    def record(self, on: bool) -> list[Episode]:
        """Return the episodes that have ended since recording began; record on, or stop."""
        episodes = self.recorder.take() if self.recorder else []
        self.recorder = (self.recorder or Recorder(self.spec.tasks, self.picture_every)) if on else None
        return episodes

    def state_dict(self) -> dict[str, Any]:
        """Add what the recorder holds."""
        return super().state_dict() | {"recorder": None if self.recorder is None else self.recorder.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        super().load_state_dict(state)
        self.record(state["recorder"] is not None)
        if self.recorder is not None:
            self.recorder.load_state_dict(state["recorder"])

    def step_chunk(self, actions: Tensor) -> ChunkStep:
        """Execute a chunk, as every `BatchedEnv` does, and let the recorder have it."""
        if self.recorder is None:
            return super().step_chunk(actions)
        before = self.context[:, -1].clone(), self.elapsed.clone(), self.task.clone(), self.episode_seed.clone()
        step = super().step_chunk(actions)
        self.recorder.add(*before, self._executed, step)
        return step

    def _delay(self, actions: Tensor) -> Tensor:
        self._executed = super()._delay(actions)
        return self._executed

    def _next_seeds(self, n: int) -> Tensor:
        if self._seeds is None:
            return torch.randint(2**31, (n,), generator=self.generator, device=self.device)
        seeds = (self._seeds + [IDLE] * n)[:n]
        self._seeds = self._seeds[n:]
        return torch.tensor(seeds, device=self.device)
