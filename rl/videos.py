"""Episodes from videos alone: nobody knows what was done in them, but physics shows. Needs the extra `video`."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.errors import UserError
from rl.verbs.progress import Progress
from world_model.episodes import Episode
from world_model.files import existing_folder
from world_model.model import WorldActionModel

Video = tuple[str, Tensor]
"""Task, and pictures (n, 1, size, size, 3) uint8, one for each chunk of actions that a model would have executed."""


def read_videos(folder: str | Path, tasks: tuple[str, ...], size: int, pictures_per_s: float) -> list[Video]:
    """Read every FOLDER/TASK/*.mp4 of these tasks, in the order of their names.

    Pictures are cut to a square around the middle, and taken `pictures_per_s` times a second.

    Raises:
        UserError: there is none, one cannot be read, or the package av is missing.
    """
    root = existing_folder(Path(folder))
    found = [(task, path) for task in tasks for path in sorted((root / task).glob("*.mp4"))]
    if not found:
        raise UserError(f"videos={folder}: expected files TASK/*.mp4 there, of {', '.join(tasks)}")
    videos = []
    with Progress("read videos") as progress:
        for i, (task, path) in enumerate(found):
            videos.append((task, _read(path, size, pictures_per_s)))
            progress.update(i + 1, len(found), task=task)
    return videos


@torch.no_grad()
def watched(model: WorldActionModel, videos: list[Video]) -> list[Episode]:
    """Return videos as episodes of a model that sees: what it is told otherwise, and what was done, is not a number."""
    codec, every = model.pictures, model.config.chunk_size
    assert codec is not None
    episodes = []
    for i, (task, pictures) in enumerate(videos):
        steps = every * (len(pictures) - 1)
        codes = codec.encode(pictures).repeat_interleave(every, dim=0)[: steps + 1]
        told = torch.full((steps + 1, model.spec.state_dim - codec.code_dim), torch.nan)
        actions = torch.full((steps, model.spec.action_dim), torch.nan)
        never = torch.zeros(steps, dtype=torch.bool)
        episodes.append(Episode(torch.cat([told, codes], 1), actions, never, task, "video", i, None, every))
    return episodes


def _read(path: Path, size: int, pictures_per_s: float) -> Tensor:
    try:
        rate = float(iio.immeta(path, plugin="pyav")["fps"])
        frames = list(iio.imiter(path, plugin="pyav"))
    except ImportError as error:
        raise UserError(f"{path}: videos are read with the package av; pip install 'wamtune[video]'") from error
    except Exception as error:  # whatever a damaged file makes the decoder say
        raise UserError(f"{path}: the video cannot be read ({type(error).__name__}); leave it out") from error
    n = int(len(frames) / rate * pictures_per_s)
    if n < 2:
        raise UserError(f"{path}: {len(frames)} frames at {rate:g} a second make {n} pictures, expected 2 or more")
    return torch.stack([_square(frames[round(k * rate / pictures_per_s)], size) for k in range(n)]).unsqueeze(1)


def _square(frame: np.ndarray, size: int) -> Tensor:
    side = min(frame.shape[:2])
    top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
    square = torch.from_numpy(np.ascontiguousarray(frame[top : top + side, left : left + side]))
    if side == size:
        return square
    small = F.interpolate(square.permute(2, 0, 1)[None].float(), size=(size, size), mode="area")
    return small[0].permute(1, 2, 0).round().to(torch.uint8)
