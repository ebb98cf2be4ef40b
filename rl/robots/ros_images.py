"""Images of ROS messages of type sensor_msgs/CompressedImage, as rosbridge sends them: JPEG or PNG, in base64."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray

ROOM = 1 << 16
"""Bytes of an image file beside its pixels, and of a message beside the file."""


@dataclass(frozen=True)
class RosCamera:
    """A camera behind rosbridge."""

    topic: str  # of messages of type sensor_msgs/CompressedImage
    height: int  # of its images, in pixels
    width: int

    @property
    def max_bytes(self) -> int:
        """Largest file of an image: a compressed one is hardly larger than its pixels."""
        return 3 * self.height * self.width + ROOM

    @property
    def max_message(self) -> int:
        """Largest message in bytes: base64 has four characters for three bytes."""
        return self.max_bytes * 4 // 3 + ROOM


def read_cameras(given: Mapping[str, Mapping[str, Any]]) -> dict[str, RosCamera]:
    """Return the cameras of a config, by name.

    Raises:
        TypeError: a field is missing, unknown or not a size.
    """
    cameras = {}
    for name, values in given.items():
        try:
            camera = RosCamera(**values)
        except TypeError as error:
            raise TypeError(f"cameras.{name}={dict(values)}: expected topic, height and width") from error
        if not camera.topic.startswith("/") or not all(
            type(side) is int and 1 <= side <= 4096 for side in (camera.height, camera.width)
        ):
            raise TypeError(f"cameras.{name}={dict(values)}: expected a topic /NAME, and sizes from 1 to 4096")
        cameras[name] = camera
    return cameras


def decode(message: Any, camera: RosCamera) -> Array:
    """Return the image of a message (height, width, 3) uint8.

    Sizes are checked before anything is decoded.

    Raises:
        ValueError: it has no image, or a damaged one, or one of another size.
    """
    from PIL import Image  # here: a robot without cameras needs no pillow

    data = message.get("data") if isinstance(message, Mapping) else None
    if not isinstance(data, str):
        raise ValueError("the message has no data in base64; expected sensor_msgs/CompressedImage")
    if len(data) > camera.max_message:
        raise ValueError(f"the image has {len(data):,} characters, at most {camera.max_message:,} are read")
    try:
        file = base64.b64decode(data, validate=True)
        with Image.open(io.BytesIO(file), formats=("JPEG", "PNG")) as image:  # reads the header only
            width, height = image.size
            if (height, width) != (camera.height, camera.width):
                raise _OtherSize(f"the image is {height} x {width}, expected {camera.height} x {camera.width}")
            if image.mode.startswith(("I", "F")):
                raise _OtherSize(f"the image is of mode {image.mode}, expected 8 bits for each colour")
            return np.array(image.convert("RGB"))
    except _OtherSize:
        raise
    except Exception as error:  # a damaged file can raise any exception
        raise ValueError(f"the image cannot be decoded ({type(error).__name__})") from error


class _OtherSize(ValueError):
    """The image has another size or type than expected."""
