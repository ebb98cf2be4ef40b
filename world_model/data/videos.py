"""Images from video files (MP4), decoded within limits of time and memory, and to them. Needs the extra `video`."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rewards.errors import UserError
from world_model.data.images import FRAME_PIXELS, FREE_PIXELS, PIXELS_PER_BYTE, ImageBlocks
from world_model.extras import import_extra
from world_model.files import open_file

VIDEO_BYTES = 4_000_000_000
"""Largest video file that is read, in bytes."""

FASTEST, LONGEST = 1000.0, 1_000_000
"""Highest accepted rate of frames, in 1/s, and length of a video, in seconds."""

CODEC = "h264"
"""Codec of the videos that are written, by its name in info.json of LeRobot."""

OPTIONS = {"crf": "18", "preset": "veryfast", "g": "2", "bf": "0", "threads": "1"}
"""Options of the encoder: a loss that is hardly visible, and every second frame is whole, so that seeking is fast."""


@dataclass(frozen=True)
class Part:
    """A part of a video file that holds one episode."""

    begin: float = 0.0  # seconds
    end: float = math.inf  # seconds; infinite: the end of the file
    n_images: int | None = None  # that it must give; None: as many as it has, at least 2


def read_video(path: Path, parts: Sequence[Part], images_per_s: float, blocks: ImageBlocks) -> list[list[int]]:
    """Read the images of each part of a video file into `blocks`, `images_per_s` for each second of video.

    The file is decoded once, and only the frames that become images are kept.

    Returns for each part the numbers of its images in `blocks`.

    Raises:
        UserError: the file is missing or damaged, a part has too few frames, the file was made to exhaust time or
            memory, or the package av is missing.
    """
    av = import_av(str(path))
    places: dict[int, int] = {}  # number of a frame -> number of its image
    try:
        with open_file(path, VIDEO_BYTES) as file, _opened(av, file) as container:
            blocks.allow(path)
            stream = container.streams.video[0]
            rate = float(stream.guessed_rate)
            if not 0 < rate <= FASTEST:
                raise UserError(
                    f"{path}: {rate:g} frames a second, expected above 0, at most {FASTEST:g}; leave it out"
                )
            bounds = [(round(p.begin * rate), round(min(p.end, LONGEST) * rate)) for p in parts]
            wanted = _wanted(path, bounds, rate / images_per_s, blocks.most)
            i, frame = -1, None
            for i, frame in enumerate(_frames(path, container, stream)):
                if i in wanted:
                    places[i] = blocks.add(frame.to_ndarray(format="rgb24"), str(path))
            if frame is not None and i not in places:  # keep the last frame: an episode may end with the file
                places[i] = blocks.add(frame.to_ndarray(format="rgb24"), str(path))
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: the video is missing; download the dataset again") from error
    except Exception as error:  # on a damaged file the decoder may raise anything
        raise UserError(f"{path}: the video cannot be read ({type(error).__name__}); leave it out") from error
    n_frames = max(places, default=-1) + 1
    numbers = [
        _taken(path, part, first, min(n_frames, last), rate, images_per_s, blocks.most)
        for part, (first, last) in zip(parts, bounds, strict=True)
    ]
    return [[places[i] for i in of_part] for of_part in numbers]


def encode_video(images: Sequence[np.ndarray], fps: float) -> bytes:
    """Return images (height, width, 3) uint8 as the bytes of an MP4 file with `fps` images a second."""
    av, file = import_av("recording"), io.BytesIO()
    height, width, _ = images[0].shape
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options=OPTIONS)
        stream.height, stream.width, stream.pix_fmt = height, width, pixel_format(images[0].shape)
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def pixel_format(shape: Sequence[int]) -> str:
    """Return the pixel format for images of a shape (height, width, 3): halved colours need even sides."""
    return "yuv444p" if shape[0] % 2 or shape[1] % 2 else "yuv420p"


def import_av(where: str) -> Any:
    """Return the module `av`.

    Raises:
        UserError: it is missing; `where` begins the message.
    """
    return import_extra("av", "video", f"{where}: videos need the package av")


def _opened(av: Any, file: BinaryIO) -> Any:
    """Open a file as MP4 only. Other resources that it refers to, such as a network address, are never opened."""
    container = av.open(file, format="mp4", options={"protocol_whitelist": "none"})
    if container.streams.video:
        stream = container.streams.video[0]
        stream.codec_context.options = {"max_pixels": str(FRAME_PIXELS)}
        stream.thread_type = "SLICE"
    return container


def _frames(path: Path, container: Any, stream: Any) -> Iterator[Any]:
    """Yield the decoded frames; refuse a file with more pixels than a real video of its size has."""
    limit = FREE_PIXELS + PIXELS_PER_BYTE * path.stat().st_size
    n_pixels = 0
    for frame in container.decode(stream):
        n_pixels += frame.width * frame.height
        if n_pixels > limit:
            raise UserError(
                f"{path}: it shows more than {limit:,} pixels, the most for a file of its size; leave it out"
            )
        yield frame


def _wanted(path: Path, bounds: list[tuple[int, int]], step: float, most: int) -> set[int]:
    """Return the numbers of all frames that may become images; `step` is the number of frames from one to the next.

    The number of frames in the file is not known yet, so this may include frames beyond its end.
    """
    if len(bounds) > 1 and sum((last - first) / step + 2 for first, last in bounds) > most:
        raise UserError(f"{path}: its episodes make more than {most:,} images; cut it into several files")
    found = {last - 1 for _, last in bounds}
    for first, last in bounds:
        found.update(first + round(k * step) for k in range(min(most, int((last - first) / step)) + 2))
    return found


def _taken(path: Path, part: Part, first: int, last: int, rate: float, images_per_s: float, most: int) -> list[int]:
    """Return the frame number of each image of a part, which spans the frames `first` to `last` - 1."""
    n_frames = max(last - first, 0)
    if part.n_images is None:
        n = int((last - first) / rate * images_per_s)
        if not 2 <= n <= most:
            found = f"{n_frames} frames at {rate:g} a second make {max(n, 0)} images"
            raise UserError(f"{path}: {found}, expected 2 or more" + (f", at most {most:,}" if n > most else ""))
        return [min(first + round(k * rate / images_per_s), last - 1) for k in range(n)]
    numbers = [first + round(k * rate / images_per_s) for k in range(part.n_images)]
    if numbers and numbers[-1] >= last:
        raise UserError(
            f"{path}: it shows {n_frames} frames from second {part.begin:g} on, expected {part.n_images} of the "
            "episode; download the dataset again"
        )
    return numbers
