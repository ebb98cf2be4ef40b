"""A policy that reads images: exported, behind a server, and on a robot it decides the same."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewards.errors import UserError
from rl.compose import compose
from rl.deploy import export, session
from rl.deploy.contract import CONTRACT, load_contract
from rl.deploy.export import export_policy
from rl.deploy.pilots import OnnxPilot, Pilot
from rl.deploy.remote_pilot import RemotePilot
from rl.deploy.robot_config import RobotConfig
from rl.deploy.safety import Limits
from rl.deploy.served import Served
from rl.deploy.server import Endpoint, serving
from rl.deploy.session import run_session
from rl.policies.wam import ModelPilot, load_exportable
from rl.robots.api import differences, make_robot
from rl.robots.fake import FakeRobot
from tests.rl.conftest import make_seeing
from world_model.data.episodes import EpisodeStore
from world_model.data.lerobot import import_lerobot
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model, save_model

LIMITS = Limits(low=(-1.0,) * 4, high=(1.0,) * 4, max_change=(2.0,) * 4, still=(0.0,) * 4, max_age_s=60.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeing") / "checkpoint"
    save_model(folder, make_seeing(), "tune")
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    export_policy(checkpoint, checkpoint.parent / "exported", n_action_steps=8)
    return checkpoint.parent / "exported"


class Moving(FakeRobot):
    """A robot whose two cameras show its state, and which waits for its commands."""

    real_time = False

    def __init__(self, model: WorldActionModel) -> None:
        super().__init__(model.spec)
        self.images = {name: np.zeros((40, 48, 3), np.uint8) for name in ("front", "wrist")}
        self.base = np.random.default_rng(0).integers(100, size=(40, 48, 3))

    def get_observation(self) -> dict[str, Any]:
        """See `FakeRobot`."""
        bright = 1000 * sum(self.values.values())
        image = (self.base + bright).clip(0, 255).astype(np.uint8)
        return {**super().get_observation(), "front": image, "wrist": 255 - image}


def run(pilot: Pilot, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> np.ndarray:
    """Run one episode; return the commands (20, 4)."""
    monkeypatch.setattr(session, "make_robot", lambda name, params, task: Moving(pilot))  # type: ignore[arg-type]
    fields = {"robot": "fake", "task": "push", "max_steps": 20, "n_action_steps": 8, "limits": LIMITS}
    (lived,) = run_session(pilot, RobotConfig(**{**fields, **changes}), say=lambda line: None)
    assert lived.reason == "20 steps"
    return np.array(lived.sent)


def test_the_export_and_the_server_decide_what_the_model_decides(
    checkpoint: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    model = load_model(checkpoint)
    expected = run(ModelPilot(model, 2), monkeypatch, episodes="here", dataset="arm")
    assert expected.std(0).min() > 1e-3
    assert run(OnnxPilot(exported), monkeypatch, episodes="exported") == pytest.approx(expected, abs=1e-4)
    with serving(Served(ModelPilot(model, 2), "tiny", "ab" * 32), Endpoint()) as url:
        remote = RemotePilot(url)
        assert run(remote, monkeypatch, episodes="served") == pytest.approx(expected, abs=1e-5)
        remote.close()
    # What the policy saw is in the store, what the cameras gave in the dataset.
    (episode,) = EpisodeStore("here").load()
    assert episode.obs["images.front"].shape == (4, 32, 32, 3)
    info = json.loads(Path("arm/meta/info.json").read_text())["features"]
    assert info["observation.images.wrist"]["shape"] == [40, 48, 3] and (info["action"]["shape"]) == [4]
    (recorded,), _ = import_lerobot("arm")
    assert torch.equal(recorded.action, episode.action) and torch.equal(recorded.state, episode.state)


def test_without_its_image_it_decides_otherwise(exported: Path) -> None:
    pilot = OnnxPilot(exported)
    policy = load_exportable(exported.parent / "checkpoint")
    state, task, noise, held, n_held, image = policy.graph.random_inputs(4, torch.Generator().manual_seed(0))
    obs = {"state": state[:1], "task": task[:1], "images.front": image[:1]}
    others = obs | {"images.front": image[1:2]}
    given = noise[:1], held[:1], torch.zeros_like(n_held[:1])
    assert (pilot.act(obs, *given) - pilot.act(others, *given)).abs().max() > 1e-4


def test_the_contract_describes_the_image(exported: Path) -> None:
    contract = load_contract(exported)
    (image,) = [port for port in contract["inputs"] if port["name"] == "images.front"]
    assert "scale it down by averaging over areas" in image.pop("about")
    assert image == {
        "name": "images.front",
        "dtype": "uint8",
        "shape": ["batch", 2, 32, 32, 3],
        "axes": ["batch", "frame, oldest first", "row", "column", "colour"],
        "unit": "levels of RGB",
        "low": 0,
        "high": 255,
        "every": 8,
        "images_per_s": 10.0,
    }
    assert contract["largest_difference"] <= 1e-4 and contract["compared_on"] == "1000 random observations"


def test_parity_is_measured_on_recorded_images(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    model = load_model(checkpoint)
    run(ModelPilot(model, 2), monkeypatch, episodes="here")
    policy = load_exportable(checkpoint)
    inputs, about = export.parity_inputs(policy, "here")
    assert about == "1000 recorded observations" and inputs[-1].shape == (1000, 2, 32, 32, 3)
    (episode,) = EpisodeStore("here").load()
    known = {image.numpy().tobytes() for image in episode.obs["images.front"]}
    assert {image.numpy().tobytes() for image in inputs[-1].flatten(0, 1)} <= known
    # Episodes of a checkpoint have latents, and their images are decoded.
    (encoded,) = model.encode_episodes([episode])
    EpisodeStore("latents").append([encoded], model.predicted_spec)
    inputs, about = export.parity_inputs(policy, "latents")
    assert about.endswith(", whose images were decoded from latents") and inputs[-1].shape == (1000, 2, 32, 32, 3)


def test_a_contract_of_other_images_is_refused(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "mine")
    contract = json.loads((folder / CONTRACT).read_text())
    contract["inputs"][-1]["shape"] = ["batch", 2, 64, 64, 3]
    (folder / CONTRACT).write_text(json.dumps(contract))
    with pytest.raises(UserError, match=r"the input 'images\.front' does not fit the sizes of its contract"):
        OnnxPilot(folder)


def test_the_preset_names_a_robot_that_the_built_in_policy_reads() -> None:
    config = compose("robot-sim-pixels", ["limits.image_ages_s.front=0.2", "map.crop.front=[8,8,80,80]"], RobotConfig)
    config.check()
    robot = make_robot(config.robot, config.params, config.task)
    assert robot.observation_features["front"] == robot.observation_features["side"] == (96, 96, 3)
    assert (config.limits.max_image_age_s, config.limits.image_ages_s) == (0.3, {"front": 0.2})
    assert config.dataset and config.limits.boxes.keys() == {"hand_pos"}
    spec = load_model("metaworld-pixels-tuned").spec
    assert differences(robot, spec, config.map, spec.control_hz) == []
    (row,) = differences(robot, spec, replace(config.map, crop={"front": [0, 0, 40, 40]}), spec.control_hz)
    assert row == ("images.front", "an image of at least 64 x 64", "40 x 40")
