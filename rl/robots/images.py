"""Images of a robot's cameras: which camera is which image of the policy, cropped and scaled to the size it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rl.robots.errors import Stop
from world_model.data.pixels import shrunk
from world_model.spec import IMAGES, Spec

Array = np.ndarray

Row = tuple[str, str, str]
"""(what, expected, found): a difference between a robot and a policy."""


def cameras_of(spec: Spec, names: Mapping[str, str]) -> dict[str, str]:
    """Return for each image feature of the policy the robot's camera.

    Args:
        spec: of the policy.
        names: camera of the policy -> camera of the robot; a camera that is missing has the same name on both sides.
    """
    cameras = {name: name.removeprefix(IMAGES) for name in spec.images}
    return {name: names.get(camera, camera) for name, camera in cameras.items()}


def is_image(offered: Any) -> bool:
    """Whether a feature of a robot is an image: LeRobot's robots say so by its shape (height, width, 3)."""
    return isinstance(offered, tuple | list) and len(offered) == 3 and offered[2] == 3


def image_differences(
    spec: Spec, names: Mapping[str, str], crops: Mapping[str, Sequence[int]], offered: Mapping[str, Any]
) -> Iterator[Row]:
    """Yield the differences between the images that a policy reads and those that a robot offers.

    Args:
        spec: of the policy.
        names: see `cameras_of`.
        crops: camera of the policy -> top, left, height, width of the part of the robot's image that it sees.
        offered: the robot's `observation_features`.
    """
    known = [name.removeprefix(IMAGES) for name in spec.images]
    for key, values in (("map.images", names), ("map.crop", crops)):
        for camera in values:
            if camera not in known:
                yield f"{key}.{camera}", f"one of {', '.join(known) or 'no cameras'}", "no camera of the policy"
    for name, camera in cameras_of(spec, names).items():
        height, width, _ = spec.features[name].shape
        if not is_image(offered.get(camera)):
            yield name, f"an image of {height} x {width}", _offer(camera, offered)
            continue
        rows, columns = offered[camera][:2]
        if crop := tuple(crops.get(name.removeprefix(IMAGES), ())):
            if not _fits(crop, rows, columns):
                yield (
                    f"map.crop.{name.removeprefix(IMAGES)}",
                    f"top, left, height, width within {rows} x {columns}",
                    str(list(crop)),
                )
                continue
            rows, columns = crop[2:]
        if rows < height or columns < width:
            yield name, f"an image of at least {height} x {width}", f"{rows} x {columns}"


def fitted_image(name: str, image: Array, shape: Sequence[int], crop: Sequence[int] = ()) -> Array:
    """Return the part of an image that a policy sees, in its size (height, width, 3) uint8.

    Args:
        name: of the feature, for messages.
        image: that `check_image` accepted.
        shape: of the feature.
        crop: top, left, height, width of the part that is used; empty: all. Of it, the largest middle part with the
            proportions of `shape` is scaled down.

    Raises:
        Stop: the image is smaller than the feature.
    """
    height, width, _ = shape
    if crop:
        top, left, rows, columns = crop
        image = image[top : top + rows, left : left + columns]
    if image.shape[:2] == (height, width):
        return image.copy()
    if image.shape[0] < height or image.shape[1] < width:
        raise Stop(f"{name} of the observation is {image.shape[:2]}, expected at least {height} x {width}")
    return shrunk(image, height, width)


def check_image(name: str, image: Any, offered: Sequence[int]) -> None:
    """Check an image of an observation against the shape that the robot offers.

    Raises:
        Stop: it is not an image, or has another size or type.
    """
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == tuple(offered):
        return
    kind = f"{image.shape} of {image.dtype}" if isinstance(image, np.ndarray) else repr(image)[:60]
    raise Stop(f"{name} of the observation is {kind}, expected {tuple(offered)} of uint8, as the robot describes it")


def _fits(crop: tuple[int, ...], rows: int, columns: int) -> bool:
    if len(crop) != 4:
        return False
    top, left, height, width = crop
    return min(top, left) >= 0 and min(height, width) >= 1 and top + height <= rows and left + width <= columns


def _offer(camera: str, offered: Mapping[str, Any]) -> str:
    return "a number" if camera in offered else f"no such; it has {', '.join(offered)}"[:80]
