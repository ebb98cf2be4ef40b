"""Images on a robot: which of them a policy gets, what is recorded, and what stops a session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewards.errors import UserError
from rl.deploy import session
from rl.deploy.frames import context_of, recorded, tensors_of
from rl.deploy.robot_config import RobotConfig
from rl.deploy.safety import Limits
from rl.deploy.session import run_session
from rl.policies.wam import ModelPilot
from rl.robots.api import Interface, RobotMap, differences
from rl.robots.fake import FakeRobot
from world_model.data.episodes import EpisodeStore
from world_model.spec import Feature, Spec
from world_model.wam.model import WorldActionModel

SPEC = Spec(
    {"state": Feature((1,)), "images.front": Feature((2, 2, 3), dtype="uint8", every=4)},
    (-1.0,),
    (1.0,),
    ("push",),
    10.0,
)
FRAMES = [{"state": np.array([float(t)]), "images.front": np.full((2, 2, 3), t, np.uint8)} for t in range(11)]


@pytest.mark.parametrize(
    ("n_frames", "states", "images"),
    [(1, [0, 0, 0], [0, 0, 0]), (3, [0, 1, 2], [0, 0, 2]), (10, [7, 8, 9], [5, 5, 9]), (11, [8, 9, 10], [6, 6, 10])],
)
def test_a_policy_gets_the_newest_image_and_the_one_of_a_camera_period_before(
    n_frames: int, states: list[int], images: list[int]
) -> None:
    context = context_of(FRAMES[:n_frames], SPEC, n_context_frames=3)
    assert context["state"][:, 0].tolist() == states
    assert context["images.front"][:, 0, 0, 0].tolist() == images
    obs = tensors_of(context)
    assert obs["state"].dtype == torch.float32 and obs["images.front"].dtype == torch.uint8
    assert obs["images.front"].shape == (1, 3, 2, 2, 3)


def test_an_episode_has_an_image_a_camera_period_and_the_last_one() -> None:
    obs, every = recorded(FRAMES, SPEC)
    assert obs["state"][:, 0].tolist() == list(range(11)) and every == {"images.front": 4}
    assert obs["images.front"][:, 0, 0, 0].tolist() == [0, 4, 8, 10] and obs["images.front"].dtype == torch.uint8


@pytest.fixture
def robot(seeing: WorldActionModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRobot:
    monkeypatch.chdir(tmp_path)
    robot = FakeRobot(seeing.spec)
    robot.real_time = False  # type: ignore[attr-defined]  # the machine may be busy
    robot.images["front"] = np.random.default_rng(0).integers(256, size=(48, 64, 3)).astype(np.uint8)
    monkeypatch.setattr(session, "make_robot", lambda name, params, task: robot)
    return robot


CONFIG = RobotConfig(
    robot="fake",
    task="push",
    max_steps=20,
    n_action_steps=8,
    limits=Limits(low=(-1.0,) * 4, high=(1.0,) * 4, max_change=(2.0,) * 4, still=(0.0,) * 4, max_age_s=60.0),
)


def test_a_session_with_a_camera_is_recorded_with_its_images(seeing: WorldActionModel, robot: FakeRobot) -> None:
    (lived,) = run_session(ModelPilot(seeing, 2), CONFIG, say=lambda line: None)
    assert lived.reason == "20 steps"
    (episode,) = EpisodeStore("runs/robot/fake").load()
    episode.check_fits(seeing.spec, "here")
    # 48 x 64 pixels are cropped to the middle square and scaled to 32 x 32; there is one every 8 steps, and the last.
    assert episode.obs["images.front"].shape == (4, 32, 32, 3) and episode.every == {"images.front": 8}
    middle = robot.images["front"][:, 8:56].astype(float)
    assert abs(float(episode.obs["images.front"].float().mean()) - middle.mean()) < 1
    assert seeing.encode_episodes([episode])[0].obs["latents"].shape == (4, 16)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (None, "images.front of the observation is None, expected (48, 64, 3) of uint8, as the robot describes it"),
        (np.zeros((48, 64, 3)), "images.front of the observation is (48, 64, 3) of float64, expected (48, 64, 3)"),
        (np.zeros((48, 64), np.uint8), "images.front of the observation is (48, 64) of uint8, expected (48, 64, 3)"),
        (np.zeros((16, 40, 3), np.uint8), "images.front of the observation is (16, 40, 3) of uint8, expected"),
    ],
)
def test_a_bad_image_stops_the_robot_before_a_command(
    seeing: WorldActionModel, robot: FakeRobot, image: Any, reason: str
) -> None:
    robot.misbehave = lambda observation: {**observation, "front": image}
    (lived,) = run_session(ModelPilot(seeing, 2), CONFIG, say=lambda line: None)
    assert lived.stopped and lived.reason.startswith(reason) and not lived.sent
    assert all(value == 0 for action in robot.sent for value in action.values())  # it stands still


def test_a_robot_without_the_camera_is_refused_and_a_map_names_another(seeing: WorldActionModel) -> None:
    blind = FakeRobot(replace(seeing.spec, features={"state": seeing.spec.features["state"]}))
    (row,) = differences(blind, seeing.spec, RobotMap(), seeing.spec.control_hz)
    assert row[:2] == ("images.front", "an image of 32 x 32") and row[2].startswith("no such; it has hand_pos.0")
    with pytest.raises(UserError, match=r"nothing was sent: images\.front: expected an image of 32 x 32"):
        Interface(blind, seeing.spec, RobotMap(), seeing.spec.control_hz)
    blind.images["wrist"] = np.zeros((64, 64, 3), np.uint8)
    interface = Interface(blind, seeing.spec, RobotMap(images={"front": "wrist"}), seeing.spec.control_hz)
    _, images, _, _ = interface.observe()
    assert images["images.front"].shape == (32, 32, 3)
