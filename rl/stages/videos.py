"""Episodes from videos alone, without actions: they teach physics. Needs the extra `video`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.errors import UserError
from rl.runs.progress import Progress
from world_model.data.episodes import Episode
from world_model.data.lerobot import INFO, fill_template, read_info, read_parquet
from world_model.extras import pip_line
from world_model.files import existing_folder, open_file
from world_model.spec import LATENTS, STATE
from world_model.wam.model import WorldActionModel

VIDEO_BYTES = 4_000_000_000
"""Largest video file that is read, in bytes."""

FRAME_PIXELS = 4096 * 4096
"""Largest number of pixels of a frame."""

FREE_PIXELS, PIXELS_PER_BYTE = 200_000_000, 5_000
"""Largest number of decoded pixels of a file: FREE_PIXELS plus PIXELS_PER_BYTE for each byte of the file.

A real video has a hundred times as many bytes per pixel. The limit stops crafted files: endless black frames take
almost no bytes.
"""

FREE_BYTES, EXPANSION = 300_000_000, 20
"""Largest memory for the images of one file, in bytes: FREE_BYTES plus EXPANSION for each byte of the file."""

BLOCK = 256
"""Number of images in one block of memory."""

FASTEST, LONGEST = 1000.0, 1_000_000
"""Highest accepted rate of frames, in 1/s, and length of a video, in seconds."""

Part = tuple[str, Path, float, float]
"""Task, file, and the begin and end of an episode in it, in seconds."""

Video = tuple[str, Tensor]
"""Task, and images (n, 1, size, size, 3) uint8, at the rate of one per chunk of the model."""


def read_videos(folder: str | Path, tasks: tuple[str, ...], size: int, pictures_per_s: float) -> list[Video]:
    """Read every FOLDER/TASK/*.mp4 of the tasks, or their episodes in a LeRobot v3.0 dataset with videos.

    Images are cropped to the square in the middle and scaled to `size`; there are `pictures_per_s` per second of video.

    Raises:
        UserError: no video was found, one cannot be read, or the package av is missing.
    """
    root = existing_folder(Path(folder))
    of_lerobot = (root / INFO).is_file()
    found = _of_lerobot(root) if of_lerobot else [(t, path, 0.0, math.inf) for t in tasks for path in _files(root / t)]
    wanted = [row for row in found if row[0] in tasks]
    if not wanted:
        expected = "episodes" if of_lerobot else "files TASK/*.mp4"
        raise UserError(f"videos={folder}: expected {expected} there, of {', '.join(tasks)}")
    # Group the episodes by file, since each file is decoded only once.
    of_file: dict[Path, list[int]] = {}
    for i, (_, path, _, _) in enumerate(wanted):
        of_file.setdefault(path, []).append(i)
    videos: dict[int, Video] = {}
    with Progress("read videos") as progress:
        for path, numbers in of_file.items():
            parts = [wanted[i][2:] for i in numbers]
            for i, images in zip(numbers, _images(path, parts, size, pictures_per_s), strict=True):
                videos[i] = wanted[i][0], images
            progress.update(len(videos), len(wanted), task=wanted[numbers[-1]][0])
    return [videos[i] for i in range(len(wanted))]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.mp4"))


def _of_lerobot(root: Path) -> list[Part]:
    """Return the part of each episode in a LeRobot dataset, as recorded by its first camera."""
    info, rows = read_info(root), read_parquet(root, "meta/episodes")
    try:
        cameras = [name for name, feature in info.get("features", {}).items() if feature.get("dtype") == "video"]
        if not cameras:
            raise UserError(f"videos={root}: the LeRobot dataset has no videos")
        names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        columns = [rows[f"videos/{cameras[0]}/{name}"].tolist() for name in names]
        found = []
        for task, chunk, file, begin, end in zip(rows["tasks"], *columns, strict=True):
            fields = {"video_key": cameras[0], "chunk_index": int(chunk), "file_index": int(file)}
            path = fill_template(root, info["video_path"], **fields)
            if not 0 <= begin < end <= LONGEST:
                raise ValueError(f"from {begin} to {end} s")
            found.append((str(task[0]), path, float(begin), float(end)))
    except UserError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"videos={root}: it does not say where the video of each episode is ({error!r:.80}); download it again"
        ) from error
    return found


@torch.no_grad()
def watched(model: WorldActionModel, videos: list[Video]) -> list[Episode]:
    """Return videos as episodes of a model with images; proprioception and actions are NaN."""
    codec, every = model.pictures, model.config.chunk_size
    assert codec is not None
    episodes = []
    for i, (task, images) in enumerate(videos):
        steps = every * (len(images) - 1)
        latents = codec.encode(images.to(model.device)).cpu()
        unknown = torch.full((steps + 1, model.spec.state_dim), torch.nan)
        actions = torch.full((steps, model.spec.action_dim), torch.nan)
        never = torch.zeros(steps, dtype=torch.bool)
        obs = {STATE: unknown, LATENTS: latents}  # one image per chunk
        episodes.append(Episode(obs, actions, never, task, "video", i, every={LATENTS: every}))
    return episodes


def _images(path: Path, parts: list[tuple[float, float]], size: int, pictures_per_s: float) -> list[Tensor]:
    """Return the images (n, 1, size, size, 3) of each part of a file, given its begin and end in seconds.

    The file is decoded once, and only the frames that become images are kept.
    """
    av = _av(path)
    try:
        with open_file(path, VIDEO_BYTES) as file, _opened(av, file) as container:
            stream = container.streams.video[0]
            rate = float(stream.guessed_rate)
            if not 0 < rate <= FASTEST:
                raise UserError(
                    f"{path}: {rate:g} frames a second, expected above 0, at most {FASTEST:g}; leave it out"
                )
            bounds = [(round(begin * rate), round(min(end, LONGEST) * rate)) for begin, end in parts]
            most = (FREE_BYTES + EXPANSION * path.stat().st_size) // (3 * size * size)  # images
            wanted = _numbers(path, bounds, rate / pictures_per_s, most)
            kept = _Kept(size)
            frame = None
            for i, frame in enumerate(_frames(path, container, stream)):
                if i in wanted:
                    kept.add(i, frame)
                    if len(kept.places) > most:
                        raise UserError(f"{path}: it makes more than {most:,} pictures; cut it into several files")
            if frame is not None:
                kept.add(i, frame)  # always keep the last frame: an episode may end with the file
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: the video is missing; download the dataset again") from error
    except Exception as error:  # on a damaged file the decoder may raise anything
        raise UserError(f"{path}: the video cannot be read ({type(error).__name__}); leave it out") from error
    n_frames = max(kept.places, default=-1) + 1
    numbers = [_taken(path, first, min(n_frames, last), rate, pictures_per_s, most) for first, last in bounds]
    return [torch.stack([kept.get(i) for i in of_part]).unsqueeze(1) for of_part in numbers]


class _Kept:
    """Images of a file by frame number, stored in blocks of `BLOCK` images.

    Small tensors allocated between the large, short-lived frames would fragment the memory, which then could not be
    returned to the system.
    """

    def __init__(self, size: int) -> None:
        self.size, self.places, self.blocks = size, dict[int, int](), list[Tensor]()

    def add(self, i: int, frame: Any) -> None:
        """Crop and scale frame `i`, and store it."""
        place = self.places.setdefault(i, len(self.places))
        if place // BLOCK == len(self.blocks):
            self.blocks.append(torch.empty((BLOCK, self.size, self.size, 3), dtype=torch.uint8))
        self.blocks[place // BLOCK][place % BLOCK] = _square(frame.to_ndarray(format="rgb24"), self.size)

    def get(self, i: int) -> Tensor:
        """Return the image of frame `i`."""
        place = self.places[i]
        return self.blocks[place // BLOCK][place % BLOCK]


def _av(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError(f"{path}: videos are read with the package av; {pip_line('video')}") from error
    return av


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


def _numbers(path: Path, bounds: list[tuple[int, int]], step: float, most: int) -> set[int]:
    """Return the numbers of all frames that may become images; `step` is the number of frames from one to the next.

    The number of frames in the file is not known yet, so this may include frames beyond its end.
    """
    if len(bounds) > 1 and sum((last - first) / step + 2 for first, last in bounds) > most:
        raise UserError(f"{path}: its episodes make more than {most:,} pictures; cut it into several files")
    found = {last - 1 for _, last in bounds}
    for first, last in bounds:
        found.update(first + round(k * step) for k in range(min(most, int((last - first) / step)) + 2))
    return found


def _taken(path: Path, first: int, last: int, rate: float, pictures_per_s: float, most: int) -> list[int]:
    """Return the frame number of each image of a part, which spans the frames `first` to `last` - 1."""
    n = int((last - first) / rate * pictures_per_s)
    if not 2 <= n <= most:
        found = f"{max(last - first, 0)} frames at {rate:g} a second make {max(n, 0)} pictures"
        raise UserError(f"{path}: {found}, expected 2 or more" + (f", at most {most:,}" if n > most else ""))
    return [min(first + round(k * rate / pictures_per_s), last - 1) for k in range(n)]


def _square(frame: np.ndarray, size: int) -> Tensor:
    """Crop a frame (height, width, 3) to the square in its middle and scale it to (size, size, 3)."""
    side = min(frame.shape[:2])
    top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
    square = torch.from_numpy(np.ascontiguousarray(frame[top : top + side, left : left + side]))
    if side == size:
        return square
    small = F.interpolate(square.permute(2, 0, 1)[None].float(), size=(size, size), mode="area")
    return small[0].permute(1, 2, 0).round().to(torch.uint8)
