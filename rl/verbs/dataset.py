"""Recorded episodes as policies of LeRobot read them: the robot's state apart, and images of simulated cameras."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace

from torch import Tensor

from rewards.errors import UserError, closest_or_known
from rl.build import find_simulator
from rl.config import SimulatorConfig
from rl.envs.cameras import Cameras, CameraUse
from rl.envs.features import given_spec, vector_columns
from rl.envs.names import env_of_tasks
from rl.runs.progress import Progress
from rl.stages.images import ends_as_recorded, recorded_columns
from rl.verbs.options import DatasetOptions
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.shards import read_shard
from world_model.spec import ENVIRONMENT_STATE, IMAGES, STATE, VECTORS, Feature, Spec


def dataset_of(store: EpisodeStore, options: DatasetOptions) -> tuple[Spec, Iterator[Episode]]:
    """Return the spec of a dataset, and its episodes, which are read, run again and rendered one by one.

    Args:
        store: of the recorded episodes.
        options: what the dataset has beside them.

    Raises:
        UserError: a task, camera or part of the state does not fit the episodes; or while they are made, an episode
            does not run again as it was recorded.
    """
    recorded = _chosen(store, options)
    env, cameras = env_of_tasks(options.env, recorded.tasks), _cameras(options)
    for name in cameras:
        if name in recorded.features:
            raise UserError(
                f"cameras.{name.removeprefix(IMAGES)}: {store.folder} has recorded images of that name; choose another"
            )
    spec = recorded if options.state == "whole" else _split(store, recorded, env, options.state)
    images = {name: Feature((use.height, use.width, 3), dtype="uint8") for name, use in cameras.items()}
    # The columns of the recorded state for each vector of the dataset; {}: it has the recorded vectors.
    parts = {} if spec is recorded else vector_columns(recorded, spec)
    spec = replace(spec, features=spec.features | images)
    ends = recorded_columns(env, recorded) if cameras else {}
    return spec, _episodes(store, env, recorded.tasks, parts, cameras, ends)


def _chosen(store: EpisodeStore, options: DatasetOptions) -> Spec:
    """Return the spec of the recorded episodes with the tasks and sentences that `options` choose."""
    recorded, chosen = store.spec, options.env
    for key, names in (("tasks", chosen.tasks), ("instructions", chosen.instructions)):
        for name in names:
            if name not in recorded.tasks:
                hint = closest_or_known(name, recorded.tasks)
                raise UserError(f"env.{key}: {store.folder} has no episodes of {name!r}; {hint}")
    tasks, sentences = chosen.tasks or recorded.tasks, recorded.instructions | chosen.instructions
    return replace(recorded, tasks=tasks, instructions={task: sentences[task] for task in tasks if task in sentences})


def _cameras(options: DatasetOptions) -> dict[str, CameraUse]:
    """Return the cameras by the names of their features; each renders every frame."""
    height, width = options.height_and_width
    return {IMAGES + name: CameraUse(view, height, width) for name, view in options.cameras.items()}


def _split(store: EpisodeStore, recorded: Spec, env: SimulatorConfig, state: str) -> Spec:
    """Return the recorded spec with the robot's part of the state apart from the rest, or for `robot` without it."""
    if ENVIRONMENT_STATE in recorded.features:
        return _without_rest(recorded) if state == "robot" else recorded
    robot = find_simulator(env).robot_slices
    own = [name for name in robot if name in recorded.slices]
    size = sum(recorded.slices[name].stop - recorded.slices[name].start for name in own)
    if not 0 < size < recorded.state_dim:
        parts = f"parts that a robot measures itself ({', '.join(robot) or 'no names'})"
        has = f"nothing but {parts}" if size else f"none of the {parts}"
        raise UserError(f"state={state}: the state of {store.folder} has {has}; set state=whole")
    wanted = {**recorded.features, STATE: Feature((size,)), ENVIRONMENT_STATE: Feature((recorded.state_dim - size,))}
    given = given_spec(recorded, wanted, robot_slices=robot)
    others = {name: feature for name, feature in recorded.features.items() if name not in VECTORS}
    split = replace(given, features=given.features | others)
    return _without_rest(split) if state == "robot" else split


def _without_rest(spec: Spec) -> Spec:
    """Return a spec without what the robot does not measure itself."""
    return replace(spec, features={name: of for name, of in spec.features.items() if name != ENVIRONMENT_STATE})


def _episodes(
    store: EpisodeStore,
    env: SimulatorConfig,
    tasks: tuple[str, ...],
    parts: Mapping[str, Tensor | None],
    cameras: Cameras,
    ends: Mapping[str, Tensor | None],
) -> Iterator[Episode]:
    """Yield the episodes of the dataset; `ends` are the columns of the simulator's state of each recorded vector."""
    total = sum(n for (task, _, _), n in store.count().items() if task in tasks)
    done = 0
    with Progress("render") if cameras else nullcontext() as progress:
        for shard in store.shards:
            for episode in read_shard(shard, tasks):
                images = _rendered(store, env, episode, cameras, ends) if cameras else {}
                vectors = {name: episode.state if of is None else episode.state[:, of] for name, of in parts.items()}
                yield replace(episode, obs=episode.obs | vectors | images)
                done += 1
                if progress is not None:
                    progress.update(done, total, task=episode.task)


def _rendered(
    store: EpisodeStore, env: SimulatorConfig, episode: Episode, cameras: Cameras, ends: Mapping[str, Tensor | None]
) -> dict[str, Tensor]:
    """Run an episode again and return an image of each camera for each frame."""
    images, last = find_simulator(env).replay(id=env.id, episode=episode, cameras=cameras)
    if not ends_as_recorded(last, episode, ends):
        raise UserError(
            f"{store.folder}: the episode of seed {episode.seed} ({episode.task}) does not run as it was recorded, so "
            "images would not show it; collect episodes without env.options, or leave `cameras` out"
        )
    return images
