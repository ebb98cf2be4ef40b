"""A robot that is none: it remembers what it was sent, and can be told to misbehave. For tests and dry runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from rl.robots.api import NumberRobot, names_of
from world_model.spec import Spec


class FakeRobot(NumberRobot):
    """Its state follows the commands: each entry of the state is moved by the action of the same place, if any.

    Args:
        spec: whose names it has; None: those given.
        state, action: names.
        gain: how far an action of 1 moves the state.
        misbehave: changes an observation before it is handed out.
    """

    def __init__(
        self,
        spec: Spec | None = None,
        state: Sequence[str] = (),
        action: Sequence[str] = (),
        gain: float = 0.01,
        misbehave: Callable[[dict[str, Any]], dict[str, Any]] = lambda observation: observation,
    ) -> None:
        names = names_of(spec) if spec is not None else (tuple(state), tuple(action))
        self.state, self.action, self.gain, self.misbehave = *names, gain, misbehave
        self.values = dict.fromkeys(self.state, 0.0)
        self.sent: list[dict[str, float]] = []
        self.is_connected = False

    def connect(self) -> None:
        """Be there."""
        self.is_connected = True

    def get_observation(self) -> dict[str, Any]:
        """Return the state of now."""
        return self.misbehave({**self.values, "timestamp": time.monotonic()})

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Move."""
        self.sent.append(dict(action))
        for name, moved in zip(self.state, action.values(), strict=False):
            self.values[name] += self.gain * moved
        return action

    def disconnect(self) -> None:
        """Be gone."""
        self.is_connected = False
