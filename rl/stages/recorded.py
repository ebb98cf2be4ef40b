"""Recorded episodes for the two stages: import them once, and split them into a training and a held-out part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from rewards.errors import UserError
from rl.stages.config import PretrainConfig
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.lerobot import INFO, import_lerobot
from world_model.data.shards import in_shards
from world_model.spec import IMAGES, Spec

HELDOUT_EVERY = 5
"""Without a separate held-out part, every fifth episode of each task is held out: the first, the sixth, ..."""

BOUNDS_SLACK = 1e-3
"""Share of its range by which a recorded action may be beyond the bounds, since files and drivers round."""


def heldout_store(store: EpisodeStore) -> EpisodeStore:
    """Return the store of the held-out episodes, used for measuring only: a folder inside that of `store`."""
    return EpisodeStore(store.folder / "heldout")


def import_dataset(config: PretrainConfig, store: EpisodeStore) -> None:
    """Import the dataset of `config` into `store`, unless it has been imported already.

    Raises:
        UserError: `store` holds other episodes than the dataset; `store` is empty and no dataset is named; nothing says
            which episodes succeeded; the model reads images that are not imported; or there is no episode of a task in
            `config.env.tasks`.
    """
    if config.dataset:
        episodes, spec = import_lerobot(config.dataset, config.columns)
        if not episodes:
            raise UserError(f"dataset={config.dataset}: no episode has two frames; name another dataset")
        if not store.shards:
            _check_images(config, spec)
            _check_success(config, episodes)
            for group in in_shards(episodes):
                store.append(group, spec)
        # The store may hold more episodes, recorded later; the first ones must be those of the dataset.
        stored = store.load()[: len(episodes)]
        if len(stored) < len(episodes) or not all(map(_same, stored, episodes)):
            raise UserError(
                f"{store.folder} holds other episodes than dataset={config.dataset} gives now; delete that folder, or "
                "name another one with episodes=FOLDER"
            )
    elif not store.shards:
        is_dataset = (store.folder / INFO).is_file()
        remedy = f"dataset={store.folder} imports it" if is_dataset else "name a folder with some, or dataset=FOLDER"
        what = "a LeRobot dataset, not a folder of episodes" if is_dataset else "no episodes here"
        raise UserError(f"episodes={store.folder}: {what}; {remedy}")
    there = recorded_tasks(store)
    for task in config.env.tasks:
        if task not in there:
            raise UserError(f"env.tasks: {task!r} is none of those in {store.folder}: {', '.join(map(repr, there))}")


def _check_images(config: PretrainConfig, spec: Spec) -> None:
    """Raise `UserError` if a camera of the model has no images of its size in the dataset, before they are stored."""
    size = config.model.image_size
    for camera in config.model.views:
        feature = spec.features.get(IMAGES + camera)
        if feature is None:
            raise UserError(
                f"model.views.{camera}: no images of this camera are imported; name their column, "
                f"columns.images.{camera}=observation.images.{camera}, or set model.views={{}}"
            )
        if feature.shape[:2] != (size, size):
            height, width, _ = feature.shape
            raise UserError(
                f"model.image_size={size}: the images of camera {camera} are imported with {height} x {width} pixels "
                "(height x width); set columns.image_size and model.image_size to the same number"
            )


def _check_success(config: PretrainConfig, episodes: Sequence[Episode]) -> None:
    """Raise `UserError` if neither the dataset nor the config says which episodes succeeded.

    The model would learn that nothing is ever a success; `tune` and `train`, hours later, would find none to use.
    """
    if not config.columns.success and not any(episode.is_success for episode in episodes):
        raise UserError(
            f"dataset={config.dataset}: it marks no step as a success in next.success; add columns.success=all if "
            "every episode was one, none if no episode was, or the name of a column"
        )


def recorded_tasks(store: EpisodeStore) -> tuple[str, ...]:
    """Return the tasks of the episodes in a store, in the order of recording."""
    return tuple(dict.fromkeys(task for task, _, _ in store.count()))


def load_split(
    store: EpisodeStore, tasks: Collection[str], n_steps: int, features: Collection[str] | None = None
) -> tuple[list[Episode], list[Episode]]:
    """Load the episodes of `tasks` as (training episodes, held-out episodes).

    A store without a held-out part is split by a rule that depends only on the order of recording. So every stage holds
    out the same episodes, also after more have been recorded.

    Args:
        store: with or without a held-out part.
        tasks: of the episodes.
        n_steps: length of a chunk; the split leaves out shorter episodes.
        features: to keep of each episode; None: all.

    Raises:
        UserError: nothing can be held out, because no task has two episodes; or an action is beyond the bounds.
    """
    apart, episodes = heldout_store(store), store.load(tasks, features=features)
    check_bounds(store, episodes)
    if apart.shards:
        return episodes, apart.load(tasks, features=features)
    learned, heldout = split([e for e in episodes if e.length >= n_steps])
    if not heldout:
        raise UserError(
            f"{store.folder}: {len(learned)} episodes of {n_steps} steps or more; expected two of one task at least, "
            "one to learn from and one to measure on"
        )
    return learned, heldout


def check_bounds(store: EpisodeStore, episodes: Sequence[Episode]) -> None:
    """Raise `UserError` if a recorded action is beyond the bounds within which a policy can act."""
    if not episodes:
        return
    low, high = (torch.tensor(bounds) for bounds in (store.spec.action_low, store.spec.action_high))
    slack = BOUNDS_SLACK * (high - low)
    for i, episode in enumerate(episodes):
        beyond = (episode.action < low - slack) | (episode.action > high + slack)
        if beyond.any():
            step, j = beyond.nonzero()[0].tolist()
            raise UserError(
                f"{store.folder}: episode {i} has {episode.action[step, j]:g} as action {j} at step {step}, the bounds "
                f"of its spec are {low[j]:g} and {high[j]:g}; record with wider bounds, or clip the actions"
            )


def split(episodes: Sequence[Episode]) -> tuple[list[Episode], list[Episode]]:
    """Return training and held-out episodes: every fifth of a task is held out, unless the task has only one."""
    totals = Counter(e.task for e in episodes)
    seen: Counter[str] = Counter()
    learned: list[Episode] = []
    heldout: list[Episode] = []
    for episode in episodes:
        # Count per task in the order of recording: episodes added later move no earlier one, except a lone one.
        is_heldout = totals[episode.task] > 1 and seen[episode.task] % HELDOUT_EVERY == 0
        (heldout if is_heldout else learned).append(episode)
        seen[episode.task] += 1
    return learned, heldout


def describe(folder: str | Path, learned: Sequence[Episode], heldout: Sequence[Episode]) -> str:
    """Return one line about the episodes: number, tasks, lengths, successes and the held-out part."""
    episodes = [*learned, *heldout]
    lengths = [e.length for e in episodes]
    n_tasks, n_successful = len({e.task for e in episodes}), sum(e.is_success for e in episodes)
    return (
        f"episodes of {folder}: {len(episodes)} of {n_tasks} task{'s' * (n_tasks > 1)}, {min(lengths)} to "
        f"{max(lengths)} steps long, {n_successful} successful; {len(heldout)} are held out"
    )


def _same(a: Episode, b: Episode) -> bool:
    names = (a.task, a.source, a.seed, a.obs.keys()) == (b.task, b.source, b.seed, b.obs.keys())
    pairs = [(a.action, b.action), (a.success, b.success), *((a.obs[name], b.obs[name]) for name in a.obs if names)]
    return names and all(torch.equal(x, y) for x, y in pairs)
