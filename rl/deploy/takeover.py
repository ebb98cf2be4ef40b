"""A person takes over from the policy, and gives back: who acts in each step, and a blend of both after that.

The person's actions pass the same guard as those of the policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rl.robots.errors import Stop
from rl.robots.teleoperators import Teleoperator
from world_model.data.episodes import BLEND, POLICY

Array = np.ndarray

BLEND_S = 0.5
"""Seconds over which the commands go from the person's to those of the policy, after the person gave back."""

DRIVES, SUCCESS, ENDS, DISCARDS = "is_intervention", "success", "terminate_episode", "rerecord_episode"
"""Names of events in LeRobot: the person wants to drive; the task is solved; the episode ends without success; the
episode ends and is not recorded (LeRobot's devices then say that it ends, too)."""


class Takeover:
    """Asks a person's device, step by step, who acts.

    Args:
        device: connected.
        toggled: whether a typed key says that the person drives; asked if the device does not tell.
        convert: turns the device's action into one of the policy (action_dim,), unchecked.
        hz: commands per second.
    """

    def __init__(
        self,
        device: Teleoperator,
        toggled: Callable[[], bool],
        convert: Callable[[Mapping[str, Any]], list[Any]],
        hz: float,
    ) -> None:
        self._device, self._toggled, self._convert = device, toggled, convert
        self._n_blend = math.ceil(BLEND_S * hz)
        self._said: set[str] = set()  # events that the device gave when it was last asked
        self.begin()

    def begin(self) -> None:
        """Start an episode: the policy acts."""
        if hasattr(self._device, "begin"):
            self._device.begin()
        self._last: Any = None  # the person's last command that was sent, while it is blended
        self._left = 0  # commands that are still blended
        self._held = self._said  # events that have lasted since the episode before; they are ignored
        # The device says that the task is solved, that it will not be, or that the episode is not to be recorded.
        self.success = self.ends = self.discards = False

    def wanted(self, observation: Mapping[str, Any]) -> list[Any] | None:
        """Return the action that the person wants (action_dim,), unchecked; None: the policy acts.

        If the device says how the episode ends, `success`, `ends` or `discards` is true from now on.

        Raises:
            Stop: the device does not answer with a dict.
        """
        if hasattr(self._device, "see"):
            self._device.see(observation)
        if not self._is_wanted():
            return None
        given = self._device.get_action()
        if not isinstance(given, Mapping):
            raise Stop(f"the person's device gives {repr(given)[:60]}, expected an action by name")
        return self._convert(given)

    def drove(self, command: Array) -> None:
        """Note the command (action_dim,) that was sent for the person."""
        self._last, self._left = command, self._n_blend

    def blended(self, action: Array | None) -> tuple[Array | None, int]:
        """Return the action in a step in which the policy acts, and who acts.

        `action` (action_dim,) is the policy's; None: it has no plan yet, and the robot holds.
        """
        if not self._left:
            return action, POLICY
        if action is None:
            return None, BLEND
        share = self._left / (self._n_blend + 1)  # of the person, decreasing to 0
        self._left -= 1
        return share * self._last + (1 - share) * action, BLEND

    def _is_wanted(self) -> bool:
        tell = getattr(self._device, "get_teleop_events", None)
        if tell is None:
            return self._toggled()
        events = tell()
        if not isinstance(events, Mapping):
            raise Stop(f"the events of the person's device are {repr(events)[:60]}, expected a dict")
        # LeRobot's keys are members of an enum, whose values are these names.
        self._said = {str(getattr(key, "value", key)) for key, value in events.items() if bool(value)}
        self._held = self._held & self._said
        new = self._said - self._held
        self.success, self.ends = self.success or SUCCESS in new, self.ends or ENDS in new
        self.discards = self.discards or DISCARDS in new
        return DRIVES in self._said
