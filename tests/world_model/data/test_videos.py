"""Images of a LeRobot dataset that stores them as videos: one for each frame, of its own episode."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rewards.errors import UserError
from rl.report.videos import write_video
from world_model.data import images
from world_model.data.columns_config import ColumnsConfig
from world_model.data.images import ImageBlocks
from world_model.data.lerobot import import_lerobot
from world_model.data.videos import Part, read_video

pytest.importorskip("av")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FRONT = "observation.images.front"
COLUMNS = ColumnsConfig(images={"front": FRONT}, image_size=32)
PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


def grey(n: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """Images as bright as 8 times their number, with a black margin beside the square in the middle."""
    frames = [np.full((height, width, 3), 8 * i, np.uint8) for i in range(n)]
    for frame in frames:
        frame[:, : (width - height) // 2] = frame[:, -(width - height) // 2 :] = 0
    return frames


def write_dataset(folder: Path, lengths: tuple[int, ...] = (4, 7, 9), rate: int = 10) -> Path:
    """Write a dataset at 10 frames a second, whose episodes follow each other in one video; return the video."""
    n, ends = sum(lengths), np.cumsum(lengths)
    frames = {
        "observation.state": np.arange(n, dtype=np.float32),
        "action": np.linspace(-1, 1, n, dtype=np.float32),
        "frame_index": np.concatenate([np.arange(length) for length in lengths]),
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
    }
    zeros = [0] * len(lengths)
    rows = {
        "episode_index": list(range(len(lengths))),
        "tasks": [["Push it."]] * len(lengths),
        "length": list(lengths),
        f"videos/{FRONT}/chunk_index": zeros,
        f"videos/{FRONT}/file_index": zeros,
        f"videos/{FRONT}/from_timestamp": (ends - lengths) / 10,
        f"videos/{FRONT}/to_timestamp": ends / 10,
    }
    for part, columns in (("data", frames), ("meta/episodes", rows)):
        (folder / part / "chunk-000").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), folder / part / "chunk-000" / "file-000.parquet")
    info = {"codebase_version": "v3.0", "fps": 10, "features": {FRONT: {"dtype": "video"}}, "video_path": PATH}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    video = folder / PATH.format(video_key=FRONT, chunk_index=0, file_index=0)
    write_video([frame for frame in grey(n) for _ in range(rate // 10)], video, rate)
    return video


@pytest.mark.parametrize("rate", [10, 20])
def test_each_frame_has_its_image(tmp_path: Path, rate: int) -> None:
    write_dataset(tmp_path, rate=rate)
    episodes, spec = import_lerobot(tmp_path, COLUMNS)
    assert spec.features["images.front"].shape == (32, 32, 3) and [e.length for e in episodes] == [3, 6, 8]
    for episode in episodes:
        found = episode.obs["images.front"].float()
        assert found.shape == (episode.length + 1, 32, 32, 3)
        np.testing.assert_allclose(found.mean((1, 2, 3)), 8 * episode.state[:, 0], atol=4)
        assert found[-1].std() < 8  # the black margin is cut off


def test_a_video_that_ends_early_is_refused(tmp_path: Path) -> None:
    video = write_dataset(tmp_path)
    write_video(grey(19), video, 10)
    with pytest.raises(UserError, match=r"it shows 8 frames from second 1\.1 on, expected 9 of the episode; download"):
        import_lerobot(tmp_path, COLUMNS)
    write_video(grey(20, height=24, width=32), video, 10)
    with pytest.raises(UserError, match=r"file-000\.mp4: an image of 24 x 32 pixels .* scaled up to 32 x 32"):
        import_lerobot(tmp_path, COLUMNS)
    video.unlink()
    with pytest.raises(UserError, match=r"file-000\.mp4: the video is missing; download the dataset again"):
        import_lerobot(tmp_path, COLUMNS)
    assert import_lerobot(tmp_path)[1].images == ()  # without images, no video is opened


def test_the_memory_of_images_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = write_dataset(tmp_path)
    monkeypatch.setattr(images, "FREE_BYTES", 3 * 32 * 32 * 19)
    monkeypatch.setattr(images, "EXPANSION", 0)
    with pytest.raises(UserError, match=r"its episodes make more than 19 images"):
        import_lerobot(tmp_path, COLUMNS)
    blocks = ImageBlocks(height=32, width=32, crops=True)
    with pytest.raises(UserError, match=r"file-000\.mp4: it makes more than 19 images of 32 x 32 pixels, the most for"):
        read_video(video, [Part()], 10.0, blocks)
