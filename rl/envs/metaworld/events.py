"""Domain randomisation with Isaac Lab's terms: events change the simulator at startup, at resets or at intervals.

An event draws one number and applies it. The number depends only on the seed of the episode (at startup: only on the
number of the environment). So an episode can be repeated exactly, and a run can be resumed exactly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rewards.checks import require
from rewards.errors import UserError
from rl.envs.cameras import Cameras, Images
from rl.envs.metaworld.camera_changes import ADDED, DELAY, changed, key_of, values_of

Array = np.ndarray

Quantity = Literal[
    "mass",
    "friction",
    "damping",
    "gain",
    "delay",
    "noise",
    "azimuth",
    "elevation",
    "lookat_x",
    "lookat_y",
    "distance",
    "light",
    "red",
    "blue",
    "image_delay",
]
"""What an event can change: the keys of `NOTHING`, then those of `rl.envs.metaworld.camera_changes.UNCHANGED`."""

NOTHING: dict[str, float] = {"mass": 1.0, "friction": 1.0, "damping": 1.0, "gain": 1.0, "delay": 0.0, "noise": 0.0}
"""Values that change nothing.

`mass` (of free bodies), `friction`, `damping` (of joints) and `gain` (of commanded motion) are factors. `delay` is the
number of steps until a command takes effect. `noise` is the standard deviation of observation noise, in units of the
state.
"""


@dataclass(frozen=True)
class Event:
    """One event, with Isaac Lab's names; it draws uniformly from `low` to `high`."""

    func: Quantity = "mass"  # what is changed: factors of the physics, steps of delay, or the cameras
    mode: Literal["startup", "reset", "interval"] = "reset"  # when a new number is drawn
    low: float = 1.0  # smallest value: a factor, steps, degrees, metres or units of the state
    high: float = 1.0  # largest value
    every: int = 50  # steps between draws, in mode `interval`
    camera: str = ""  # the one whose position, light or delay changes, such as front; empty: all

    @property
    def key(self) -> str:
        """Name of what it changes, in `Perturbed.now`."""
        return key_of(self.func, self.camera)

    def check(self) -> None:
        """Refuse an invalid range or interval, and a camera of an event that changes none."""
        if self.camera and self.func in NOTHING:
            raise UserError(f"camera={self.camera!r:.80}: func={self.func} changes no camera; leave it out")
        least = -1e3 if self.func in ADDED else 0.0 if self.func in ("delay", "noise", DELAY) else 1e-3
        if not least <= self.low <= self.high <= 1e3:
            raise UserError(f"low={self.low}, high={self.high}: expected {least:g} <= low <= high <= 1000")
        require(self, ("every",), lambda value: value >= 1, "at least 1 step")

    def draw(self, *seed: int) -> float:
        """Draw the value for `seed`; a delay is rounded to whole steps."""
        value = float(np.random.default_rng(seed).uniform(self.low, self.high))
        return float(round(value)) if self.func in ("delay", DELAY) else value


class Perturbed:
    """A Meta-World task with events that change its physics, commands and sensors.

    Args:
        task: the unchanged task.
        events: by name; if two events change the same quantity at the same time, the last one counts.
        number: of the environment, the seed of startup events.
    """

    def __init__(self, task: Any, events: Mapping[str, Event], number: int = 0) -> None:
        self.task, self.events = task, list(enumerate(events.values()))
        task.reset(0)  # a task caches parts of its first reset, so run that one before any change
        model = task.model
        self._model, self._base = model, {n: getattr(model, n).copy() for n in _ARRAYS}
        # Bodies that hang on a free joint (type 0): the objects, not the arm.
        free = {int(model.jnt_bodyid[j]) for j in range(model.njnt) if model.jnt_type[j] == 0}
        self._free = np.array([int(root) in free for root in model.body_rootid])
        self.startup: dict[str, float] = {e.key: e.draw(number, i) for i, e in self.events if e.mode == "startup"}
        self.now = {**NOTHING, **self.startup}
        # What the cameras show in each of the newest steps, only if an event delays images.
        most = max((int(e.high) for _, e in self.events if e.func == DELAY), default=0)
        self._scenes: deque[Array] = deque(maxlen=most + 1 if most else 0)
        self._seed = self._n_steps = 0
        self._commands: deque[Array] = deque()

    def reset(self, seed: int) -> Array:
        """Begin the episode of `seed`; return its first frame (state_dim,)."""
        self._seed, self._n_steps = seed, 0
        drawn: dict[str, float] = {e.key: e.draw(seed, i) for i, e in self.events if e.mode != "startup"}
        self.set({**NOTHING, **self.startup, **drawn})
        self._random = np.random.default_rng((seed, len(self.events)))
        self._commands.clear()
        frame = self.task.reset(seed)
        self._scenes.clear()
        self._keep_scene()
        return self._with_noise(frame)

    def step(self, action: Array) -> tuple[Array, float, bool, bool, bool]:
        """Execute `action` as changed by the events; returns as `rl.envs.workers.Task.step`."""
        self._n_steps += 1
        for i, event in self.events:
            if event.mode == "interval" and self._n_steps % event.every == 0:
                self.set({**self.now, event.key: event.draw(self._seed, i, self._n_steps)})
        frame, reward, success, terminated, truncated = self.task.step(self._command(action))
        self._keep_scene()
        return self._with_noise(frame), reward, success, terminated, truncated

    def set(self, values: Mapping[str, float]) -> None:
        """Apply a value for each key of `NOTHING`."""
        self.now = dict(values)
        # Scale from the original arrays, so that repeated changes do not add up.
        model, base = self._model, self._base
        for name in ("body_mass", "body_inertia"):
            getattr(model, name)[self._free] = self.now["mass"] * base[name][self._free]
        model.geom_friction[:] = self.now["friction"] * base["geom_friction"]
        model.dof_damping[:] = self.now["damping"] * base["dof_damping"]

    def images(self, cameras: Cameras) -> Images:
        """Render the task, as `rl.envs.workers.Task.images`, with cameras as the events change them."""
        images: Images = {}
        for name, use in cameras.items():
            values = values_of(name.removeprefix(IMAGES), self.now)
            # Earlier than the first frame, the arm stood still.
            scene = self._scenes[max(-1 - int(values[DELAY]), -len(self._scenes))] if values[DELAY] else None
            images |= self.task.images({name: changed(use, values)}, scene)
        return images

    def close(self) -> None:
        """Close the task."""
        self.task.close()

    def _keep_scene(self) -> None:
        if self._scenes.maxlen:
            self._scenes.append(self.task.scene())

    def _command(self, action: Array) -> Array:
        """Return the command that takes effect now: the one from `delay` steps ago (zeros at first), times `gain`."""
        self._commands.append(action)
        delay = int(self.now["delay"])
        while len(self._commands) > delay + 1:
            self._commands.popleft()
        command = self._commands[0].copy() if len(self._commands) > delay else np.zeros_like(action)
        command[:3] = np.clip(self.now["gain"] * command[:3], -1.0, 1.0)  # motion only, not the gripper
        return command

    def _with_noise(self, frame: Array) -> Array:
        if self.now["noise"] == 0.0:
            return frame
        return (frame + self.now["noise"] * self._random.standard_normal(len(frame))).astype(np.float32)


IMAGES = "images."
"""Begins the name of an image feature; `world_model.spec` has the same word, and imports torch."""

_ARRAYS = ("body_mass", "body_inertia", "geom_friction", "dof_damping")
"""Arrays of a MuJoCo model that events scale."""
