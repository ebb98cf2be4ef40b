"""A dataset that a robot session records is read by LeRobot's own reader, also after a kill between any two files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lerobot", reason="lerobot is not installed")
pytest.importorskip("av", reason="av is not installed")

from lerobot.datasets.lerobot_dataset import LeRobotDataset

from tests.world_model.data.test_recording import CAMERAS, SPEC, episode, images
from world_model.data.episodes import BLEND, PERSON, POLICY
from world_model.data.lerobot import Recording, recording


def opened(folder: Path) -> LeRobotDataset:
    return LeRobotDataset("robot/arm", root=folder, video_backend="pyav")


def test_lerobot_reads_what_was_recorded(tmp_path: Path) -> None:
    episodes = [episode(5), episode(7), episode(6, "pull")]
    for some in (episodes[:2], episodes[2:]):  # two sessions
        made = Recording(tmp_path / "arm", SPEC, CAMERAS, "fake")
        with made.writer():
            for one in some:
                made.append(one, images(one.length + 1, one.length))
    dataset = opened(tmp_path / "arm")
    assert (dataset.num_episodes, len(dataset), dataset.fps) == (3, 18, 10)
    assert dataset.meta.video_keys == ["observation.images.front", "observation.images.wrist"]
    first = 0
    for one in episodes:
        for t in range(one.length):
            frame = dataset[first + t]
            torch.testing.assert_close(frame["observation.state"], one.state[t])
            torch.testing.assert_close(frame["action"], one.action[t])
            assert frame["task"] == ("Push it." if one.task == "push" else "pull")
            for name, shape in CAMERAS.items():
                image = frame[f"observation.images.{name}"]
                assert image.shape == (3, *shape[:2])
                assert float(image.mean()) == pytest.approx((10 * t + one.length) / 255, abs=3 / 255)
        first += one.length
    assert np.isfinite(dataset.meta.stats["observation.images.front"]["std"]).all()


def test_lerobot_reads_which_steps_are_a_persons(tmp_path: Path) -> None:
    marked = replace(episode(5), control=torch.tensor([POLICY, PERSON, PERSON, BLEND, POLICY], dtype=torch.uint8))
    made = Recording(tmp_path / "arm", SPEC, CAMERAS, "fake")
    with made.writer():
        made.append(marked, images(6, 5))
    dataset = opened(tmp_path / "arm")
    assert dataset.features["intervention"]["dtype"] == "bool"
    assert [bool(dataset[t]["intervention"]) for t in range(5)] == [False, True, True, False, False]


@pytest.mark.parametrize("after", range(8))
def test_lerobot_reads_what_a_kill_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    class Killed(BaseException):
        pass

    n_written, write = 0, recording.write_atomically

    def dying(path: Path, data: bytes) -> None:
        nonlocal n_written
        if n_written == 8 + after:
            raise Killed
        n_written += 1
        write(path, data)

    monkeypatch.setattr(recording, "write_atomically", dying)
    made = Recording(tmp_path / "arm", SPEC, CAMERAS, "fake")
    with pytest.raises(Killed), made.writer():
        for length in (5, 7):
            made.append(episode(length), images(length + 1, length))
    dataset = opened(tmp_path / "arm")
    assert dataset.num_episodes == 1 and dataset[4]["observation.images.front"].shape == (3, 32, 48)
