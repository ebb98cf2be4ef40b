"""Who flies a robot: a checkpoint and its export decide the same, chunk for chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewards.errors import UserError
from rl.deploy import export, session
from rl.deploy.export import export_policy
from rl.deploy.pilots import Decider, OnnxPilot, load_pilot
from rl.deploy.robot_config import RobotConfig
from rl.deploy.safety import Limits
from rl.deploy.session import run_session
from rl.policies.wam import ModelPilot, WamDenoiser, load_actor
from rl.robots.fake import FakeRobot
from world_model.data.episodes import Episode, EpisodeStore
from world_model.wam.model import WorldActionModel
from world_model.wam.store import save_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, _trained: WorldActionModel) -> tuple[Path, Path]:
    """A checkpoint, and its export."""
    folder = tmp_path_factory.mktemp("pilots")
    save_model(folder / "point", _trained, "tune")
    export_policy(folder / "point", folder / "exported")
    return folder / "point", folder / "exported"


def test_the_export_decides_what_the_checkpoint_does(folders: tuple[Path, Path], windows: Any) -> None:
    batch = windows.sample(20, torch.Generator().manual_seed(0))
    model, onnx = (Decider(load_pilot(str(folder), 2), "rest", seed=3) for folder in folders)
    assert isinstance(model.pilot, ModelPilot) and isinstance(onnx.pilot, OnnxPilot)
    assert onnx.pilot.spec == model.pilot.spec
    for i, (frames, actions) in enumerate(zip(batch.context["state"].numpy(), batch.actions.numpy(), strict=True)):
        held = actions[: i % 4]
        ours, theirs = (decide({"state": frames}, held) for decide in (model, onnx))
        assert np.abs(ours - theirs).max() <= 1e-5
        assert np.array_equal(theirs[: len(held)], held)


def test_a_checkpoint_acts_with_the_steps_of_its_training(tmp_path: Path, _trained: WorldActionModel) -> None:
    run = "n_action_steps: 2\nppo: {n_denoising_steps: 5}\n"
    save_model(tmp_path / "of_a_run", _trained, "rl", about={"config": run})
    folder = str(tmp_path / "of_a_run")
    denoiser = WamDenoiser(load_actor(folder))
    assert (denoiser.n_denoising_steps, denoiser.n_action_steps) == (5, 2)
    for given, taken in ((None, 5), (3, 3)):
        pilot = load_pilot(folder, given)
        assert isinstance(pilot, ModelPilot) and pilot.n_denoising_steps == taken
    assert WamDenoiser(_trained).n_denoising_steps == 2  # of no run


def test_a_checkpoint_that_only_predicts_flies_no_robot(tmp_path: Path, _trained: WorldActionModel) -> None:
    save_model(tmp_path / "seer", _trained, "pretrain")
    with pytest.raises(UserError, match="seer cannot act, it only predicts: teach it with wamtune tune"):
        load_pilot(str(tmp_path / "seer"))
    with pytest.raises(UserError, match="seer cannot act, it only predicts"):
        export_policy(tmp_path / "seer", tmp_path / "exported")


def test_an_export_runs_a_robot_and_reads_nothing_out(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    pilot = load_pilot(str(folders[1]), 2)
    monkeypatch.setattr(session, "make_robot", lambda name, params, task: FakeRobot(pilot.spec))
    limits = Limits(low=(-1.0,) * 2, high=(1.0,) * 2, max_change=(0.5,) * 2, still=(0.0,) * 2, max_age_s=4.0)
    config = RobotConfig(robot="fake", task="reach", max_steps=6, n_action_steps=2, limits=limits, max_late=1000)
    (lived,) = run_session(pilot, config, say=lambda line: None)
    assert len(lived.sent) == 6 and len(EpisodeStore("runs/robot/fake")) == 1
    with pytest.raises(UserError, match="success=read_out: only the checkpoint of a world-action model has a"):
        session.make_judge("read_out", pilot, "reach", lambda: None)


def test_parity_is_measured_on_recorded_observations(
    folders: tuple[Path, Path], tmp_path: Path, windows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = (folders[1] / "policy.onnx").read_bytes()
    monkeypatch.setattr(export, "to_onnx", lambda policy: graph)  # of the same weights: written once is enough
    episodes: list[Episode] = windows.episodes
    spec = load_pilot(str(folders[0]), 2).spec
    EpisodeStore(tmp_path / "recorded").append(episodes, spec)
    contract = export_policy(folders[0], tmp_path / "exported", episodes=str(tmp_path / "recorded"))
    assert contract["compared_on"] == "1000 recorded observations"
    assert 0 < contract["largest_difference"] <= 1e-5
    with pytest.raises(UserError, match=r"none: no episodes of reach, rest here; name others or leave it out"):
        export_policy(folders[0], tmp_path / "again", episodes=str(tmp_path / "none"))


def test_an_export_that_cannot_go_on_from_actions_is_refused(folders: tuple[Path, Path], monkeypatch: Any) -> None:
    from rl.deploy import pilots

    contract = pilots.load_contract(folders[1])
    contract["inputs"] = contract["inputs"][:2]
    monkeypatch.setattr(pilots, "load_contract", lambda folder: contract | {"policy": "gaussian"})
    with pytest.raises(UserError, match="policy=gaussian plans no chunk beside another; run a flow policy"):
        OnnxPilot(folders[1])
