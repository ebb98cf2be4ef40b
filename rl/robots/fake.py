"""A fake robot for tests and dry runs; it stores the commands it receives and can return faulty observations."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rl.robots.api import NumberRobot, names_of
from world_model.spec import IMAGES, Spec


class FakeRobot(NumberRobot):
    """A robot whose state follows its commands: action `i` moves entry `i` of the state.

    Args:
        spec: gives the names of state and action, and the sizes of images, which are black but for one pixel that
            changes with each; None: use `state` and `action`.
        state: names of its entries.
        action: names of its entries.
        gain: how far an action of 1 moves the state.
        misbehave: changes an observation before it is returned.
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
        features = {} if spec is None else {name: spec.features[name] for name in spec.images}
        self.images = {name.removeprefix(IMAGES): np.zeros(of.shape, np.uint8) for name, of in features.items()}
        self.values = dict.fromkeys(self.state, 0.0)
        self.sent: list[dict[str, float]] = []
        self.n_observations = 0
        self.is_connected = False

    @property
    def observation_features(self) -> dict[str, Any]:
        """One number per entry of the state, and the shape of each image."""
        return super().observation_features | {name: image.shape for name, image in self.images.items()}

    def connect(self) -> None:
        """Connect."""
        self.is_connected = True

    def get_observation(self) -> dict[str, Any]:
        """Return the current state, images and time, changed by `misbehave`."""
        self.n_observations += 1
        images = {name: image.copy() for name, image in self.images.items()}
        for image in images.values():
            image[0, 0] = self.n_observations % 256
        return self.misbehave({**self.values, **images, "timestamp": time.monotonic()})

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Store the action and move the state by it; return it unchanged."""
        self.sent.append(dict(action))
        for name, moved in zip(self.state, action.values(), strict=False):
            self.values[name] += self.gain * moved
        return action

    def disconnect(self) -> None:
        """Disconnect."""
        self.is_connected = False
