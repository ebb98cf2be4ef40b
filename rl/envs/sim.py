"""Simulators of single environments as one batch: Meta-World tasks, or any gymnasium environment.

A gymnasium environment has Box actions, and observations that are a Box or a Dict of them; see `rl.envs.gym_env`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from rewards import RewardManager
from rewards.errors import UserError, closest_or_known
from rl.envs.cameras import Cameras, CameraUse
from rl.envs.features import given_spec, vector_columns
from rl.envs.metaworld.events import Event
from rl.envs.metaworld.instructions import INSTRUCTIONS, WORDINGS
from rl.envs.names import MetaWorldOptions, NoOptions, task_of_id, typed_options
from rl.envs.simulator import IDLE, Array, Request, Simulator
from rl.envs.workers import Group, Steps, Workers
from world_model.data.episodes import Episode
from world_model.env import Advance, ReadOut, Start, repeated
from world_model.spec import IMAGES, STATE, Feature, Spec
from world_model.view import View


class SimEnv(Simulator):
    """`num_envs` simulated environments; environment `j` runs `tasks[j % len(tasks)]`.

    Args:
        env_id: "metaworld", a registered gymnasium id such as "Pendulum-v1", or `path.py:Class`.
        num_envs: number of environments in the batch.
        tasks: Meta-World task names without version, such as "push"; None for a gymnasium id, which is one task.
        n_workers: worker processes to spread the environments over, 0 to step them in this process; the number does
            not change the results.
        task_names: the tasks that `obs["task"]` indexes, when a model knows more than `tasks`.
        events: domain randomisation, for Meta-World tasks only.
        features: what the policy reads, see `given_spec`; None: the state, and the images of a gymnasium observation.
        cameras: where the cameras of its images are, by name; without an entry, `View()`.

    The other arguments are those of `BatchedEnv`. The physics always runs on the CPU; `device` is where the tensors
    are. The seed of an episode fixes its goal and its objects.
    """

    vectorised = False
    assigns_tasks = True
    robot_slices = ("hand_pos", "gripper")

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
        features: Mapping[str, Feature] | None = None,
        cameras: Mapping[str, View] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        simulated = make_spec(env_id, tasks, task_names)
        spec = given_spec(simulated, features, robot_slices=self.robot_slices)
        super().__init__(
            spec,
            num_envs,
            n_context_frames,
            max_steps,
            rewards=rewards,
            read_out=read_out,
            terminate_on_success=terminate_on_success,
            action_delay=action_delay,
            obs_noise=obs_noise,
            seed=seed,
            device=device,
        )
        names = tuple(tasks or ()) if env_id == "metaworld" else (task_of_id(env_id, spec.tasks),)
        self.env_id, self._columns = env_id, vector_columns(simulated, spec)
        # For exact resume: the actions of each environment since its episode began. gymnasium has no call to save a
        # state, so `load_state_dict` repeats these actions from the seed.
        self._past: list[list[np.ndarray]] = [[] for _ in range(num_envs)]
        if events and env_id != "metaworld":
            raise UserError(f"env.options.events: {env_id!r} has no events of ours; only Meta-World tasks have")
        self._events, self._used, self._n_workers = events or {}, _used_cameras(spec, cameras or {}), n_workers
        _check_events(self._events, self._used)
        self._make([names[j % len(names)] for j in range(num_envs)])

    @classmethod
    def _of(cls, env_id: str, request: Request, **others: Any) -> Self:
        return cls(
            env_id,
            request.n_envs,
            request.tasks,
            n_workers=request.n_workers,
            task_names=request.known_tasks,
            features=request.features,
            cameras=request.cameras,
            **others,
        )

    @classmethod
    def replay(cls, *, id: str, episode: Episode, cameras: Cameras) -> tuple[dict[str, Tensor], Array]:
        """Run an episode again and render it; see `Simulator.replay`."""
        group = _rendered_env(id or "metaworld", episode.task, tuple(cameras.items()))
        _, (first,) = group.reset({0: episode.seed})
        steps = group.advance(
            episode.action.numpy()[None], np.array([episode.length]), stop_on_success=False, elapsed=np.zeros(1, int)
        )
        rendered = [first, *(images for _, images in steps.images[0])]
        found = {name: np.stack([images[name] for images in rendered if name in images]) for name in cameras}
        return {name: torch.from_numpy(images) for name, images in found.items()}, steps.frames[0, -1]

    def expert_actions(self) -> Tensor:
        """Return the action of Meta-World's scripted expert in the current state. Shape: (num_envs, action_dim)."""
        if self.env_id != "metaworld":
            raise UserError(
                f"sim: {self.env_id!r} has no scripted expert; only Meta-World tasks have one; record random motion: "
                "source=random in collect, n_expert=0 n_noisy=0 n_random=200 in pretrain"
            )
        from rl.envs.metaworld.tasks import scripted_expert

        # It reads the simulator's whole state, whatever part of it the policy gets.
        frames = self._envs.newest()
        actions = [scripted_expert(t)(f[1], f[0]) for t, f in zip(self.task_of_env, frames, strict=True)]
        return torch.from_numpy(np.stack(actions)).to(self.device)

    def reports_success(self) -> bool:
        """Whether the steps of any environment have reported success, true or false, so far."""
        return self._envs.reports_success()

    def assign(self, tasks: Sequence[str]) -> None:
        """Give environment i the task `tasks[i]`; the next rollout begins new episodes."""
        if list(tasks) == self.task_of_env:
            return
        self._envs.close()
        self._make(tasks)
        self._past = [[] for _ in tasks]
        self.begun = False

    def _make(self, tasks: Sequence[str]) -> None:
        """Make the environments, one for each of `tasks`."""
        self.task_of_env = list(tasks)
        self._task_index = torch.tensor([self.spec.tasks.index(name) for name in tasks], device=self.device)
        if self._n_workers:
            self._envs: Workers | Group = Workers(self.env_id, tasks, self._events, self._used, self._n_workers)
        else:
            self._envs = Group(self.env_id, tasks, self._events, self._used)

    def state_dict(self) -> dict[str, Any]:
        """Return the batched state and, for each environment, the actions since its episode began."""
        past = [torch.from_numpy(np.array(p, np.float32).reshape(-1, self.spec.action_dim)) for p in self._past]
        return {
            **super().state_dict(),
            "tasks": self._task_index.clone(),
            "n_past": torch.tensor([len(p) for p in past]),
            "past": torch.nn.utils.rnn.pad_sequence(past, batch_first=True),  # (num_envs, longest, action_dim)
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; each unfinished episode is replayed up to its saved step."""
        if "tasks" in state:  # states of older versions have none: their environments kept their tasks
            self.assign([self.spec.tasks[i] for i in state["tasks"].tolist()])
        super().load_state_dict(state)
        past = [p[:n].numpy() for p, n in zip(state["past"], state["n_past"].tolist(), strict=True)]
        self._past = [list(p) for p in past]
        self._envs.replay(self.episode_seed.tolist(), past)

    def close(self) -> None:
        """Close the environments and stop the workers."""
        self._envs.close()

    def _restart(self, mask: Tensor) -> Start:
        which = mask.nonzero()[:, 0].tolist()
        seeds = self._next_seeds(len(which))
        # An idle environment (seed -1) is reset with seed 0, since it needs some frame; it executes nothing.
        state, images = self._envs.reset(dict(zip(which, seeds.clamp(min=0).tolist(), strict=True)))
        first = self._kept(torch.from_numpy(state).to(self.device))
        for name in self.spec.images:
            first[name] = torch.from_numpy(np.stack([of[name] for of in images])).to(self.device)
        for j in which:
            self._past[j] = []
        context = {name: repeated(values, self.n_context_frames) for name, values in first.items()}
        return Start(context, self._task_index[mask], seeds)

    def _advance(self, actions: Tensor, limit: Tensor) -> Advance:
        commands = actions.cpu().numpy()
        limit = limit * (self.episode_seed != IDLE)  # idle environments execute no action
        steps = self._envs.advance(commands, limit.cpu().numpy(), self.terminate_on_success, self.elapsed.cpu().numpy())
        for past, command in zip(self._past, commands, strict=True):
            past.extend(command.copy())  # actions after the end of an episode do no harm: the restart empties the list
        state, reward, success, terminated, truncated = (
            torch.from_numpy(array).to(self.device)
            for array in (steps.frames, steps.reward, steps.success, steps.terminated, steps.truncated)
        )
        frames = self._kept(state) | {name: self._held(name, steps) for name in self.spec.images}
        return Advance(frames, success, terminated, truncated, task_reward=reward)

    def _kept(self, state: Tensor) -> dict[str, Tensor]:
        """Return the vectors that the policy reads, each (..., .), of the simulator's state (..., state_dim)."""
        return {name: state if of is None else state[..., of] for name, of in self._columns.items()}

    def _held(self, name: str, steps: Steps) -> Tensor:
        """Return the image of a camera after each step: the last one, until there is a new one. Shape: (n, k, ...)."""
        before = self.context[name][:, -1:]
        images = before.repeat(1, steps.frames.shape[1], 1, 1, 1)
        for i, of_env in enumerate(steps.images):
            for j, new in of_env:
                if name in new:
                    images[i, j:] = torch.from_numpy(new[name]).to(self.device)
        return images


class MetaWorldSim(SimEnv):
    """Meta-World; `env.tasks` chooses its tasks and `env.id` stays empty."""

    @classmethod
    def build(cls, request: Request, **common: Any) -> Self:
        """Build environments as a config asks for them; see `Simulator.build`."""
        _check_no_id(request.id)
        return cls._of("metaworld", request, events=cls._typed(request.options).events, **common)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse an option that is not a field of `MetaWorldOptions`."""
        cls._typed(options)

    @classmethod
    def early_spec(cls, *, id: str, tasks: Sequence[str]) -> Spec:
        """Return the spec before anything is built; raises `UserError` for an unknown task."""
        _check_no_id(id)
        return make_spec("metaworld", tasks)

    @classmethod
    def fit(cls, task: str, episodes: Sequence[Episode], **search: Any) -> Any:
        """Fit physics, command gain and delay to recorded episodes; see `rl.envs.metaworld.fit`."""
        from rl.envs.metaworld.fit import fit

        return fit(task, episodes, **search)

    @staticmethod
    def _typed(options: Mapping[str, Any]) -> MetaWorldOptions:
        found: MetaWorldOptions = typed_options("metaworld", options, MetaWorldOptions)
        return found


class GymnasiumSim(SimEnv):
    """Any gymnasium environment with Box actions and Box or Dict observations; each id is one task."""

    id_is_task = True

    @classmethod
    def build(cls, request: Request, **common: Any) -> Self:
        """Build environments as a config asks for them; see `Simulator.build`."""
        cls.check_options(request.options)
        return cls._of(_checked_id(request.id), request, **common)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse every option; this simulator has none."""
        typed_options("gymnasium", options, NoOptions)

    @classmethod
    def early_spec(cls, *, id: str, tasks: Sequence[str]) -> Spec:
        """Return the spec before anything is built; raises `UserError` for an unknown id or a space that is no Box."""
        return make_spec(_checked_id(id), tasks)


@cache
def _rendered_env(env_id: str, task: str, cameras: tuple[tuple[str, CameraUse], ...]) -> Group:
    """Return the one environment that replays a task for images; cached, as making one takes as long as an episode."""
    return Group(env_id, [task], {}, dict(cameras))


def _used_cameras(spec: Spec, cameras: Mapping[str, View]) -> dict[str, CameraUse]:
    """Return view, size and period of each camera whose images a spec has."""
    used = {}
    for name in spec.images:
        feature = spec.features[name]
        view = cameras.get(name.removeprefix(IMAGES), View())
        height, width, _ = feature.shape
        used[name] = CameraUse(view, height, width, feature.every)
    return used


def _check_events(events: Mapping[str, Event], cameras: Cameras) -> None:
    known = [name.removeprefix(IMAGES) for name in cameras]
    for name, event in events.items():
        if event.camera and event.camera not in known:
            raise UserError(
                f"env.options.events.{name}.camera={event.camera!r:.80}: the policy reads "
                f"{', '.join(known) or 'no images'}; name one of its cameras, or leave the event out"
            )


def _check_no_id(id: str) -> None:
    if id:
        raise UserError(f"env.id={id}: simulator metaworld has no ids; leave it out and name tasks with env.tasks")


def _checked_id(id: str) -> str:
    if not id:
        raise UserError("env.id: simulator gymnasium needs the id of an environment, such as env.id=Pendulum-v1")
    return id


@cache
def _check_seeded(env_id: str) -> None:
    """Check that a gymnasium environment begins the same episode for the same seed, once in a process.

    Policies are compared on the same seeds; without this check a comparison of different episodes looks like one of
    the same. Two seeds are compared in turns, since an environment may draw numbers only in some episodes.

    Raises:
        UserError: the first observations of the same seed differ.
    """
    from rl.envs.gym_env import GymTask

    env = GymTask(env_id)
    try:
        first, again = ([env.reset(seed) for seed in (0, 1)] for _ in range(2))
    finally:
        env.close()
    if not all(np.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in zip(first, again, strict=True)):
        raise UserError(
            f"environment {env_id!r}: reset(seed=...) began two different episodes with the same seed, and policies "
            "are compared on the same ones; call super().reset(seed=seed) in it, and draw from self.np_random"
        )


def make_spec(env_id: str, tasks: Sequence[str] | None, task_names: Sequence[str] | None = None) -> Spec:
    """Return the spec of an environment.

    Raises:
        UserError: the task or id is unknown, or a space has another type than Box or Dict of them.
    """
    images: dict[str, Feature] = {}
    sentences: dict[str, str] = {}
    others: dict[str, tuple[str, ...]] = {}
    if env_id == "metaworld":
        from rl.envs.metaworld import tasks as metaworld

        if not tasks:
            raise UserError(f"sim: metaworld needs tasks=push or others; it knows {', '.join(metaworld.TASKS)}")
        for task in tasks:
            metaworld.check_task(task)
        state = Feature((metaworld.STATE_DIM,), metaworld.UNIT, dict(metaworld.SLICES))
        low, high, rate = metaworld.ACTION_LOW, metaworld.ACTION_HIGH, metaworld.CONTROL_HZ
        sentences, others = INSTRUCTIONS, WORDINGS
    else:
        from rl.envs.gym_env import SLICES, GymTask

        if set(tasks or ()) - {env_id, task_of_id(env_id)}:
            raise UserError(f"sim: {env_id!r} is its own task, tasks={list(tasks or ())} does not fit; leave it out")
        tasks = (task_of_id(env_id, task_names or tasks or ()),)
        env = GymTask(env_id)  # made only to read its spaces
        env.close()
        _check_seeded(env_id)
        state = Feature((env.state_dim,), slices=dict(SLICES.get(env_id, env.slices)))
        images = {name: Feature(shape, dtype="uint8") for name, shape in env.image_shapes.items()}
        low, high, rate = tuple(env.action_low), tuple(env.action_high), env.control_hz
    present = tuple(dict.fromkeys(tasks))
    known = tuple(task_names or present)
    unknown = [task for task in present if task not in known]
    if unknown:
        raise UserError(f"sim: task {unknown[0]!r} is unknown to the model; {closest_or_known(unknown[0], known)}")
    instructions = {task: sentences[task] for task in known if task in sentences}
    wordings = {task: others[task] for task in known if task in others}
    return Spec({STATE: state, **images}, low, high, known, rate, instructions, wordings)
