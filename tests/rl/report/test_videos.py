"""Videos of a report: how many frames, how long, how large."""

from __future__ import annotations

import io
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from rl.report.videos import MOST_BYTES, gif_of, inline_video, write_video


def opened(address: str) -> Image.Image:
    return Image.open(io.BytesIO(gif_of(address)))


def test_a_small_video_keeps_its_frames_its_rate_and_its_colours() -> None:
    frames = [np.full((8, 12, 3), (20 * i, 0, 200), np.uint8) for i in range(5)]
    video = opened(inline_video(frames, frames_per_s=4))
    assert (video.n_frames, video.size, video.info["duration"], video.info["loop"]) == (5, (12, 8), 250, 0)
    for i, frame in enumerate(frames):
        video.seek(i)
        assert np.array(video.convert("RGB")) == pytest.approx(frame, abs=8)


@pytest.mark.parametrize("frames_per_s", [0.25, 0.625, 5])
def test_an_mp4_has_the_rate_that_was_asked_for(tmp_path: Path, frames_per_s: float) -> None:
    frames = [np.full((32, 32, 3), 40 * i, np.uint8) for i in range(5)]
    write_video(frames, tmp_path / "a.mp4", frames_per_s)
    assert iio.immeta(tmp_path / "a.mp4", plugin="pyav")["fps"] == frames_per_s


def test_a_large_video_loses_frames_and_lasts_as_long() -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (200, 300, 3), dtype=np.uint8) for _ in range(16)]  # nothing to compress
    address = inline_video(frames, frames_per_s=10)
    video = opened(address)
    assert len(gif_of(address)) <= MOST_BYTES
    assert video.n_frames in (2, 4, 8) and video.n_frames * video.info["duration"] == 16 * 100


def test_one_frame_is_kept_however_large() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    assert opened(inline_video([frame], frames_per_s=10)).n_frames == 1
