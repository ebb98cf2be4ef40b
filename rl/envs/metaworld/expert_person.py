"""A scripted person for the simulated arm: Meta-World's expert, who takes over when the policy errs.

The policy errs when the way that is left, from the hand to the object and from the object to the goal, gets longer, or
no shorter for a while; or when it takes too long.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rl.envs.metaworld.tasks import ACTION_LOW, SLICES, scripted_expert

Array = np.ndarray


SHORTER = 0.01
"""Metres by which the way must get shorter to count as an advance."""


def way_left(frame: Array) -> float:
    """Return the metres from the hand to the object plus those from the object to the goal, of a frame (STATE_DIM,)."""
    hand, thing, goal = (frame[slice(*SLICES[name])] for name in ("hand_pos", "object_pos", "goal_pos"))
    return float(np.linalg.norm(hand - thing) + np.linalg.norm(thing - goal))


class ExpertPerson:
    """A device with the members of LeRobot's `Teleoperator`, on which Meta-World's scripted expert drives.

    Args:
        task: of Meta-World.
        after: observations without success after which it takes over, until the end of the episode.
        patience: observations for which the way may get no shorter.
        worse: metres by which the way may get longer than it was.
    """

    def __init__(self, task: str, after: int = 75, patience: int = 40, worse: float = 0.1) -> None:
        self._expert, self._after, self._patience, self._worse = scripted_expert(task), after, patience, worse
        self._names = [f"{name}.{i}" for name, (first, last) in SLICES.items() for i in range(last - first)]
        self.begin()

    def begin(self) -> None:
        """Start an episode."""
        self._n_seen = self._n_stalled = 0
        self._shortest, self._drives = np.inf, False
        self._frame = self._before = np.zeros(0)

    def connect(self) -> None:
        """Do nothing: there is no device."""

    def see(self, observation: Mapping[str, Any]) -> None:
        """Note an observation of the arm."""
        frame = np.array([observation[name] for name in self._names])
        self._n_seen += 1
        self._before, self._frame = (frame if self._n_seen == 1 else self._frame), frame
        way = way_left(frame)
        is_shorter = way < self._shortest - SHORTER
        self._n_stalled = 0 if is_shorter else self._n_stalled + 1
        self._shortest = way if is_shorter else self._shortest
        errs = self._n_stalled > self._patience or way > self._shortest + self._worse
        self._drives = self._drives or errs or self._n_seen > self._after

    def get_teleop_events(self) -> dict[str, bool]:
        """Return whether it drives: from the first error until the end of the episode."""
        return {"is_intervention": self._drives}

    def get_action(self) -> dict[str, float]:
        """Return the expert's action."""
        action = self._expert(self._frame, self._before)
        return {f"action.{i}": float(action[i]) for i in range(len(ACTION_LOW))}

    def disconnect(self) -> None:
        """Do nothing."""
