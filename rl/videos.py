"""Episodes from videos alone: nobody knows what was done in them, but physics shows. Needs the extra `video`."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.errors import UserError
from rl.deploy.lerobot import INFO, read_info, read_parquet
from rl.extras import pip_line
from rl.verbs.progress import Progress
from world_model.episodes import Episode
from world_model.files import existing_folder
from world_model.model import WorldActionModel

Video = tuple[str, Tensor]
"""Task, and pictures (n, 1, size, size, 3) uint8, one for each chunk of actions that a model would have executed."""


def read_videos(folder: str | Path, tasks: tuple[str, ...], size: int, pictures_per_s: float) -> list[Video]:
    """Read every FOLDER/TASK/*.mp4 of these tasks, or every episode of them in a LeRobot v3.0 dataset with videos.

    Pictures are cut to a square around the middle, and taken `pictures_per_s` times a second.

    Raises:
        UserError: there is none, one cannot be read, or the package av is missing.
    """
    root = existing_folder(Path(folder))
    of_lerobot = (root / INFO).is_file()
    found = _of_lerobot(root) if of_lerobot else [(t, path, 0.0, math.inf) for t in tasks for path in _files(root / t)]
    wanted = [row for row in found if row[0] in tasks]
    if not wanted:
        expected = "episodes" if of_lerobot else "files TASK/*.mp4"
        raise UserError(f"videos={folder}: expected {expected} there, of {', '.join(tasks)}")
    videos = []
    with Progress("read videos") as progress:
        for i, (task, path, begin, end) in enumerate(wanted):
            videos.append((task, _pictures(path, begin, end, size, pictures_per_s)))
            progress.update(i + 1, len(wanted), task=task)
    _decoded.cache_clear()
    return videos


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.mp4"))


def _of_lerobot(root: Path) -> list[tuple[str, Path, float, float]]:
    """Task, file, and where in it each episode begins and ends, in seconds, of the first camera."""
    info, rows = read_info(root), read_parquet(root, "meta/episodes")
    cameras = [name for name, feature in info.get("features", {}).items() if feature.get("dtype") == "video"]
    if not cameras:
        raise UserError(f"videos={root}: the LeRobot dataset has no videos")
    columns = [
        rows[f"videos/{cameras[0]}/{name}"] for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    ]
    return [
        (
            str(task[0]),
            root / info["video_path"].format(video_key=cameras[0], chunk_index=chunk, file_index=file),
            begin,
            end,
        )
        for task, chunk, file, begin, end in zip(rows["tasks"], *(c.tolist() for c in columns), strict=True)
    ]


@torch.no_grad()
def watched(model: WorldActionModel, videos: list[Video]) -> list[Episode]:
    """Return videos as episodes of a model that sees: what it is told otherwise, and what was done, is not a number."""
    codec, every = model.pictures, model.config.chunk_size
    assert codec is not None
    episodes = []
    for i, (task, pictures) in enumerate(videos):
        steps = every * (len(pictures) - 1)
        codes = codec.encode(pictures.to(model.device)).cpu().repeat_interleave(every, dim=0)[: steps + 1]
        told = torch.full((steps + 1, model.spec.state_dim - codec.code_dim), torch.nan)
        actions = torch.full((steps, model.spec.action_dim), torch.nan)
        never = torch.zeros(steps, dtype=torch.bool)
        episodes.append(Episode(torch.cat([told, codes], 1), actions, never, task, "video", i, None, every))
    return episodes


def _pictures(path: Path, begin: float, end: float, size: int, pictures_per_s: float) -> Tensor:
    frames, rate = _decoded(path)
    first, last = round(begin * rate), min(len(frames), round(min(end, 1e6) * rate))
    n = int((last - first) / rate * pictures_per_s)
    if n < 2:
        raise UserError(f"{path}: {last - first} frames at {rate:g} a second make {n} pictures, expected 2 or more")
    taken = (frames[min(first + round(k * rate / pictures_per_s), last - 1)] for k in range(n))
    return torch.stack([_square(frame, size) for frame in taken]).unsqueeze(1)


@lru_cache(maxsize=1)
def _decoded(path: Path) -> tuple[list[np.ndarray], float]:
    """Return frames and frames a second; a file may hold many episodes, one after the other."""
    try:
        rate = float(iio.immeta(path, plugin="pyav")["fps"])
        return list(iio.imiter(path, plugin="pyav")), rate
    except ImportError as error:
        raise UserError(f"{path}: videos are read with the package av; {pip_line('video')}") from error
    except Exception as error:  # whatever a damaged file makes the decoder say
        raise UserError(f"{path}: the video cannot be read ({type(error).__name__}); leave it out") from error


def _square(frame: np.ndarray, size: int) -> Tensor:
    side = min(frame.shape[:2])
    top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
    square = torch.from_numpy(np.ascontiguousarray(frame[top : top + side, left : left + side]))
    if side == size:
        return square
    small = F.interpolate(square.permute(2, 0, 1)[None].float(), size=(size, size), mode="area")
    return small[0].permute(1, 2, 0).round().to(torch.uint8)
