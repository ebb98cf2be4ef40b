"""Episodes from videos alone, without actions: they teach physics. Needs the extra `video`."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from rewards.errors import UserError
from rl.runs.progress import Progress
from world_model.data.episodes import Episode
from world_model.data.images import ImageBlocks
from world_model.data.lerobot import INFO, episode_videos, read_info
from world_model.data.parquet import read_parquet
from world_model.data.videos import Part, read_video
from world_model.files import existing_folder
from world_model.spec import LATENTS, STATE
from world_model.wam.model import WorldActionModel

Found = tuple[str, Path, float, float]
"""Task, file, and the begin and end of an episode in it, in seconds."""

Video = tuple[str, Tensor]
"""Task, and images (n, 1, size, size, 3) uint8, at the rate of one per chunk of the model."""


def read_videos(folder: str | Path, tasks: tuple[str, ...], size: int, images_per_s: float) -> list[Video]:
    """Read every FOLDER/TASK/*.mp4 of the tasks, or their episodes in a LeRobot v3.0 dataset with videos.

    Images are cropped to the square in the middle and scaled to `size`; there are `images_per_s` per second of video.

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
            blocks = ImageBlocks(height=size, width=size, crops=True)
            parts = [Part(*wanted[i][2:]) for i in numbers]
            for i, of_part in zip(numbers, read_video(path, parts, images_per_s, blocks), strict=True):
                videos[i] = wanted[i][0], blocks.rows(of_part, str(path)).unsqueeze(1)
            progress.update(len(videos), len(wanted), task=wanted[numbers[-1]][0])
    return [videos[i] for i in range(len(wanted))]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.mp4"))


def _of_lerobot(root: Path) -> list[Found]:
    """Return the part of each episode in a LeRobot dataset, as recorded by its first camera."""
    info, rows = read_info(root), read_parquet(root, "meta/episodes")
    try:
        cameras = [name for name, feature in info.get("features", {}).items() if feature.get("dtype") == "video"]
        tasks = [str(of_episode[0]) for of_episode in rows["tasks"]]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"videos={root}: it does not describe its cameras and tasks ({error!r:.80}); download it again"
        ) from error
    if not cameras:
        raise UserError(f"videos={root}: the LeRobot dataset has no videos")
    parts = episode_videos(root, info, rows, cameras[0])
    return [(task, *part) for task, part in zip(tasks, parts, strict=True)]


@torch.no_grad()
def watched(model: WorldActionModel, videos: list[Video]) -> list[Episode]:
    """Return videos as episodes of a model with images; proprioception and actions are NaN."""
    codec, every = model.image_codec, model.config.chunk_size
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
