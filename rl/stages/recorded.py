"""Recorded episodes for the two stages: imported once, and split into those to learn from and those to measure on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from rewards.errors import UserError
from rl.stages.config import PretrainConfig
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.lerobot import INFO, import_lerobot

HELDOUT_EVERY = 5
"""One of so many episodes of each task is held out, where they were not recorded apart: the first, the sixth, ..."""


def heldout_store(store: EpisodeStore) -> EpisodeStore:
    """Return the store of the episodes that are measured on, never trained on: a folder inside that of the others."""
    return EpisodeStore(store.folder / "heldout")


def import_dataset(config: PretrainConfig, store: EpisodeStore) -> None:
    """Import the dataset that `config` names into `store`, unless it is there already.

    Raises:
        UserError: `store` holds other episodes than the dataset gives, or none and no dataset is named; or none of a
            task that `config` names.
    """
    if config.dataset:
        episodes, spec = import_lerobot(config.dataset, config.columns)
        if not episodes:
            raise UserError(f"dataset={config.dataset}: no episode has two frames; name another dataset")
        if not store.shards:
            store.append(episodes, spec)
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


def recorded_tasks(store: EpisodeStore) -> tuple[str, ...]:
    """Tasks of which there are episodes, in the order of recording."""
    return tuple(dict.fromkeys(task for task, _, _ in store.count()))


def load_split(store: EpisodeStore, tasks: Collection[str], n_steps: int) -> tuple[list[Episode], list[Episode]]:
    """Load the episodes of `tasks`: those to learn from, and those held out.

    A store without a held-out part is split by a rule that depends on nothing but the order of recording, so that every
    stage holds out the same ones, also after more have been recorded.

    Args:
        store: with a held-out part beside it or without.
        tasks: of the episodes.
        n_steps: shorter episodes are left out of the split; they hold no chunk.

    Raises:
        UserError: nothing can be held out, as no task has two episodes.
    """
    apart = heldout_store(store)
    if apart.shards:
        return store.load(tasks), apart.load(tasks)
    learned, heldout = split([e for e in store.load(tasks) if e.length >= n_steps])
    if not heldout:
        raise UserError(
            f"{store.folder}: {len(learned)} episodes of {n_steps} steps or more; expected two of one task at least, "
            "one to learn from and one to measure on"
        )
    return learned, heldout


def split(episodes: Sequence[Episode]) -> tuple[list[Episode], list[Episode]]:
    """Return the episodes to learn from, and every fifth one of each task, from the first on; a lone one is learned."""
    totals = Counter(e.task for e in episodes)
    seen: Counter[str] = Counter()
    learned: list[Episode] = []
    heldout: list[Episode] = []
    for episode in episodes:
        is_heldout = totals[episode.task] > 1 and seen[episode.task] % HELDOUT_EVERY == 0
        (heldout if is_heldout else learned).append(episode)
        seen[episode.task] += 1
    return learned, heldout


def describe(folder: str | Path, learned: Sequence[Episode], heldout: Sequence[Episode]) -> str:
    """Say in one line what there is to learn from."""
    episodes = [*learned, *heldout]
    lengths = [e.length for e in episodes]
    n_tasks, n_successful = len({e.task for e in episodes}), sum(e.is_success for e in episodes)
    return (
        f"episodes of {folder}: {len(episodes)} of {n_tasks} task{'s' * (n_tasks > 1)}, {min(lengths)} to "
        f"{max(lengths)} steps long, {n_successful} successful; {len(heldout)} are held out"
    )


def _same(a: Episode, b: Episode) -> bool:
    names = (a.task, a.source, a.seed) == (b.task, b.source, b.seed)
    return names and all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("state", "action", "success"))
