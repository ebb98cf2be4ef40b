"""`wamtune collect`: record episodes of scripted experts, or of random motion, in a simulator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rewards.errors import UserError
from rl.compose import compose
from rl.envs.names import shown_name
from rl.seeds import OF_SOURCE
from rl.stages.episodes import complete, simulates, with_tasks
from rl.verbs.options import CollectOptions
from world_model.data.episodes import EpisodeStore


def run(words: list[str]) -> None:
    """Record the episodes into the new folder `words[0]`, and print how many succeeded."""
    options, folder = compose(None, words[1:], CollectOptions), Path(words[0])
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} is there already and was not touched; choose another folder")
    if not simulates(options):
        raise UserError(f"{shown_name(options.env)}: it simulates nothing, so there is nothing to record")
    options = replace(options, env=with_tasks(options.env))
    store = EpisodeStore(folder)
    first = OF_SOURCE[options.source].start if options.seed is None else options.seed
    complete(options, store, options.source, options.n_episodes, first)
    counts = store.count()
    n_successful = sum(n for (_, _, is_success), n in counts.items() if is_success)
    print(f"{sum(counts.values())} episodes, {n_successful} of them successful, are in {folder}")
