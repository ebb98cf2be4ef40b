"""The folder of a policy of LeRobot, as files; tests/lerobot loads it with LeRobot."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from rewards.errors import UserError
from rl.verbs import cp
from world_model.view import View
from world_model.wam.lerobot import lerobot_files
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model, save_model


def test_the_config_has_the_features_by_lerobots_names_and_rebuilds_the_model(model: WorldActionModel) -> None:
    config = json.loads(lerobot_files(model, n_denoising_steps=3, n_action_steps=2)["config.json"])
    assert config["type"] == "wamtune" and (config["n_denoising_steps"], config["n_action_steps"]) == (3, 2)
    assert config["input_features"] == {"observation.state": {"type": "STATE", "shape": [4]}}
    assert config["output_features"] == {"action": {"type": "ACTION", "shape": [2]}}
    assert WorldActionModel.from_config(config).spec == model.spec


def test_images_come_first_by_channel() -> None:
    model = load_model("metaworld-pixels-tuned")
    files = lerobot_files(model, 2, 8)
    features = json.loads(files["config.json"])["input_features"]
    assert features["observation.images.front"] == {"type": "VISUAL", "shape": [3, 64, 64]}
    assert features["observation.state"] == {"type": "STATE", "shape": [4]}
    # The camera is in the plug-in's default position, so the command does not name it.
    assert "--env.obs_type=pixels_agent_pos --env.image_size=64\n" in files["README.md"].decode()
    model.config.views["front"] = View(azimuth=90.0)
    assert """--env.cameras='{"front": {"azimuth": 90.0}}'""" in lerobot_files(model, 2, 8)["README.md"].decode()


def test_weights_have_the_names_of_the_policys_modules(model: WorldActionModel) -> None:
    tensors = load(lerobot_files(model, 2, 4)["model.safetensors"])
    expected = model.state_dict()
    assert tensors.keys() == {f"model.{name}" for name in expected}
    assert all(torch.equal(tensors[f"model.{name}"], value) for name, value in expected.items())


def test_the_readme_has_one_front_matter(model: WorldActionModel) -> None:
    readme = lerobot_files(model, 2, 4, card="---\nlicense: mit\n---\n\n# Mine\n")["README.md"].decode()
    assert readme.startswith("---\nlibrary_name: lerobot\n") and readme.endswith("# Mine\n")
    assert readme.count("\n---\n") == 1 and "license: mit" not in readme


def test_cp_writes_it_with_the_numbers_of_the_run(model: WorldActionModel, tmp_path: Path) -> None:
    run = "n_action_steps: 2\nppo: {n_denoising_steps: 5}\n"
    save_model(tmp_path / "mine", model, stage="rl", about={"config": run}, readme="# Mine\n")
    cp.run([str(tmp_path / "mine"), str(tmp_path / "policy"), "format=lerobot"])
    assert {path.name for path in (tmp_path / "policy").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "policy_postprocessor.json",
        "policy_preprocessor.json",
    }
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert (config["n_denoising_steps"], config["n_action_steps"]) == (5, 2)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["format=onnx"], "cp mine: expected format=lerobot and no other key, got format=onnx"),
        (["format=lerobot", "a=1"], "cp mine: expected format=lerobot and no other key, got format=lerobot a=1"),
        (["format=lerobot"], "there is there already and was not touched; choose another destination"),
    ],
)
def test_mistakes(words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("mine")
    with pytest.raises(UserError, match=f"^{line}$"):
        cp.run(["mine", "there", *words])
    assert Path("there").read_text() == "mine"


def test_a_checkpoint_that_cannot_act_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^metaworld-pretrained cannot act, it only predicts"):
        cp.run(["metaworld-pretrained", str(tmp_path / "policy"), "format=lerobot"])
    assert not (tmp_path / "policy").exists()
