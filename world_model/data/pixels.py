"""Scale images down to the size that a model reads. This module imports no torch."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def shrunk(image: Array, height: int, width: int) -> Array:
    """Crop the largest middle part of the shape of height x width and average it over so many areas.

    The image is at least as large as the result. Shape: (height, width, 3) uint8.
    """
    h, w = image.shape[:2]
    rows, columns = min(h, w * height // width), min(w, h * width // height)
    top, left = (h - rows) // 2, (w - columns) // 2
    # If `height` does not divide `rows`, the sides of the areas differ by one pixel.
    edges = [np.arange(n + 1) * side // n for n, side in ((height, rows), (width, columns))]
    sums = image[top : top + rows, left : left + columns]
    for axis in (0, 1):
        sums = np.add.reduceat(sums, edges[axis][:-1], axis, dtype=np.uint32)
    areas = np.outer(*(np.diff(of) for of in edges))
    return (sums / areas[..., None]).round().astype(np.uint8)
