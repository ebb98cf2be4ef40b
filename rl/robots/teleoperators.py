"""Devices with which a person drives a robot, with the members of LeRobot's `Teleoperator`, found by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rewards.errors import UserError, blamed, did_you_mean, file_of
from rewards.plugins import check_params, known, load
from rl.robots.api import import_modules, with_task

BUILTIN = {"expert": "rl.envs.metaworld.expert_person:ExpertPerson"}
"""Built-in devices: name -> module:class, imported only when one is used."""

MEMBERS = ("get_action", "connect", "disconnect")
"""Members that a class must have to be a `Teleoperator`."""


class Teleoperator(Protocol):
    """The members of LeRobot's `Teleoperator` that this project uses.

    Optional members:

    - `action_features`: name of each number of an action -> `float`, or as LeRobot's keyboard describes them, `names`.
    - `get_teleop_events()`: a dict whose `is_intervention` is true while the person wants to drive; `success` and
      `terminate_episode` end the episode, solved or failed; with `rerecord_episode` it is not recorded and begins
      again. Without this method a typed t takes over, and gives back.
    - `begin()` and `see(observation)`: called at the start of an episode and with each observation of the robot, for a
      person who is a program.
    """

    def connect(self) -> None:
        """Connect to the device."""

    def get_action(self) -> dict[str, Any]:
        """Return the action that the person wants now: the robot's name of each action -> number."""

    def disconnect(self) -> None:
        """Disconnect."""


def make_teleoperator(name: str, params: Mapping[str, Any], task: str = "") -> Teleoperator:
    """Return the device that a config names.

    Args:
        name: `expert`, `path.py:Class`, `module:Class`, an entry point of the group `wamtune.teleoperators`, or the
            name of a teleoperator of LeRobot.
        params: arguments of its constructor.
        task: of the session; it is passed to a constructor with a parameter `task`.

    Raises:
        UserError: there is no such device, its parameters do not fit, or it lacks a member.
    """
    if ":" not in name and name not in known("teleoperator", BUILTIN):
        return _from_lerobot(name, params)
    who = f"person={name}"
    maker = load("teleoperator", name, BUILTIN, who, key="person")
    params = with_task(maker, params, task)
    check_params(who, name, maker, params, n_given=0)
    with blamed(who, file_of(maker)):
        made: Teleoperator = maker(**params)
    if missing := [member for member in MEMBERS if not hasattr(made, member)]:
        raise UserError(
            f"{who}: {type(made).__name__} has no {', '.join(missing)}; expected the members of LeRobot's "
            f"Teleoperator: {', '.join(MEMBERS)}"
        )
    return made


@dataclass(frozen=True)
class Channel:
    """A number of the device that becomes an action of the robot: scale * number + offset."""

    name: str  # of the device
    scale: float = 1.0
    offset: float = 0.0

    def read(self, given: Mapping[str, Any]) -> Any:
        """Return the action from what the device gives; what is no number is returned as it is, for the guard."""
        value = given.get(self.name)
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            return value
        return self.scale * value + self.offset


def channel_of(action: str, written: Mapping[str, Any]) -> Channel:
    """Return the number of the device for an action of the robot, as `person_names` says; by default the same name.

    Raises:
        UserError: an entry is neither a name nor name, scale and offset.
    """
    entry = written.get(action, action)
    if isinstance(entry, str):
        return Channel(entry)
    try:
        channel = Channel(**entry)
        channel = Channel(str(channel.name), float(channel.scale), float(channel.offset))
        assert np.isfinite([channel.scale, channel.offset]).all()
    except (TypeError, ValueError, AssertionError):
        raise UserError(
            f"person_names.{action}={entry!r:.80}: expected the device's name of that number, or "
            "{name: NAME, scale: 1.0, offset: 0.0}"
        ) from None
    return channel


def check_names(device: Teleoperator, names: Mapping[str, str], who: str) -> None:
    """Check that a device gives every action of a robot, if it says which it gives.

    Args:
        device: connected or not.
        names: the robot's name of each action -> the device's.
        who: begins the message.

    Raises:
        UserError: one is missing.
    """
    features = getattr(device, "action_features", None)
    if not isinstance(features, Mapping):
        return
    given = features["names"] if "names" in features and "shape" in features else features
    for name, theirs in names.items():
        if theirs not in given:
            raise UserError(
                f"{who}: the device gives {', '.join(map(str, given))}, and the robot takes {name!r}; name the number "
                f"of the device with 'person_names={{{name}: NAME}}'"
            )


def _from_lerobot(name: str, params: Mapping[str, Any]) -> Teleoperator:
    try:
        devices = importlib.import_module("lerobot.teleoperators")
    except ImportError as error:
        raise UserError(
            f"person={name}: expected {', '.join(BUILTIN)}, or a teleoperator of LeRobot (pip install lerobot); for "
            "one of your own write person=path.py:Class or person=module:Class"
        ) from error
    import_modules(devices)  # LeRobot registers a device when its module is imported
    choices = devices.TeleoperatorConfig.get_known_choices()
    if name not in choices:
        hint = did_you_mean(name, [*choices])
        raise UserError(f"person={name}: unknown to LeRobot, which knows {', '.join(sorted(choices))}{hint}")
    try:
        config = devices.TeleoperatorConfig.get_choice_class(name)(**params)
        made: Teleoperator = devices.make_teleoperator_from_config(config)
        return made
    except (TypeError, ImportError) as error:
        raise UserError(f"person={name}: {error}") from error
