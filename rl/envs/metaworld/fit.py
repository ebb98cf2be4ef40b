"""System identification: fit the simulator's physics, command gain and delay, and its cameras, to recorded episodes.

The executed actions of each episode are replayed from its start. Differential evolution (Storn & Price 1997) searches
for the parameters whose replayed positions are nearest to the recorded ones. It searches on half of the episodes; the
other half measures the fit. Then each camera is fitted to the recorded images, see `rl.envs.metaworld.fit_camera`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from scipy.optimize import differential_evolution

from rewards.errors import UserError
from rl.envs.cameras import CameraUse
from rl.envs.metaworld.camera_changes import FACTORS, UNCHANGED
from rl.envs.metaworld.events import NOTHING, Perturbed
from rl.envs.metaworld.fit_camera import UNITS, CameraFit, Shot, fit_camera
from rl.envs.metaworld.tasks import SLICES, MetaWorldTask
from world_model.data.episodes import Episode
from world_model.spec import IMAGES
from world_model.view import View

Array = np.ndarray

BOUNDS = {"mass": (0.25, 4.0), "friction": (0.25, 4.0), "damping": (0.25, 4.0), "gain": (0.25, 1.5), "delay": (0, 6)}
"""Search range of each parameter, see `NOTHING`; factors are searched by logarithm, the delay in whole steps."""

WITHOUT_OBJECT = ("gain", "delay")
"""Parameters that the position of the hand alone tells; the others act on the object."""

POSITIONS = ("hand_pos", "object_pos")
"""Slices of a state, in metres, that are compared, if they are recorded."""

GOAL = "goal_pos"
"""A slice that nothing moves in an episode, so its spread is the sensor noise."""

MOST = 0.05
"""Metres at which an error is clipped: after a missed contact everything differs, so larger errors tell no more."""

APART = 0.02
"""Largest distance in metres between recorded and simulated start; beyond it, the seed names another scene."""

N_GENERATIONS, N_SETS = 12, 30
"""Generations of the search, and sets of parameters in each."""


@dataclass(frozen=True)
class Fit:
    """Fitted parameters by name, and the mean position errors in metres on the held-out episodes."""

    values: dict[str, float]
    before: float  # with the unchanged simulator
    after: float  # with `values`
    cameras: dict[str, CameraFit] = field(default_factory=dict)  # by name
    unchanged: ClassVar[Mapping[str, float]] = NOTHING  # values of the unchanged simulator

    def options(self, spread: float) -> dict[str, object]:
        """Return the `env.options` with the fitted events; see `events`."""
        return {"events": self.events(spread)}

    def events(self, spread: float) -> dict[str, dict[str, object]]:
        """Return domain randomisation around the fit, drawn at every reset.

        Factors and noise are uniform within ± `spread` (a share of the value), and quantities of a camera within
        ± `spread` units (`fit_camera.UNITS`); delays are fixed.
        """
        events: dict[str, dict[str, object]] = {}
        for name, value in self.values.items():
            low, high = (value, value) if name == "delay" else (value * (1 - spread), value * (1 + spread))
            if (low, high) != (NOTHING[name], NOTHING[name]):
                events[name] = {"func": name, "mode": "reset", "low": round(low, 4), "high": round(high, 4)}
        for camera, found in self.cameras.items():
            for name, value in found.values.items():
                low, high = _around(name, value, spread)
                if (low, high) != (UNCHANGED[name], UNCHANGED[name]):
                    bounds = {"low": round(low, 4), "high": round(high, 4)}
                    events[f"{camera}_{name}"] = {"func": name, "mode": "reset", **bounds, "camera": camera}
        return events


def _around(name: str, value: float, spread: float) -> tuple[float, float]:
    """Return the range of a quantity of a camera: `spread` units to each side."""
    if name not in UNITS:  # the delay
        return value, value
    if name in FACTORS:
        return value * UNITS[name] ** -spread, value * UNITS[name] ** spread
    return value - spread * UNITS[name], value + spread * UNITS[name]


def fit(
    task_name: str,
    episodes: Sequence[Episode],
    n_steps: int = 60,
    seed: int = 0,
    tick: Callable[[float], None] = lambda share: None,
    slices: Mapping[str, tuple[int, int]] = SLICES,
    views: Mapping[str, View] | None = None,
) -> Fit:
    """Fit the parameters of `BOUNDS`, the sensor noise and the cameras to episodes of a Meta-World task.

    Where the position of the object is not in the recorded state, as with a policy that reads images, its mass,
    friction and damping are not fitted, and the noise is an upper bound.

    Args:
        task_name: of Meta-World.
        episodes: at least two; the seed of each names its scene in the simulator.
        n_steps: number of steps to replay of each episode.
        seed: of the search.
        tick: called with the share of the search that is done.
        slices: of the recorded state.
        views: camera -> where it is in the simulator; the images of the others are not used.

    Raises:
        UserError: there are fewer than two episodes, or the simulator starts one at another position.
    """
    if len(episodes) < 2:
        raise UserError(f"{len(episodes)} episodes: a fit needs at least two, one of them to be judged on")
    if not set(POSITIONS) & set(slices):
        raise UserError(f"the recorded state has neither {' nor '.join(POSITIONS)}; record episodes with one of them")
    task = Perturbed(MetaWorldTask(task_name, looked_at=bool(views)), {})
    recorded = [_Recorded.of(episode, n_steps, slices) for episode in episodes]
    noise = _noise(episodes, n_steps, slices)
    # Each seed must name the same scene in the simulator, up to sensor noise, or the replay compares nothing.
    for i, row in enumerate(recorded):
        apart = _distances(row.positions[:1], row.of_frames(task.reset(row.seed)[None])).max()
        if apart > APART + 5 * noise:
            raise UserError(
                f"episode {i} begins {apart:.3f} m from where scene {row.seed} begins in the simulator; "
                f"record episodes whose seeds name scenes of the simulator"
            )
    share = 0.5 if views else 1.0  # of the time
    searched, held_out = recorded[::2], recorded[1::2]
    names = [name for name in BOUNDS if "object_pos" in slices or name in WITHOUT_OBJECT]
    values = _search(names, lambda values: _error(task, values, searched), seed, lambda done: tick(share * done))
    before, after = (_error(task, v, held_out) for v in ({}, values))
    if GOAL not in slices:
        noise = _noise_of_hand(task, values, held_out)
    cameras = {}
    for i, (name, view) in enumerate((views or {}).items()):
        shots = [_shots(task, values, episode, IMAGES + name, n_steps) for episode in episodes]
        height, width, _ = shots[0][0].image.shape
        cameras[name] = fit_camera(
            task.task,
            CameraUse(view, height, width),
            [shot for of_episode in shots[::2] for shot in of_episode],
            [shot for of_episode in shots[1::2] for shot in of_episode],
            lambda done, i=i: tick(share + (1 - share) * (i + done) / len(views or {})),  # type: ignore[misc]
        )
    return Fit(values | {"noise": noise if noise > 1e-5 else 0.0}, before, after, cameras)


def _noise(episodes: Sequence[Episode], n_steps: int, slices: Mapping[str, tuple[int, int]]) -> float:
    """Return the standard deviation of the goal, which does not move; 0 if it is not recorded, see `_noise_of_hand`."""
    if GOAL not in slices:
        return 0.0
    goal = slice(*slices[GOAL])
    return float(np.mean([episode.state[: n_steps + 1, goal].numpy().std(0).mean() for episode in episodes]))


def _noise_of_hand(task: Perturbed, values: dict[str, float], rows: Sequence[_Recorded]) -> float:
    """Return the deviation of the recorded positions from the replayed ones, robust against missed contacts.

    It is an upper bound of the sensor noise: what the fit leaves over is in it.
    """
    apart = [(row.positions[1:] - _replayed(task, values, row))[:, 0].ravel() for row in rows]
    return float(1.4826 * np.median(np.abs(np.concatenate(apart))))  # the factor is that of a normal distribution


def _shots(task: Perturbed, values: dict[str, float], episode: Episode, image: str, n_steps: int) -> list[Shot]:
    """Replay an episode with `values`, and return its images with the scenes."""
    task.startup = dict(values)
    task.reset(episode.seed)
    scenes = [task.task.scene()]
    for action in episode.action[:n_steps].numpy():
        task.step(action)
        scenes.append(task.task.scene())
    task.startup = {}
    every, stacked = episode.every.get(image, 1), np.stack(scenes)
    steps = range(0, len(scenes) - 1, every)
    return [Shot(episode.obs[image][i].numpy(), step, stacked) for i, step in enumerate(steps)]


def _search(
    names: Sequence[str], error: Callable[[dict[str, float]], float], seed: int, tick: Callable[[float], None]
) -> dict[str, float]:
    n_generations = [0]

    def count_generation(_: Array, convergence: float) -> None:
        n_generations[0] += 1
        tick(n_generations[0] / N_GENERATIONS)

    found = differential_evolution(
        lambda x: error(_values(names, x)),
        [BOUNDS[name] if name == "delay" else tuple(np.log(BOUNDS[name])) for name in names],
        integrality=[name == "delay" for name in names],
        x0=[0.0] * len(names),  # start at the unchanged simulator: log factors of 0, delay 0
        popsize=N_SETS // len(names),  # of each parameter
        maxiter=N_GENERATIONS,
        seed=seed,
        polish=False,
        callback=count_generation,
    )
    return _values(names, found.x)


@dataclass(frozen=True)
class _Recorded:
    """The first steps of a recorded episode, in numpy."""

    positions: Array  # (n_steps + 1, number of `parts`, 3), metres
    actions: Array  # (n_steps, action_dim)
    seed: int
    parts: tuple[str, ...]  # of `POSITIONS`, those that were recorded

    @staticmethod
    def of(episode: Episode, n_steps: int, slices: Mapping[str, tuple[int, int]]) -> _Recorded:
        parts = tuple(name for name in POSITIONS if name in slices)
        positions = _parts(episode.state[: n_steps + 1].numpy(), parts, slices)
        return _Recorded(positions, episode.action[:n_steps].numpy(), episode.seed, parts)

    def of_frames(self, frames: Array) -> Array:
        """Return the same positions of frames of the simulator (n, STATE_DIM)."""
        return _parts(frames, self.parts, SLICES)


def _parts(frames: Array, parts: Sequence[str], slices: Mapping[str, tuple[int, int]]) -> Array:
    """Return some positions of frames (n, state_dim). Shape: (n, number of parts, 3)."""
    return np.stack([frames[:, slice(*slices[name])] for name in parts], axis=1)


def _values(names: Sequence[str], x: Array) -> dict[str, float]:
    """Turn a point of the search into parameters by name."""
    return {
        name: float(round(value)) if name == "delay" else float(np.exp(value))
        for name, value in zip(names, x, strict=True)
    }


def _error(task: Perturbed, values: dict[str, float], rows: Sequence[_Recorded]) -> float:
    """Return the mean position error in metres when the recorded actions are replayed with `values`."""
    apart = [_distances(row.positions[1:], _replayed(task, values, row)) for row in rows]
    return float(np.mean([of_row.clip(max=MOST).mean() for of_row in apart]))  # `MOST` bounds the effect of outliers


def _replayed(task: Perturbed, values: dict[str, float], row: _Recorded) -> Array:
    """Return the positions after each step when the recorded actions are replayed. Shape: (n_steps, parts, 3)."""
    task.startup = dict(values)  # the next reset applies them
    task.reset(row.seed)
    frames = np.stack([task.step(action)[0] for action in row.actions])
    task.startup = {}
    return row.of_frames(frames)


def _distances(one: Array, other: Array) -> Array:
    """Return the distances in metres between positions (n, number of parts, 3). Shape: (n, number of parts)."""
    return np.asarray(np.linalg.norm(one - other, axis=2))
