"""The simulator behind the batched contract: Meta-World tasks, or any registered gymnasium id with Box spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from rewards import RewardManager
from rewards.errors import UserError, closest_or_known
from rl.config import TrainConfig
from rl.envs.image_obs import ImageModel, eyes_of
from rl.envs.metaworld.events import Event
from rl.envs.names import MetaWorldOptions, NoOptions, typed_options
from rl.envs.simulator import IDLE, Array, OwnTerms, Simulator
from rl.envs.workers import Group, Workers
from world_model.data.episodes import Episode
from world_model.env import Advance, ReadOut, Start
from world_model.spec import Feature, Spec
from world_model.view import View


class SimEnv(Simulator):
    """`num_envs` simulated environments; environment `j` runs `tasks[j % len(tasks)]`.

    Args:
        env_id: "metaworld", or a registered gymnasium id such as "Pendulum-v1".
        num_envs: number of environments in the batch.
        tasks: Meta-World task names without version, such as "push"; a gymnasium id is its own task.
        n_workers: processes to spread the environments over, 0 for none; results do not depend on it.
        task_names: the tasks that `obs["task"]` indexes, when a model knows more than these.
        events: domain randomisation, of Meta-World tasks alone.
        seen_by: a model that sees pictures is told its own part of the state, and codes of them; see `Eyes`.

    The other arguments are those of `BatchedEnv`; physics are on the CPU whatever the device. An episode is named by
    its seed: it fixes goal and objects.
    """

    vectorised = False

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        tasks: Sequence[str] | None = None,
        n_context_frames: int = 2,
        max_steps: int = 150,
        n_workers: int = 0,
        terminate_on_success: bool = True,
        seed: int = 0,
        rewards: RewardManager | None = None,
        read_out: ReadOut | None = None,
        action_delay: int = 0,
        obs_noise: float = 0.0,
        task_names: Sequence[str] | None = None,
        events: Mapping[str, Event] | None = None,
        seen_by: ImageModel | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        spec = make_spec(env_id, tasks, task_names)
        self.eyes = eyes_of(seen_by, spec)
        spec = self.eyes.spec if self.eyes else spec
        rest = max_steps, rewards, read_out, terminate_on_success, action_delay, obs_noise, seed, device
        super().__init__(spec, num_envs, n_context_frames, *rest)
        names = tuple(tasks or (env_id,))
        self.env_id, self.picture_codec = env_id, self.eyes.codec if self.eyes else None
        self.picture_every = seen_by.chunk_size if seen_by and self.eyes else 1
        self.task_of_env = [names[j % len(names)] for j in range(num_envs)]
        self._task_index = torch.tensor([spec.tasks.index(name) for name in self.task_of_env], device=self.device)
        # For exact resume: the actions of each environment since its episode began.
        self._past: list[list[np.ndarray]] = [[] for _ in range(num_envs)]
        if events and env_id != "metaworld":
            raise UserError(f"env.options.events: {env_id!r} has no events of ours; only Meta-World tasks have")
        views = tuple(seen_by.cameras.values()) if seen_by and self.eyes else ()
        size = self.eyes.codec.size if self.eyes else 0
        if n_workers:
            self._envs: Workers | Group = Workers(env_id, self.task_of_env, events or {}, views, size, n_workers)
        else:
            self._envs = Group(env_id, self.task_of_env, events or {}, views, size)

    @classmethod
    def film(cls, *, id: str, episode: Episode, views: Sequence[View], size: int) -> tuple[Tensor, Array]:
        """Run an episode again before cameras; see `Simulator.film`."""
        group = _filmed(id or "metaworld", episode.task, tuple(views), size)
        frames, images = group.reset({0: episode.seed})
        drawn = [images[0]]
        for action in episode.action.numpy():
            steps = group.advance(action[None, None], np.array([1]), stop_on_success=False)
            frames = steps.frames[:, -1]
            drawn.append(steps.pictures[0])
        return torch.from_numpy(np.stack(drawn)), frames[0]

    def expert_actions(self) -> Tensor:
        """Return the action of Meta-World's scripted expert in the present state. Shape: (num_envs, action_dim)."""
        if self.env_id != "metaworld":
            raise UserError(f"sim: {self.env_id!r} has no scripted expert; only Meta-World tasks have one")
        if self.eyes:
            raise UserError("sim: the scripted expert has to be told where things are, and a model that sees is not")
        from rl.envs.metaworld.tasks import scripted_expert

        frames = self.context.cpu().numpy()
        newest, before = frames[:, -1], frames[:, max(0, self.n_context_frames - 2)]
        actions = [scripted_expert(t)(f, b) for t, f, b in zip(self.task_of_env, newest, before, strict=True)]
        return torch.from_numpy(np.stack(actions)).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the batched state and, for each environment, the actions since its episode began."""
        past = [torch.from_numpy(np.array(p, np.float32).reshape(-1, self.spec.action_dim)) for p in self._past]
        return {
            **super().state_dict(),
            "n_past": torch.tensor([len(p) for p in past]),
            "past": torch.nn.utils.rnn.pad_sequence(past, batch_first=True),  # (num_envs, longest, action_dim)
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, by playing each unfinished episode again up to where it was."""
        super().load_state_dict(state)
        past = [p[:n].numpy() for p, n in zip(state["past"], state["n_past"].tolist(), strict=True)]
        self._past = [list(p) for p in past]
        self._envs.replay(self.episode_seed.tolist(), past)

    def close(self) -> None:
        """Close the environments and end the workers."""
        self._envs.close()

    def _restart(self, mask: Tensor) -> Start:
        which = mask.nonzero()[:, 0].tolist()
        seeds = self._next_seeds(len(which))
        first, pictures = self._envs.reset(dict(zip(which, seeds.clamp(min=0).tolist(), strict=True)))
        frames = torch.from_numpy(first).to(self.device)
        if self.eyes:
            frames = self.eyes.begin(frames, pictures)
        for j in which:
            self._past[j] = []
        return Start(frames[:, None].repeat(1, self.n_context_frames, 1), self._task_index[mask], seeds)

    def _advance(self, actions: Tensor, limit: Tensor) -> Advance:
        commands = actions.cpu().numpy()
        limit = limit * (self.episode_seed != IDLE)
        steps = self._envs.advance(commands, limit.cpu().numpy(), self.terminate_on_success)
        for past, command in zip(self._past, commands, strict=True):
            past.extend(command.copy())  # those after an end do not matter: a restart empties the list
        told = (torch.from_numpy(array).to(self.device) for array in steps[:5])
        frames, reward, success, terminated, truncated = told
        if self.eyes:
            last = torch.from_numpy(steps.n_executed).to(self.device) - 1
            frames = self.eyes.go_on(frames, steps.pictures, self.context[:, -1], last)
        return Advance(frames, success, terminated, truncated, task_reward=reward)


class MetaWorldSim(SimEnv):
    """Tasks of Meta-World, which `env.tasks` chooses; it has no ids."""

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
        model: ImageModel | None = None,
        own_rewards: OwnTerms | None = None,
        run: TrainConfig | None = None,
        **common: Any,
    ) -> Self:
        """Build environments as a config asks for them; see `Simulator.build`."""
        _check_no_id(id)
        return cls(
            "metaworld",
            n_envs,
            tasks,
            n_workers=n_workers,
            task_names=known_tasks,
            events=cls._typed(options).events,
            seen_by=model,
            **common,
        )

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse an option that is none of `MetaWorldOptions`."""
        cls._typed(options)

    @classmethod
    def early_spec(cls, *, id: str, tasks: Sequence[str], known_tasks: Sequence[str] | None = None) -> Spec:
        """Return the spec before anything is built; `UserError` names an unknown task."""
        _check_no_id(id)
        return make_spec("metaworld", tasks, known_tasks)

    @classmethod
    def describe_tasks(cls) -> str:
        """Return the names of all tasks."""
        from rl.envs.metaworld.tasks import TASKS

        return f"{len(TASKS)} tasks: {', '.join(TASKS)}"

    @classmethod
    def fit(cls, task: str, episodes: Sequence[Episode], **search: Any) -> Any:
        """Fit physics, commands and delay to recorded episodes; see `rl.envs.metaworld.fit`."""
        from rl.envs.metaworld.fit import fit

        return fit(task, episodes, **search)

    @staticmethod
    def _typed(options: Mapping[str, Any]) -> MetaWorldOptions:
        found: MetaWorldOptions = typed_options("metaworld", options, MetaWorldOptions)
        return found


class GymnasiumSim(SimEnv):
    """Any registered id of gymnasium with Box spaces; each is one task."""

    id_is_task = True

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
        model: ImageModel | None = None,
        own_rewards: OwnTerms | None = None,
        run: TrainConfig | None = None,
        **common: Any,
    ) -> Self:
        """Build environments as a config asks for them; see `Simulator.build`."""
        cls.check_options(options)
        own = _checked_id(id)
        return cls(own, n_envs, tasks, n_workers=n_workers, task_names=known_tasks, seen_by=model, **common)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse any option: there are none."""
        typed_options("gymnasium", options, NoOptions)

    @classmethod
    def early_spec(cls, *, id: str, tasks: Sequence[str], known_tasks: Sequence[str] | None = None) -> Spec:
        """Return the spec before anything is built; `UserError` names an unknown id or space."""
        return make_spec(_checked_id(id), tasks, known_tasks)

    @classmethod
    def describe_tasks(cls) -> str:
        """Return which ids there are."""
        return "any registered gymnasium id"


@cache
def _filmed(env_id: str, task: str, views: tuple[View, ...], size: int) -> Group:
    """Return the one environment of a task that is filmed; making one takes as long as an episode."""
    return Group(env_id, [task], {}, views, size)


def _check_no_id(id: str) -> None:
    if id:
        raise UserError(f"env.id={id}: simulator metaworld has no ids; leave it out and name tasks with env.tasks")


def _checked_id(id: str) -> str:
    if not id:
        raise UserError("env.id: simulator gymnasium needs the id of an environment, such as env.id=Pendulum-v1")
    return id


def make_spec(env_id: str, tasks: Sequence[str] | None, task_names: Sequence[str] | None = None) -> Spec:
    """Return the spec of an environment; `UserError` names an unknown task, id or space."""
    if env_id == "metaworld":
        from rl.envs.metaworld import tasks as metaworld

        if not tasks:
            raise UserError(f"sim: metaworld needs tasks=push or others; it knows {', '.join(metaworld.TASKS)}")
        for task in tasks:
            metaworld.check_task(task)
        state = Feature((metaworld.STATE_DIM,), metaworld.UNIT, dict(metaworld.SLICES))
        low, high, rate = metaworld.ACTION_LOW, metaworld.ACTION_HIGH, metaworld.CONTROL_HZ
    else:
        from rl.envs.gym_env import SLICES, GymTask

        if tasks and set(tasks) != {env_id}:
            raise UserError(f"sim: {env_id!r} is its own task, tasks={list(tasks)} does not fit; leave it out")
        env = GymTask(env_id)
        env.close()
        state = Feature((env.state_dim,), slices=dict(SLICES.get(env_id, {})))
        low, high, rate = tuple(env.action_low), tuple(env.action_high), env.control_hz
    present = tuple(dict.fromkeys(tasks or (env_id,)))
    known = tuple(task_names or present)
    unknown = [task for task in present if task not in known]
    if unknown:
        raise UserError(f"sim: task {unknown[0]!r} is unknown to the model; {closest_or_known(unknown[0], known)}")
    return Spec({"state": state}, low, high, known, rate)
