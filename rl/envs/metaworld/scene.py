"""Where everything in a simulation is, without its physics: enough to draw it later, or in another process."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray

PARTS = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat"),
    *("cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
)
"""Arrays of `MjData` that say where everything is; drawing needs no others."""


class Scene:
    """Where everything in a simulation is, as one array, so that another process can draw it."""

    def __init__(self, data: Any) -> None:
        self._parts = [getattr(data, name) for name in PARTS]

    @property
    def size(self) -> int:
        """Count of its numbers."""
        return sum(part.size for part in self._parts)

    def read(self) -> Array:
        """Return the numbers of the simulation."""
        return np.concatenate([part.ravel() for part in self._parts])

    def write(self, values: Array) -> None:
        """Put numbers into the simulation, without a step of physics."""
        first = 0
        for part in self._parts:
            part[...] = values[first : first + part.size].reshape(part.shape)
            first += part.size
