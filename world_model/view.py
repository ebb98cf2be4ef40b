"""Position of a camera. A checkpoint stores it, so that evaluation renders the same view as training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class View:
    """One camera of a simulator. The default free camera shows hand, object and goal of every Meta-World task."""

    camera: str = ""  # name of a camera of the simulator, such as gripperPOV; empty: a free camera at the values below
    lookat: tuple[float, float, float] = (0.0, 0.7, 0.1)  # point in the centre of the image, metres
    distance: float = 0.85  # metres
    azimuth: float = 150.0  # degrees
    elevation: float = -35.0  # degrees
    shows_goal: bool = True  # render the simulator's goal marker, which a real table does not have
