"""System identification: fit the simulator's physics, command gain and delay to recorded episodes.

The executed actions of each episode are replayed from its start. Differential evolution (Storn & Price 1997) searches
for the parameters whose replayed positions are nearest to the recorded ones. It searches on half of the episodes; the
other half measures the fit.
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
"""Search range of each parameter, see `NOTHING`; factors are searched by logarithm, the delay in whole steps."""

POSITIONS = [slice(*SLICES[name]) for name in ("hand_pos", "object_pos")]
"""Slices of a frame, in metres, that are compared."""

GOAL = slice(*SLICES["goal_pos"])
"""A slice that nothing moves in an episode, so its spread is the sensor noise."""

MOST = 0.05
"""Metres at which an error is clipped: after a missed contact everything differs, so larger errors tell no more."""

APART = 0.02
"""Largest distance in metres between recorded and simulated start; beyond it, the seed names another scene."""

N_GENERATIONS = 12
"""Generations of the search, with 30 sets of parameters each."""


@dataclass(frozen=True)
class Fit:
    """Fitted parameters by name, and the mean position errors in metres on the held-out episodes."""

    values: dict[str, float]
    before: float  # with the unchanged simulator
    after: float  # with `values`
    unchanged: ClassVar[Mapping[str, float]] = NOTHING  # values of the unchanged simulator

    def options(self, spread: float) -> dict[str, object]:
        """Return the `env.options` with the fitted events; see `events`."""
        return {"events": self.events(spread)}

    def events(self, spread: float) -> dict[str, dict[str, object]]:
        """Return domain randomisation around the fit, drawn at every reset.

        Factors and noise are uniform within ± `spread` (a share of the value); the delay is fixed.
        """
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
    """Fit the parameters of `BOUNDS` and the sensor noise to episodes of a Meta-World task.

    Args:
        task_name: of Meta-World.
        episodes: at least two; the seed of each names its scene in the simulator.
        n_steps: number of steps to replay of each episode.
        seed: of the search.
        tick: called with the share of the search that is done.

    Raises:
        UserError: there are fewer than two episodes, or the simulator starts one at another position.
    """
    if len(episodes) < 2:
        raise UserError(f"{len(episodes)} episodes: a fit needs at least two, one of them to be judged on")
    task = Perturbed(MetaWorldTask(task_name), {})
    recorded = [_Recorded.of(episode, n_steps) for episode in episodes]
    noise = float(np.mean([row.frames[:, GOAL].std(0).mean() for row in recorded]))
    # Each seed must name the same scene in the simulator, up to sensor noise, or the replay compares nothing.
    for i, row in enumerate(recorded):
        apart = _distances(row.frames[:1], task.reset(row.seed)[None]).max()
        if apart > APART + 5 * noise:
            raise UserError(
                f"episode {i} begins {apart:.3f} m from where scene {row.seed} begins in the simulator; "
                f"record episodes whose seeds name scenes of the simulator"
            )
    searched, held_out = recorded[::2], recorded[1::2]
    values = _search(lambda values: _error(task, values, searched), seed, tick)
    before, after = (_error(task, v, held_out) for v in ({}, values))
    return Fit(values | {"noise": noise if noise > 1e-5 else 0.0}, before, after)


def _search(error: Callable[[dict[str, float]], float], seed: int, tick: Callable[[float], None]) -> dict[str, float]:
    n_generations = [0]

    def count_generation(_: Array, convergence: float) -> None:
        n_generations[0] += 1
        tick(n_generations[0] / N_GENERATIONS)

    found = differential_evolution(
        lambda x: error(_values(x)),
        [bounds if name == "delay" else tuple(np.log(bounds)) for name, bounds in BOUNDS.items()],
        integrality=[name == "delay" for name in BOUNDS],
        x0=[0.0] * len(BOUNDS),  # start at the unchanged simulator: log factors of 0, delay 0
        popsize=6,
        maxiter=N_GENERATIONS,
        seed=seed,
        polish=False,
        callback=count_generation,
    )
    return _values(found.x)


@dataclass(frozen=True)
class _Recorded:
    """The first steps of a recorded episode, in numpy."""

    frames: Array  # (n_steps + 1, state_dim)
    actions: Array  # (n_steps, action_dim)
    seed: int

    @staticmethod
    def of(episode: Episode, n_steps: int) -> _Recorded:
        return _Recorded(episode.state[: n_steps + 1].numpy(), episode.action[:n_steps].numpy(), episode.seed)


def _values(x: Array) -> dict[str, float]:
    """Turn a point of the search into parameters by name."""
    return {
        name: float(round(value)) if name == "delay" else float(np.exp(value))
        for name, value in zip(BOUNDS, x, strict=True)
    }


def _error(task: Perturbed, values: dict[str, float], rows: Sequence[_Recorded]) -> float:
    """Return the mean position error in metres when the recorded actions are replayed with `values`."""
    errors = []
    for row in rows:
        task.startup = dict(values)  # the next reset applies them
        task.reset(row.seed)
        frames = np.stack([task.step(action)[0] for action in row.actions])
        errors.append(_distances(row.frames[1:], frames).clip(max=MOST).mean())  # `MOST` bounds the effect of outliers
    task.startup = {}
    return float(np.mean(errors))


def _distances(one: Array, other: Array) -> Array:
    """Return the distances in metres between frames (n, state_dim). Shape: (n, number of `POSITIONS`)."""
    return np.stack([np.linalg.norm(one[:, part] - other[:, part], axis=1) for part in POSITIONS], axis=1)
