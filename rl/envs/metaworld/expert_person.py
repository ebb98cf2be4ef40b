"""A scripted person for the simulated arm: Meta-World's expert, who takes over when the policy takes too long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rl.envs.metaworld.tasks import ACTION_LOW, SLICES, scripted_expert

Array = np.ndarray


class ExpertPerson:
    """A device with the members of LeRobot's `Teleoperator`, on which Meta-World's scripted expert drives.

    Args:
        task: of Meta-World.
        after: observations without success after which it takes over, until the end of the episode.
    """

    def __init__(self, task: str, after: int = 75) -> None:
        self._expert, self._after = scripted_expert(task), after
        self._names = [f"{name}.{i}" for name, (first, last) in SLICES.items() for i in range(last - first)]
        self.begin()

    def begin(self) -> None:
        """Start an episode."""
        self._n_seen = 0
        self._frame = self._before = np.zeros(0)

    def connect(self) -> None:
        """Do nothing: there is no device."""

    def see(self, observation: Mapping[str, Any]) -> None:
        """Note an observation of the arm."""
        frame = np.array([observation[name] for name in self._names])
        self._n_seen += 1
        self._before, self._frame = (frame if self._n_seen == 1 else self._frame), frame

    def get_teleop_events(self) -> dict[str, bool]:
        """Return whether it drives."""
        return {"is_intervention": self._n_seen > self._after}

    def get_action(self) -> dict[str, float]:
        """Return the expert's action."""
        action = self._expert(self._frame, self._before)
        return {f"action.{i}": float(action[i]) for i in range(len(ACTION_LOW))}

    def disconnect(self) -> None:
        """Do nothing."""
