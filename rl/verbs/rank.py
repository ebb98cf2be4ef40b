"""`wamtune rank`: order checkpoints by their success in one dream, and correct the order with few real episodes.

All checkpoints act in the same world model, from the same first states, with the same noise. In its own dream each
would be measured by another ruler, and differences between the dreams would count as differences of the policies.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from rewards.errors import UserError
from rl.build import device_of, is_policy
from rl.compose import compose
from rl.envs.names import check_has_simulator, env_of_tasks
from rl.policies.api import Denoiser
from rl.policies.wam import WamDenoiser, load_actor
from rl.ranking import Ranking, next_to_run, rank
from rl.runs.progress import Progress, show
from rl.sequential import Floats, corrected
from rl.statistics import wilson
from rl.verbs.acting import load_brought, refuse_own_class
from rl.verbs.measure import TwinSuccess, evaluated_tasks, in_percent, measure, run_config, successes, with_twins
from rl.verbs.options import RankOptions
from rl.verbs.pages import rank_page
from rl.verbs.words import leading_names
from world_model.files import write_atomically
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model


@dataclass(frozen=True)
class Episodes:
    """Success of one checkpoint, 0 or 1, with the tasks in turn along the first axis."""

    dreamed: Floats  # (n_starts * n_tasks,)
    real: Floats  # (n_real * n_tasks,)
    estimated: TwinSuccess | None  # estimated with the twins; None without real episodes
    corrected: Floats  # (n_real * n_tasks,), real outcomes corrected by their twins


def run(words: list[str]) -> None:
    """Dream with every checkpoint, run its real episodes if there are any, and print the order."""
    names = leading_names(words)
    options = compose(None, words[len(names) :], RankOptions)
    config = run_config(options)
    actors = [_load(name, options, device_of(config)) for name in names]
    model = _world_model(names, actors, options)
    if not options.env.tasks:
        options = replace(options, env=env_of_tasks(options.env, model.spec.tasks))
    check_has_simulator(options.env, model.spec.tasks, options.world_model or names[0])
    tasks = evaluated_tasks(options, model)
    for name, actor in zip(names, actors, strict=True):
        _check_dreamable(name, actor, model)
    found: list[Episodes] = []
    with Progress("rank") as progress:
        for i, (name, actor) in enumerate(zip(names, actors, strict=True)):

            def tick(share: float, begun: int = i, name: str = name) -> None:
                progress.update(begun + share, len(names), checkpoint=name)

            found.append(_episodes(actor, model, options, tasks, tick))
        progress.update(len(names), len(names))
    outcomes = np.stack([of.corrected if options.n_real else of.dreamed for of in found])
    ranking = rank(outcomes, options.n_resamples)
    shown = table(names, found, ranking)
    said = [f"the whole order is right with probability {ranking.is_right:.2f} (bootstrap over starts)"]
    chosen = next_to_run(ranking, outcomes) if options.n_real else None
    if chosen is not None:
        first, second = names[ranking.order[0]], names[ranking.runner_up]
        said.append(
            f"run next: a real episode of {names[chosen]}; in question is whether {second} is better than {first}"
        )
    show(shown)
    print("\n".join(said))
    if options.out.endswith(".html"):
        page = rank_page(names, np.stack([of.dreamed for of in found]), ranking, shown, said)
        write_atomically(Path(options.out), page.encode())
        print(f"page: {options.out}")
    elif options.out:
        _write(names, options, found, ranking, chosen)


def _load(name: str, options: RankOptions, device: str) -> Denoiser:
    """Load what acts: a checkpoint of ours, or a policy as `wamtune eval` takes it."""
    if options.policy or is_policy(name):
        return load_brought(name, options.policy, device, options.n_action_steps)
    refuse_own_class(name)
    return WamDenoiser(load_actor(name))


def _world_model(names: list[str], actors: list[Denoiser], options: RankOptions) -> WorldActionModel:
    """Return the world model in which all act.

    Raises:
        UserError: none is named, and no checkpoint has one.
    """
    if options.world_model:
        return load_model(options.world_model)
    ours = [actor.model for actor in actors if isinstance(actor, WamDenoiser)]
    if not ours:
        raise UserError(
            "world_model: none of these policies has a dream; name a checkpoint with world_model=..., such as "
            "metaworld-pixels-tuned"
        )
    return ours[0]


def _check_dreamable(name: str, actor: Denoiser, model: WorldActionModel) -> None:
    """Refuse a checkpoint of ours that cannot act in the dream of `model`.

    Raises:
        UserError: it was trained on other features, tasks or bounds, or it reads other latents.
    """
    if not isinstance(actor, WamDenoiser) or actor.model is model:
        return
    if actor.model.spec != model.spec:
        raise UserError(
            f"{name}: its features, tasks or action bounds are not those of the world model; rank checkpoints that "
            "were grown from one, or name another world model with world_model=..."
        )
    theirs, ours = (of.image_codec for of in (actor.model, model))
    if theirs is None or ours is None:
        return
    weights, expected = theirs.state_dict(), ours.state_dict()
    if weights.keys() != expected.keys() or not all(torch.equal(weights[key], expected[key]) for key in weights):
        raise UserError(
            f"{name}: it encodes images in another way than the world model; rank checkpoints that were grown from one"
        )


def _episodes(
    actor: Denoiser,
    model: WorldActionModel,
    options: RankOptions,
    tasks: tuple[str, ...],
    tick: Callable[[float], None],
) -> Episodes:
    """Dream from all starts of each task, and run the first ones; all checkpoints have the same."""
    seeds, n = list(range(options.seed, options.seed + options.n_starts)), options.n_real
    dreamed, real = [], []
    for i, task in enumerate(tasks):

        def part(share: float, begun: int = i) -> None:
            tick((begun + share) / len(tasks))

        found = measure(model, options, task, seeds[:n], seeds, part, actor)
        dreamed.append(successes(found.dreamed))
        real.append(successes(found.real))
    whole, few = (np.stack(of, axis=1).ravel() for of in (dreamed, real))
    if n == 0:
        return Episodes(whole, few, None, few)
    # The starts without a real episode are the fresh ones of the control variate: K for each real episode.
    k = (options.n_starts - n) // n
    twins, others = [of[:n] for of in dreamed], [of[n : n + n * k].reshape(n, k) for of in dreamed]
    t, o = np.stack(twins, axis=1).ravel(), np.stack(others, axis=1).reshape(-1, k)
    x = corrected(few, t, o, 0.0, 1.0, cycle=len(tasks))
    return Episodes(whole, few, with_twins(real, twins, others), x.value)


def table(names: list[str], found: list[Episodes], ranking: Ranking) -> Table:
    """Return a table with the checkpoints, the best one first."""
    has_real = found[0].estimated is not None
    shown = Table("", "checkpoint")
    real = ("real and dreamed, %", "real alone, %", "φ", "weight") if has_real else ()
    for column in ("dream, %", *real, "best", "better than the next"):
        shown.add_column(column, justify="right")
    for place, i in enumerate(ranking.order):
        of = found[i]
        low, high = wilson(int(of.dreamed.sum()), len(of.dreamed))
        cells = [in_percent(float(of.dreamed.mean()), low, high)]
        if of.estimated is not None:
            e, phi = of.estimated.found, of.estimated.phi
            cells += [in_percent(e.mean, e.low, e.high), in_percent(e.plain_mean, e.plain_low, e.plain_high)]
            cells += ["" if phi is None else f"{phi:+.2f}", f"{e.twin_weight:.2f}"]
        beats = f"{ranking.beats_next[place]:.2f}" if place + 1 < len(names) else ""
        shown.add_row(str(place + 1), names[i], *cells, f"{ranking.is_best[i]:.2f}", beats)
    return shown


def _write(names: list[str], options: RankOptions, found: list[Episodes], ranking: Ranking, chosen: int | None) -> None:
    rows = [
        {
            "checkpoint": name,
            "dreamed": of.dreamed.tolist(),
            "real": of.real.tolist(),
            "with_twins": None if of.estimated is None else asdict(of.estimated.found) | {"phi": of.estimated.phi},
        }
        for name, of in zip(names, found, strict=True)
    ]
    next_one = None if chosen is None else names[chosen]
    figures = {"options": asdict(options), "ranking": asdict(ranking), "next": next_one, "checkpoints": rows}
    write_atomically(Path(options.out), f"{json.dumps(figures, indent=2)}\n".encode())
    print(f"figures: {options.out}")
