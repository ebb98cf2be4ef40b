"""Images over rosbridge: decoded within limits, refused in one line, in a session with a policy that sees."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rl.robots.ros_images import RosCamera, decode, read_cameras

CAMERA = RosCamera("/front/compressed", height=12, width=16)
PIXELS = np.random.default_rng(0).integers(256, size=(12, 16, 3)).astype(np.uint8)


def file_of(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def message(data: bytes) -> dict[str, Any]:
    return {"header": {"stamp": {"sec": 0, "nanosec": 0}}, "format": "png", "data": base64.b64encode(data).decode()}


def bomb(height: int, width: int) -> bytes:
    """Return a small PNG that says it has many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_png_and_jpeg_become_rgb() -> None:
    assert np.array_equal(decode(message(file_of(PIXELS)), CAMERA), PIXELS)
    smooth = np.full((12, 16, 3), [200, 50, 10], np.uint8)
    found = decode(message(file_of(smooth, "JPEG", quality=95)), CAMERA)
    assert found.shape == (12, 16, 3) and found.dtype == np.uint8 and np.abs(found.astype(int) - smooth).max() <= 4
    grey = decode(message(file_of(PIXELS[..., 0])), CAMERA)
    assert np.array_equal(grey, PIXELS[..., :1].repeat(3, axis=2))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (None, "the message has no data in base64"),
        ({"data": [1, 2, 3]}, "the message has no data in base64"),
        ({"data": "no base64!"}, "the image cannot be decoded (Error)"),
        ({"data": "A" * 200_000}, "the image has 200,000 characters, at most "),
        (message(b"no image"), "the image cannot be decoded (UnidentifiedImageError)"),
        (message(file_of(PIXELS)[:60]), "the image cannot be decoded ("),
        (message(file_of(PIXELS[:, :8])), "the image is 12 x 8, expected 12 x 16"),
        (message(bomb(60_000, 60_000)), "the image "),
        (message(bomb(4000, 4000)), "the image is 4000 x 4000, expected 12 x 16"),
        (message(file_of(PIXELS, "BMP")), "the image cannot be decoded (UnidentifiedImageError)"),
        (message(file_of(PIXELS[..., 0].astype(np.uint16) * 200)), "the image is of mode I"),
    ],
)
def test_what_is_no_such_image_is_one_line(given: Any, reason: str) -> None:
    with pytest.raises(ValueError) as error:
        decode(given, CAMERA)
    assert str(error.value).startswith(reason) and "\n" not in str(error.value)


def test_damaged_files_never_raise_anything_else() -> None:
    draw, file = random.Random(0), bytearray(file_of(PIXELS, "JPEG"))
    refused = 0
    for _ in range(300):
        damaged = bytearray(file)
        for _ in range(draw.randrange(1, 6)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            assert decode(message(bytes(damaged)), CAMERA).shape == (12, 16, 3)
        except ValueError:
            refused += 1
    assert 0 < refused < 300


@pytest.mark.parametrize(
    "given",
    [
        {"topic": "/front"},
        {"topic": "front", "height": 4, "width": 4},
        {"topic": "/front", "height": 0, "width": 4},
        {"topic": "/front", "height": 4, "width": 5000},
        {"topic": "/front", "height": 4, "width": 4, "rate": 3},
    ],
)
def test_a_camera_that_is_not_described_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"cameras\.front="):
        read_cameras({"front": given})
