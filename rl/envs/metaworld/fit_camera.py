"""Fit a camera of the simulator to recorded images: where it stands, the light, and how old its images are.

Each recorded image is compared with a rendered one of the same scene. Position and light are searched by least squares
(SciPy's `least_squares`, robust against an object that is not where the replay has it); the derivatives are differences
of rendered images. The search begins with blurred images, so that it finds its way from further off. The age of the
images is tried step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import least_squares

from rl.envs.cameras import CameraUse
from rl.envs.metaworld.camera_changes import ADDED, DELAY, UNCHANGED, changed
from rl.envs.metaworld.tasks import MetaWorldTask

Array = np.ndarray

UNITS = {
    "azimuth": 5.0,
    "elevation": 5.0,
    "lookat_x": 0.03,
    "lookat_y": 0.03,
    "distance": 1.1,
    "light": 1.2,
    "red": 1.2,
    "blue": 1.2,
}
"""A step of the search in each quantity: degrees and metres, or a factor. All change an image about as much."""

MOST_UNITS = 6.0
"""Range of the search, in units to each side."""

LEVELS = ((8, 0.4), (4, 0.2), (2, 0.1))
"""Pixels along a side that are averaged to one, and units by which a quantity is changed to see what it does."""

N_EVALUATIONS = 6
"""Positions that are tried on each level, at most."""

N_SEARCHED, N_JUDGED = 8, 24
"""Recorded images for position and light, and for the delay and the final error."""

MOST_DELAY = 16
"""Largest delay that is tried, in steps."""

OUTLIER = 0.1
"""Difference of two pixels, as a share of the full range, beyond which it counts less than its square."""


@dataclass(frozen=True)
class Shot:
    """A recorded image, and what was there in its episode."""

    image: Array  # (height, width, 3) uint8
    step: int  # after which it was recorded
    scenes: Array  # (steps + 1, numbers), see `Scene`, as replayed


@dataclass(frozen=True)
class CameraFit:
    """Fitted quantities of a camera, and the mean differences of a pixel, of 255, on images that were kept apart."""

    values: dict[str, float]
    before: float  # with the unchanged camera
    after: float  # with `values`
    unchanged: ClassVar[Mapping[str, float]] = UNCHANGED  # values of the unchanged camera


def fit_camera(
    task: MetaWorldTask,
    use: CameraUse,
    searched: Sequence[Shot],
    held_out: Sequence[Shot],
    tick: Callable[[float], None] = lambda share: None,
) -> CameraFit:
    """Fit the quantities of `camera_changes.UNCHANGED` to recorded images.

    Args:
        task: renders the scenes.
        use: the unchanged camera, with the size of the images.
        searched: for the search.
        held_out: for the errors that are returned.
        tick: called with the share of the search that is done.
    """

    def render(shot: Shot, values: Mapping[str, float]) -> Array:
        scene = shot.scenes[max(shot.step - int(values[DELAY]), 0)]
        return task.images({"it": changed(use, values)}, scene)["it"]

    few, many, judged = _spread(searched, N_SEARCHED), _spread(searched, N_JUDGED), _spread(held_out, N_JUDGED)
    x, delay = np.zeros(len(UNITS)), 0
    for i, (pool, step) in enumerate(LEVELS):
        x = _search(render, few, x, delay, pool, step)
        tick((i + 1) / (len(LEVELS) + 2))
    delay = _best_delay(render, many, x)
    tick((len(LEVELS) + 1) / (len(LEVELS) + 2))
    if delay:  # the arm is elsewhere in the images now, so look again
        x = _search(render, few, x, delay, *LEVELS[-1])
        delay = _best_delay(render, many, x)
    tick(1.0)
    values = _values(x, delay)
    return CameraFit(values, _error(render, judged, UNCHANGED), _error(render, judged, values))


Render = Callable[[Shot, Mapping[str, float]], Array]


def _search(render: Render, shots: Sequence[Shot], x: Array, delay: int, pool: int, step: float) -> Array:
    """Return the position and light, in `UNITS`, at which rendered images are nearest to the recorded ones."""
    wanted = np.stack([_pooled(shot.image, pool) for shot in shots])

    def residuals(x: Array) -> Array:
        values = _values(x, delay)
        return (np.stack([_pooled(render(shot, values), pool) for shot in shots]) - wanted).ravel() / 255.0

    def derivatives(x: Array) -> Array:
        steps = step * np.eye(len(x))
        return np.stack([(residuals(x + d) - residuals(x - d)) / (2 * step) for d in steps], axis=1)

    found = least_squares(
        residuals,
        x,
        jac=derivatives,
        bounds=(-MOST_UNITS - 1e-9, MOST_UNITS + 1e-9),
        loss="soft_l1",
        f_scale=OUTLIER,
        max_nfev=N_EVALUATIONS,
        xtol=1e-3,
        ftol=1e-4,
    )
    return np.asarray(found.x)


def _best_delay(render: Render, shots: Sequence[Shot], x: Array) -> int:
    """Return the delay in steps with the smallest error."""
    return int(np.argmin([_error(render, shots, _values(x, delay)) for delay in range(MOST_DELAY + 1)]))


def _error(render: Render, shots: Sequence[Shot], values: Mapping[str, float]) -> float:
    """Return the mean difference of a pixel between rendered and recorded images, of 255."""
    return float(np.mean([np.abs(render(shot, values).astype(float) - shot.image).mean() for shot in shots]))


def _values(x: Array, delay: int) -> dict[str, float]:
    """Turn a point of the search into quantities by name."""
    units = zip(UNITS.items(), x.tolist(), strict=True)
    return {name: unit * n if name in ADDED else unit**n for (name, unit), n in units} | {DELAY: float(delay)}


def _pooled(image: Array, n: int) -> Array:
    """Average squares of `n` x `n` pixels; rows and columns that fill no square are left out."""
    height, width = image.shape[0] // n, image.shape[1] // n
    squares = image[: height * n, : width * n].astype(np.float32).reshape(height, n, width, n, 3)
    return np.asarray(squares.mean((1, 3)))


def _spread(shots: Sequence[Shot], n: int) -> list[Shot]:
    """Return at most `n` of the shots, evenly spread over them."""
    return [shots[round(i)] for i in np.linspace(0, len(shots) - 1, min(n, len(shots)))]
