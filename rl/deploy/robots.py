"""Robots: anything with the members of LeRobot's `Robot`, found by name, and what its numbers mean to a policy."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rewards.errors import UserError
from world_model.spec import Spec

Array = np.ndarray


class Robot(Protocol):
    """The members of LeRobot's `Robot` that are used. An observation and an action are dicts of numbers by name.

    A robot may also have `control_hz`, which is then compared with that of the policy, and `reset()`, which makes it
    ready for an episode. An observation may hold `timestamp`, seconds of `time.monotonic` at which it was taken, and
    `success`.
    """

    @property
    def observation_features(self) -> dict[str, Any]:
        """Name -> float for a number, or the shape of an image."""

    @property
    def action_features(self) -> dict[str, Any]:
        """Name -> float."""

    @property
    def is_connected(self) -> bool:
        """Whether it can be talked to."""

    def connect(self) -> None:
        """Begin to talk."""

    def calibrate(self) -> None:
        """Find its zero positions."""

    def configure(self) -> None:
        """Set its gains and modes."""

    def get_observation(self) -> dict[str, Any]:
        """Return the newest observation."""

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Command it; returns what was really sent."""

    def disconnect(self) -> None:
        """Let go of it, standing still."""


@dataclass(frozen=True)
class RobotMap:
    """Which numbers of a robot are those of the policy, in order, and how they are scaled."""

    state: tuple[str, ...] = ()  # a name for each entry of the state; empty: those of the spec, see `names_of`
    action: tuple[str, ...] = ()  # a name for each entry of an action; empty: action.0, action.1, ...
    scale: dict[str, float] = field(default_factory=dict)  # by the robot's name: ours = scale * theirs + offset
    offset: dict[str, float] = field(default_factory=dict)


def names_of(spec: Spec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names that state and action have where nothing is mapped: slices with the number in them."""
    names = [f"state.{i}" for i in range(spec.state_dim)]
    for name, part in spec.slices.items():
        for i in range(part.start, part.stop):
            names[i] = f"{name}.{i - part.start}"
    return tuple(names), tuple(f"action.{i}" for i in range(spec.action_dim))


class Interface:
    """A robot as a policy sees it: frames and actions in the order, units and signs that it was trained on.

    Args:
        robot: connected.
        spec: of the policy.
        mapping: names, scales and offsets.
        hz: the rate that the loop will run at; None: that of the policy.

    Raises:
        UserError: a table of everything in which robot and policy differ.
    """

    def __init__(self, robot: Robot, spec: Spec, mapping: RobotMap, hz: float | None = None) -> None:
        self.robot, self.spec = robot, spec
        state, action = names_of(spec)
        self.state_names, self.action_names = mapping.state or state, mapping.action or action
        self.differences = self._compare(mapping, hz or spec.control_hz)
        if self.differences:
            rows = "\n".join(f"  {name:<24} {policy:<24} {robot_has}" for name, policy, robot_has in self.differences)
            head = f"  {'':<24} {'the policy expects':<24} the robot offers"
            raise UserError(f"the robot is not what the policy expects; nothing was sent\n{head}\n{rows}")
        self._scale, self._offset = (
            {name: values.get(name, default) for name in (*self.state_names, *self.action_names)}
            for values, default in ((mapping.scale, 1.0), (mapping.offset, 0.0))
        )

    def observe(self) -> tuple[list[Any], float, dict[str, Any]]:
        """Return the frame (state_dim,) as it is, unchecked, the time it was taken, and the whole observation."""
        observation = self.robot.get_observation()
        frame = [self._ours(name, observation.get(name)) for name in self.state_names]
        return frame, observation.get("timestamp", time.monotonic()), observation

    def send(self, command: Array) -> None:
        """Send a command (action_dim,) under the names, scales and offsets of the robot."""
        values = zip(self.action_names, command.tolist(), strict=True)
        self.robot.send_action({n: (v - self._offset[n]) / self._scale[n] for n, v in values})

    def _ours(self, name: str, value: Any) -> Any:
        try:
            return self._scale[name] * float(value) + self._offset[name]
        except (TypeError, ValueError):
            return value  # the guard says what is wrong with it

    def _compare(self, mapping: RobotMap, hz: float) -> list[tuple[str, str, str]]:
        found, robot = [], self.robot
        for what, names, size, features in (
            ("state", self.state_names, self.spec.state_dim, robot.observation_features),
            ("action", self.action_names, self.spec.action_dim, robot.action_features),
        ):
            if len(names) != size:
                found.append((f"{what}, size", str(size), f"{len(names)} names are mapped"))
            if len(set(names)) < len(names):
                found.append((f"{what}, names", "each once", f"{_twice(names)} twice"))
            for name in names:
                if features.get(name) is not float:
                    found.append((name, "a number", _offer(name, features)))
        for name in sorted(set(robot.action_features) - set(self.action_names)):
            found.append((name, "nothing: it commands no such", "an action that has to be sent"))
        theirs = getattr(robot, "control_hz", hz)
        if not np.isclose(theirs, hz):
            found.append(("rate", f"{hz:g} Hz", f"{theirs:g} Hz"))
        for name in sorted({*mapping.scale, *mapping.offset} - {*self.state_names, *self.action_names}):
            found.append((name, "no such name", "is scaled or offset in the mapping"))
        if zero := [name for name, value in mapping.scale.items() if not np.isfinite(value) or value == 0]:
            found.append((zero[0], "a scale that can be undone", str(mapping.scale[zero[0]])))
        return found


def make_robot(name: str, params: Mapping[str, Any]) -> Robot:
    """Return the robot of a name: `fake`, `sim`, or that of a LeRobot plug-in.

    Raises:
        UserError: there is none, or its parameters do not fit.
    """
    ours = {"fake": ("rl.deploy.fake", "FakeRobot"), "sim": ("rl.deploy.sim_robot", "SimRobot")}
    try:
        if name in ours:
            module, attribute = ours[name]
            robot: Robot = getattr(importlib.import_module(module), attribute)(**params)
            return robot
        return _from_lerobot(name, params)
    except TypeError as error:
        raise UserError(f"robot={name}: its parameters {dict(params)} do not fit: {error}") from error


def _from_lerobot(name: str, params: Mapping[str, Any]) -> Robot:
    try:
        robots = importlib.import_module("lerobot.robots")
    except ImportError as error:
        raise UserError(f"robot={name}: expected fake, sim, or a robot of LeRobot (pip install lerobot)") from error
    try:
        config = robots.RobotConfig.get_choice_class(name)(**params)
    except KeyError as error:
        known = ", ".join(sorted(robots.RobotConfig.get_known_choices()))
        raise UserError(f"robot={name}: unknown to LeRobot, which knows {known}") from error
    robot: Robot = robots.make_robot_from_config(config)
    return robot


def _twice(names: Sequence[str]) -> str:
    return next(name for name in names if list(names).count(name) > 1)


def _offer(name: str, features: Mapping[str, Any]) -> str:
    if name not in features:
        return f"no such; it has {', '.join(features)}"[:80]
    return f"an image {features[name]}"
