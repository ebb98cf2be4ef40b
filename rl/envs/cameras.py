"""Cameras of simulated environments. This module runs in worker processes and imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from world_model.view import View


@dataclass(frozen=True)
class CameraUse:
    """How a camera is used: from where, in what size, and how often."""

    view: View
    height: int  # pixels
    width: int  # pixels
    every: int = 1  # steps from one image to the next
    light: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors of the red, green and blue of all lights


Cameras: TypeAlias = Mapping[str, CameraUse]
"""Image feature, such as `images.front` -> camera."""

Images: TypeAlias = dict[str, np.ndarray]
"""Image feature -> (height, width, 3) uint8."""
