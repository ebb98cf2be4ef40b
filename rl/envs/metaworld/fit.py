"""A simulator made like what was recorded: physics, commands and delay fitted to episodes, not by hand.

Executed actions are replayed from where each episode began, and the search (differential evolution; Storn & Price
1997) looks for the parameters with which positions stay nearest to the recorded ones. Half of the episodes are kept
apart, to say how much of it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import differential_evolution

from rewards.errors import UserError
from rl.envs.metaworld.events import NOTHING, Perturbed
from rl.envs.metaworld.tasks import SLICES, MetaWorldTask
from world_model.data.episodes import Episode

Array = np.ndarray

BOUNDS = {"mass": (0.25, 4.0), "friction": (0.25, 4.0), "damping": (0.25, 4.0), "gain": (0.25, 1.5), "delay": (0, 6)}
"""What is searched, as in `NOTHING`: factors by their logarithm, steps of delay as whole numbers."""

POSITIONS = [slice(*SLICES[name]) for name in ("hand_pos", "object_pos")]
"""Parts of a frame, in metres, that are compared."""

GOAL = slice(*SLICES["goal_pos"])
"""A part that nothing moves, so it shows the noise of the sensors."""

MOST = 0.05
"""Metres beyond which one error is as bad as another: after a missed contact everything differs."""

APART = 0.02
"""Metres by which an episode may begin elsewhere in the simulator; beyond, its seed does not name the same scene."""

N_GENERATIONS = 12
"""Of the search, with 30 sets of parameters each."""


@dataclass(frozen=True)
class Fit:
    """Parameters by name, and mean errors of positions in metres on episodes that the search has not seen."""

    values: dict[str, float]
    before: float  # with the simulator as it is
    after: float
    unchanged: ClassVar[Mapping[str, float]] = NOTHING  # the values of the simulator as it is

    def options(self, spread: float) -> dict[str, object]:
        """Return the `env.options` that make the simulator like the episodes; see `events`."""
        return {"events": self.events(spread)}

    def events(self, spread: float) -> dict[str, dict[str, object]]:
        """Domain randomisation around the fit: each factor evenly within ± `spread` of it, drawn at every reset."""
        events: dict[str, dict[str, object]] = {}
        for name, value in self.values.items():
            low, high = (value, value) if name == "delay" else (value * (1 - spread), value * (1 + spread))
            if (low, high) != (NOTHING[name], NOTHING[name]):
                events[name] = {"func": name, "mode": "reset", "low": round(low, 4), "high": round(high, 4)}
        return events


def fit(
    task_name: str,
    episodes: Sequence[Episode],
    n_steps: int = 60,
    seed: int = 0,
    tick: Callable[[float], None] = lambda share: None,
) -> Fit:
    """Fit `BOUNDS` and the noise of the sensors to episodes of a Meta-World task; the seed of each names its scene.

    Args:
        task_name: of Meta-World.
        episodes: at least two.
        n_steps: of each episode are replayed.
        seed: of the search.
        tick: hears which share of the search is done.

    Raises:
        UserError: there are too few episodes, or one begins elsewhere in the simulator.
    """
    if len(episodes) < 2:
        raise UserError(f"{len(episodes)} episodes: a fit needs at least two, one of them to be judged on")
    task = Perturbed(MetaWorldTask(task_name), {})
    recorded = [_Recorded.of(episode, n_steps) for episode in episodes]
    noise = float(np.mean([row.frames[:, GOAL].std(0).mean() for row in recorded]))
    for i, row in enumerate(recorded):
        apart = _distances(row.frames[:1], task.reset(row.seed)[None]).max()
        if apart > APART + 5 * noise:
            raise UserError(
                f"episode {i} begins {apart:.3f} m from where scene {row.seed} begins in the simulator; "
                f"record episodes whose seeds name scenes of the simulator"
            )
    learned, judged = recorded[::2], recorded[1::2]
    values = _search(lambda values: _error(task, values, learned), seed, tick)
    before, after = (_error(task, v, judged) for v in ({}, values))
    return Fit(values | {"noise": noise if noise > 1e-5 else 0.0}, before, after)


def _search(error: Callable[[dict[str, float]], float], seed: int, tick: Callable[[float], None]) -> dict[str, float]:
    n_generations = [0]

    def heard(_: Array, convergence: float) -> None:
        n_generations[0] += 1
        tick(n_generations[0] / N_GENERATIONS)

    found = differential_evolution(
        lambda x: error(_values(x)),
        [bounds if name == "delay" else tuple(np.log(bounds)) for name, bounds in BOUNDS.items()],
        integrality=[name == "delay" for name in BOUNDS],
        x0=[0.0] * len(BOUNDS),  # the simulator as it is
        popsize=6,
        maxiter=N_GENERATIONS,
        seed=seed,
        polish=False,
        callback=heard,
    )
    return _values(found.x)


@dataclass(frozen=True)
class _Recorded:
    frames: Array  # (n_steps + 1, state_dim)
    actions: Array  # (n_steps, action_dim)
    seed: int

    @staticmethod
    def of(episode: Episode, n_steps: int) -> _Recorded:
        return _Recorded(episode.state[: n_steps + 1].numpy(), episode.action[:n_steps].numpy(), episode.seed)


def _values(x: Array) -> dict[str, float]:
    return {
        name: float(round(value)) if name == "delay" else float(np.exp(value))
        for name, value in zip(BOUNDS, x, strict=True)
    }


def _error(task: Perturbed, values: dict[str, float], rows: Sequence[_Recorded]) -> float:
    errors = []
    for row in rows:
        task.startup = dict(values)
        task.reset(row.seed)
        frames = np.stack([task.step(action)[0] for action in row.actions])
        errors.append(_distances(row.frames[1:], frames).clip(max=MOST).mean())
    task.startup = {}
    return float(np.mean(errors))


def _distances(one: Array, other: Array) -> Array:
    """Distances (n, number of positions) of frames (n, state_dim)."""
    return np.stack([np.linalg.norm(one[:, part] - other[:, part], axis=1) for part in POSITIONS], axis=1)
