"""`wamtune fit`: a simulator like the robot, from episodes that were recorded on it."""

from __future__ import annotations

import shlex
from pathlib import Path

import yaml

from rewards.errors import UserError
from rl.compose import compose
from rl.envs.metaworld.events import NOTHING
from rl.envs.metaworld.fit import fit
from rl.envs.metaworld.tasks import TASKS
from rl.envs.sim import make_spec
from rl.runs.progress import Progress
from rl.verbs.options import FitOptions
from world_model.data.episodes import EpisodeStore
from world_model.files import write_atomically


def run(words: list[str]) -> None:
    """Fit, print what was found, and write the preset."""
    options = compose(None, words[1:], FitOptions)
    store = EpisodeStore(words[0])
    known = dict.fromkeys(task for task, _, _ in store.count())
    if not known:
        raise UserError(f"{words[0]}: no episodes here; record some with wamtune deploy CHECKPOINT run PRESET")
    task = _task(options.task, list(known), words[0])
    episodes = store.load(tasks=[task])[: options.n_episodes]
    episodes[0].check_fits(make_spec("metaworld", [task]), f"{words[0]}: not as Meta-World has it")
    with Progress("fit") as progress:
        found = fit(
            task,
            episodes,
            options.n_steps,
            options.seed,
            lambda share: progress.update(round(100 * share), 100, episodes=len(episodes)),
        )
    for name, value in found.values.items():
        print(f"{name:<10}{value:8.3g}   (simulator: {NOTHING[name]:g})")
    print(f"error on episodes kept apart: {1000 * found.before:.1f} mm -> {1000 * found.after:.1f} mm")
    preset = {
        "name": Path(options.out).stem,
        "base": "dream",
        "episodes": words[0],
        "env": {"tasks": [task], "events": found.events(options.spread)},
    }
    text = f"# {shlex.join(['wamtune', 'fit', *words])}\n{yaml.safe_dump(preset, sort_keys=False)}"
    write_atomically(Path(options.out), text.encode())
    print(f"preset: {options.out}; wamtune train {options.out}")


def _task(wanted: str, recorded: list[str], folder: str) -> str:
    known = [task for task in recorded if task in TASKS]
    if not known:
        raise UserError(f"{folder}: episodes of {', '.join(recorded)}; only tasks of Meta-World can be fitted")
    if wanted in known or (not wanted and len(known) == 1):
        return wanted or known[0]
    raise UserError(f"task={wanted or '(none)'}: expected one of {', '.join(known)}")
