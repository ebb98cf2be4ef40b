"""Scale images down to the size that a model reads. This module imports no torch."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def shrunk(image: Array, size: int) -> Array:
    """Crop the middle square and average it over size x size areas. Shape: (size, size, 3) uint8."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    # If `size` does not divide `side`, the sides of the areas differ by one pixel.
    edges = np.arange(size + 1) * side // size
    sums = image[top : top + side, left : left + side]
    for axis in (0, 1):
        sums = np.add.reduceat(sums, edges[:-1], axis, dtype=np.uint32)
    areas = np.outer(np.diff(edges), np.diff(edges))
    return (sums / areas[..., None]).round().astype(np.uint8)
