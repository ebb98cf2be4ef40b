"""Videos without actions: read from files, watched, and learned from without a number that nobody knows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rewards.errors import UserError
from rl.compose import compose
from rl.report.videos import write_video
from rl.stages.config import PretrainConfig
from rl.stages.videos import read_videos, watched
from world_model.data.episodes import Episode
from world_model.wam.losses import stage_losses
from world_model.wam.model import WorldActionModel
from world_model.wam.training import fit_statistics

pytest.importorskip("av")


def grey(n: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """ImageData that are as bright as 8 times their number, with a black margin beside the square in the middle."""
    images = [np.full((height, width, 3), 8 * i, np.uint8) for i in range(n)]
    for image in images:
        image[:, :16] = image[:, -16:] = 0
    return images


def episode(seed: int, length: int = 40) -> Episode:
    """Random motion, seen."""
    generator = torch.Generator().manual_seed(seed)
    obs = {name: torch.randn(length + 1, n, generator=generator) for name, n in (("state", 4), ("latents", 16))}
    action = 2 * torch.rand(length, 4, generator=generator) - 1
    return Episode(obs, action, torch.zeros(length, dtype=torch.bool), "push", "noisy", seed)


def test_images_are_taken_at_the_rate_of_chunks_and_cut_to_a_square(tmp_path: Path):
    (tmp_path / "push").mkdir()
    write_video(grey(30), tmp_path / "push" / "a.mp4", 30)
    ((task, images),) = read_videos(tmp_path, ("door-open", "push"), 32, 10.0)
    assert task == "push" and images.shape == (10, 1, 32, 32, 3) and images.dtype == torch.uint8
    brightness = images.float().mean((1, 2, 3, 4))
    torch.testing.assert_close(brightness, 24 * torch.arange(10.0), atol=4.0, rtol=0)


def test_a_slow_video_shows_a_frame_again_and_never_one_of_the_next(tmp_path: Path):
    (tmp_path / "push").mkdir()
    write_video(grey(20), tmp_path / "push" / "a.mp4", 5)
    ((_, images),) = read_videos(tmp_path, ("push",), 32, 10.0)
    brightness = images.float().mean((1, 2, 3, 4))
    torch.testing.assert_close(brightness[-2:], torch.tensor([8 * 19.0] * 2), atol=4.0, rtol=0)
    assert len(brightness) == 40


def test_episodes_of_a_lerobot_dataset_are_parts_of_its_videos(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    camera, template = (
        "observation.images.front",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    )
    features = {"action": {"dtype": "float32"}, camera: {"dtype": "video"}}
    info = {"codebase_version": "v3.0", "fps": 10, "features": features, "video_path": template}
    folder = tmp_path / "meta" / "episodes" / "chunk-000"
    folder.mkdir(parents=True)
    (tmp_path / "meta" / "info.json").write_text(json.dumps(info))
    rows = {
        "episode_index": [0, 1, 2],
        "tasks": [["push"], ["door-open"], ["push"]],
        f"videos/{camera}/chunk_index": [0, 0, 0],
        f"videos/{camera}/file_index": [0, 0, 0],
        f"videos/{camera}/from_timestamp": [0.0, 1.0, 2.0],
        f"videos/{camera}/to_timestamp": [1.0, 2.0, 3.0],
    }
    pq.write_table(pa.table(rows), folder / "file-000.parquet")
    write_video(grey(30), tmp_path / template.format(video_key=camera, chunk_index=0, file_index=0), 10)
    (first, one), (second, other) = read_videos(tmp_path, ("push",), 32, 10.0)
    assert first == second == "push" and one.shape == other.shape == (10, 1, 32, 32, 3)
    assert one[3].float().mean().item() == pytest.approx(24, abs=4)
    assert other[3].float().mean().item() == pytest.approx(8 * 23, abs=4)
    with pytest.raises(UserError, match=r"videos=.*: expected episodes there, of hammer"):
        read_videos(tmp_path, ("hammer",), 32, 10.0)


def test_what_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"videos=.*: expected files TASK/\*\.mp4 there, of push"):
        read_videos(tmp_path, ("push",), 32, 10.0)
    (tmp_path / "push").mkdir()
    (tmp_path / "push" / "a.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"a\.mp4: the video cannot be read"):
        read_videos(tmp_path, ("push",), 32, 10.0)
    (tmp_path / "push" / "a.mp4").unlink()
    write_video(grey(4), tmp_path / "push" / "b.mp4", 30)
    with pytest.raises(UserError, match=r"4 frames at 30 a second make 1 images, expected 2 or more"):
        read_videos(tmp_path, ("push",), 32, 10.0)
    with pytest.raises(UserError, match=r"videos=v: model\.views has 0 cameras"):
        compose(None, ["name=a", "tasks=[push]", "videos=v"], PretrainConfig).check()


def test_a_video_is_an_episode_that_is_told_nothing(image_model: WorldActionModel):
    model = image_model
    images = torch.randint(0, 256, (4, 1, 32, 32, 3), dtype=torch.uint8)
    (seen,) = watched(model, [("push", images)])
    assert seen.length == 24 and seen.every == {"latents": 8} and seen.source == "video"
    assert seen.state.shape == (25, 4) and seen.state.isnan().all() and seen.action.isnan().all()
    codes = model.image_codec.encode(images)
    assert torch.equal(seen.obs["latents"], codes) and seen.rows_of("latents").tolist()[7:9] == [0, 1]
    batch = model.windows([seen]).at(torch.tensor([1]))
    assert torch.equal(batch.context["latents"][0], codes[:2])
    assert torch.equal(batch.future["latents"][0, -1], codes[2])


def test_losses_know_what_nobody_knows(image_model: WorldActionModel):
    model = image_model
    (seen,) = watched(model, [("push", torch.randint(0, 256, (6, 1, 32, 32, 3), dtype=torch.uint8))])
    windows = model.windows([episode(0), seen])
    fit_statistics(model, windows, 100)
    everything = windows.at(torch.arange(len(windows)))
    atoms = (0.2, 0.2, 0.2, 0.2, 0.2)
    losses = stage_losses("pretrain", model, everything, atoms, torch.Generator().manual_seed(0))
    assert all(loss.isfinite() for loss in losses.values())
    torch.stack([*losses.values()]).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)
    # Of a video alone nothing is learned about acting, success or progress, and nothing about what was not told.
    video = model.windows([seen]).at(torch.arange(5))
    losses = stage_losses("pretrain", model, video, atoms, torch.Generator().manual_seed(0))
    assert set(losses) == {"video", "action"} and losses["action"] == 0 and losses["video"] > 0
    with torch.no_grad():
        model.codec.vector.future_out.weight.mul_(100)
    again = stage_losses("pretrain", model, video, atoms, torch.Generator().manual_seed(0))
    assert torch.equal(again["video"], losses["video"])
