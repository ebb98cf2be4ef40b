"""A LeRobot dataset with videos that grows: what comes back, what a kill leaves, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rewards.errors import UserError
from world_model.data.columns_config import ColumnsConfig
from world_model.data.episodes import Episode
from world_model.data.lerobot import Recording, import_lerobot, recording
from world_model.data.lerobot.tables import combine_stats, stats_of
from world_model.spec import Feature, Spec

SPEC = Spec(
    {"state": Feature((3,)), "images.front": Feature((8, 8, 3), dtype="uint8", every=4)},
    (-1.0,) * 2,
    (1.0,) * 2,
    ("push", "pull"),
    10.0,
    {"push": "Push it."},
)
CAMERAS = {"front": (32, 48, 3), "wrist": (17, 24, 3)}


def images(n: int, phase: int) -> list[dict[str, np.ndarray]]:
    """Return smooth images of each camera, whose brightness tells the step: 10 times the step, plus the phase."""
    return [
        {name: np.full(shape, 10 * t + phase, np.uint8) for name, shape in CAMERAS.items()} for t in range(n)
    ]  # fmt: skip


def episode(length: int, task: str = "push") -> Episode:
    generator = torch.Generator().manual_seed(length)
    return Episode(
        obs={"state": torch.randn(length + 1, 3, generator=generator)},
        action=2 * torch.rand(length, 2, generator=generator) - 1,
        success=torch.arange(length) == length - 1,
        task=task,
        source="robot, success by robot",
        seed=length,
    )


def record(folder: Path, *episodes: Episode, spec: Spec = SPEC, cameras: dict[str, tuple[int, ...]] = CAMERAS) -> None:
    made = Recording(folder, spec, cameras, "fake")
    with made.writer():
        for one in episodes:
            made.append(one, images(one.length + 1, one.length))


COLUMNS = ColumnsConfig(images={"front": "observation.images.front"}, image_size=8)


def test_what_was_recorded_comes_back_over_several_sessions(tmp_path: Path) -> None:
    episodes = [episode(5), episode(7), episode(6, "pull")]
    record(tmp_path / "arm", *episodes[:2])
    record(tmp_path / "arm", episodes[2])
    found, spec = import_lerobot(tmp_path / "arm", COLUMNS)
    assert spec.tasks == SPEC.tasks and spec.features["images.front"].shape == (8, 8, 3)
    for given, back in zip(episodes, found, strict=True):
        assert (back.task, back.source, back.seed) == (given.task, given.source, given.seed)
        assert torch.equal(back.state, given.state) and torch.equal(back.action, given.action)
        assert torch.equal(back.success, given.success)
        levels = back.obs["images.front"].float().mean((1, 2, 3))
        # Videos lose a little; the last image is not in the video, and is stored as it is.
        assert levels.tolist() == pytest.approx([10 * t + given.length for t in range(given.length + 1)], abs=3)
        assert (back.obs["images.front"][-1] == 10 * given.length + given.length).all()


def test_the_statistics_are_those_of_all_frames(tmp_path: Path) -> None:
    record(tmp_path / "arm", episode(5), episode(9))
    record(tmp_path / "arm", episode(7))
    stats = json.loads((tmp_path / "arm" / "meta/stats.json").read_text())
    states = torch.cat([episode(n).state[:-1] for n in (5, 9, 7)]).double().numpy()
    assert stats["observation.state"]["mean"] == pytest.approx(states.mean(0))
    assert stats["observation.state"]["std"] == pytest.approx(states.std(0))
    assert stats["observation.state"]["count"] == [21]
    levels = np.concatenate([10 * np.arange(n) + n for n in (5, 9, 7)]) / 255
    assert np.ravel(stats["observation.images.wrist"]["mean"]) == pytest.approx([levels.mean()] * 3)
    assert np.ravel(stats["observation.images.wrist"]["max"]) == pytest.approx([levels.max()] * 3)


def test_combined_statistics_by_hand() -> None:
    one, other = (stats_of({"x": np.array(values)}, {}, len(values)) for values in ([1.0, 3.0], [5.0]))
    both = combine_stats(one, other)["x"]
    assert both["mean"] == pytest.approx([3.0]) and both["std"] == pytest.approx([np.sqrt(8 / 3)])
    assert (both["min"], both["max"], both["count"]) == ([1.0], [5.0], [3])


@pytest.mark.parametrize("after", range(9))
def test_a_kill_between_any_two_files_loses_no_finished_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Tasks, two videos, data, episodes, statistics, spec, info: the ninth write is one of the next episode."""

    class Killed(BaseException):
        pass

    written: list[Path] = []
    write = recording.write_atomically

    def dying(path: Path, data: bytes) -> None:
        if len(written) == 8 + after:
            raise Killed
        written.append(path)
        write(path, data)

    monkeypatch.setattr(recording, "write_atomically", dying)
    with pytest.raises(Killed):
        record(tmp_path / "arm", episode(5), episode(7), episode(9))
    monkeypatch.undo()
    finished = 1 + (after == 8)
    assert len(import_lerobot(tmp_path / "arm", COLUMNS)[0]) >= finished
    info = json.loads((tmp_path / "arm" / "meta/info.json").read_text())
    assert info["total_episodes"] == finished
    record(tmp_path / "arm", episode(6))  # another length than the one that was interrupted
    lengths = [one.length for one in import_lerobot(tmp_path / "arm", COLUMNS)[0]]
    assert lengths == [5, 7][:finished] + [6]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    record(tmp_path / "arm", episode(5))
    narrow = {"front": (32, 48, 3)}
    with pytest.raises(UserError, match="its episodes have other cameras or another rate; choose another folder"):
        record(tmp_path / "arm", episode(5), cameras=narrow)
    with pytest.raises(UserError, match="its episodes have other cameras or another rate; choose another folder"):
        record(tmp_path / "arm", episode(5), spec=replace(SPEC, control_hz=20.0))
    with pytest.raises(UserError, match="its episodes have other features; choose another folder"):
        wide = replace(SPEC, action_low=(-1.0,) * 3, action_high=(1.0,) * 3)
        record(tmp_path / "arm", replace(episode(5), action=torch.zeros(5, 3)), spec=wide)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "letter.txt").touch()
    with pytest.raises(UserError, match=r"notes: it has letter\.txt and is no dataset; choose another folder"):
        record(tmp_path / "notes", episode(5))


def test_one_session_at_a_time(tmp_path: Path) -> None:
    made = Recording(tmp_path / "arm", SPEC, CAMERAS)
    with made.writer(), pytest.raises(UserError, match="another process is writing to it"):
        record(tmp_path / "arm", episode(5))


def test_a_robot_without_cameras_is_recorded_as_well(tmp_path: Path) -> None:
    record(tmp_path / "arm", episode(5), cameras={})
    (found,), _ = import_lerobot(tmp_path / "arm")
    assert torch.equal(found.state, episode(5).state)
