"""Where a camera stands: numbers that a checkpoint keeps, so that it is shown the world as it learned to see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class View:
    """One camera of a simulator. The free one sees hand, object and goal of every Meta-World task."""

    camera: str = ""  # one of the simulator's by name, such as gripperPOV; empty: the free one that the rest describes
    lookat: tuple[float, float, float] = (0.0, 0.7, 0.1)  # metres
    distance: float = 0.85  # metres
    azimuth: float = 150.0  # degrees
    elevation: float = -35.0
    shows_goal: bool = True  # a marker that no real table has
