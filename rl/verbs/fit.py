"""`wamtune fit`: fit the parameters of the simulator to episodes that were recorded on a robot."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from math import isclose
from pathlib import Path
from typing import Any

import yaml

from rewards.checks import named_or_only
from rewards.errors import UserError
from rl.build import find_simulator
from rl.compose import compose
from rl.config import SimulatorConfig
from rl.envs.features import given_spec
from rl.envs.names import shown_name, simulator_name
from rl.envs.simulator import Simulator
from rl.runs.progress import Progress
from rl.verbs.options import FitOptions
from world_model.data.episodes import EpisodeStore
from world_model.files import write_atomically
from world_model.spec import IMAGES, SAME, STATE
from world_model.view import View
from world_model.wam.store import load_model


def run(words: list[str]) -> None:
    """Fit the parameters, print them, and write a preset."""
    options = compose(None, words[1:], FitOptions)
    store = EpisodeStore(words[0])
    known = dict.fromkeys(task for task, _, _ in store.count())
    if not known:
        raise UserError(f"{words[0]}: no episodes here; record some with wamtune deploy CHECKPOINT run PRESET")
    simulator = find_simulator(options.env)
    task = _task(simulator, options.env, list(known), words[0])
    episodes, spec = store.load(tasks=[task])[: options.n_episodes], store.spec
    early = simulator.early_spec(id=options.env.id, tasks=[task])
    if early is not None:
        spec = given_spec(early, spec.features, robot_slices=simulator.robot_slices)
        episodes[0].check_fits(spec, f"{words[0]}: not as in {shown_name(options.env)}")
        if not isclose(spec.control_hz, rate := store.spec.control_hz, rel_tol=SAME):
            raise UserError(
                f"{words[0]}: recorded at {rate:g} Hz, and {shown_name(options.env)} runs at {spec.control_hz:g} Hz; "
                "name episodes that were recorded at its rate"
            )
    views = _views(options, store)
    with Progress("fit") as progress:
        found = simulator.fit(
            task,
            episodes,
            n_steps=options.n_steps,
            seed=options.seed,
            tick=lambda share: progress.update(round(100 * share), 100, episodes=len(episodes)),
            slices=spec.features[STATE].slices,
            views=views,
        )
    for line in _described(found):
        print(line)
    preset = {
        "name": Path(options.out).stem,
        "base": "pixels" if views else "dream",
        **({"checkpoint": options.checkpoint} if options.checkpoint else {}),
        "episodes": words[0],
        "env": {"tasks": [task], "options": found.options(options.spread)},
    }
    text = f"# {shlex.join(['wamtune', 'fit', *words])}\n{yaml.safe_dump(preset, sort_keys=False)}"
    write_atomically(Path(options.out), text.encode())
    print(f"preset: {options.out}; wamtune train {options.out}")


def _described(found: Any) -> Iterator[str]:
    """Yield the lines of a fit: its parameters and errors, then those of each camera."""
    for name, value in found.values.items():
        yield f"{name:<12}{value:8.3g}   (simulator: {found.unchanged[name]:g})"
    yield f"error on episodes kept apart: {1000 * found.before:.1f} mm -> {1000 * found.after:.1f} mm"
    for camera, fitted in found.cameras.items():
        yield f"camera {camera}"
        for name, value in fitted.values.items():
            yield f"{name:<12}{value:8.3g}   (simulator: {fitted.unchanged[name]:g})"
        yield f"pixels on episodes kept apart: {fitted.before:.1f} -> {fitted.after:.1f} of 255 apart"


def _views(options: FitOptions, store: EpisodeStore) -> dict[str, View]:
    """Return where the simulator has the cameras whose images were recorded: there the checkpoint reads them."""
    images = [name.removeprefix(IMAGES) for name in store.spec.images]
    if not images:
        return {}
    if not options.checkpoint:
        raise UserError(
            f"{store.folder}: episodes with images of {', '.join(images)}; name the checkpoint whose cameras they are "
            "compared with, checkpoint=metaworld-pixels-tuned or another"
        )
    views = {name: view for name, view in load_model(options.checkpoint).cameras.items() if name in images}
    if not views:
        raise UserError(f"checkpoint={options.checkpoint}: it reads no images of {', '.join(images)}; name another")
    return views


def _task(simulator: type[Simulator], env: SimulatorConfig, recorded: list[str], folder: str) -> str:
    """Return the task to fit: the one that `env` names, or the only recorded one."""
    known = [task for task in recorded if _has(simulator, env, task)]
    if not known:
        name = simulator_name(env)
        raise UserError(f"{folder}: episodes of {', '.join(recorded)}; none is a task of env.simulator={name}")
    return named_or_only("env.tasks", env.tasks[0] if env.tasks else "", known)


def _has(simulator: type[Simulator], env: SimulatorConfig, task: str) -> bool:
    try:
        simulator.early_spec(id=env.id, tasks=[task])
    except UserError:
        return False
    return True
