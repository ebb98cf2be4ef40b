"""A checkpoint whose manifest is right and whose content is not: refused by name, before memory is taken for it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from rewards.errors import UserError
from world_model.checkpoint import load_checkpoint, save_checkpoint
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model, save_model


@pytest.fixture
def good(model: WorldActionModel, tmp_path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    save_model(tmp_path / "good", model, "tune")
    return load_checkpoint(tmp_path / "good")


@pytest.mark.parametrize(
    ("way", "value", "reason"),
    [
        (("model", "width"), 10**12, "model.width=1000000000000: expected a whole number from 1 to 8192"),
        (("model", "n_layers"), -1, "model.n_layers=-1: expected a whole number from 1 to 128"),
        (("model", "n_heads"), True, "model.n_heads=True: expected a whole number from 1 to 256"),
        (("model", "chunk_size"), 4.0, "model.chunk_size=4.0: expected a whole number from 1 to 1024"),
        (("spec", "control_hz"), 0.0, "spec.control_hz: 0.0, expected a finite number above 0"),
        (("spec", "action_high"), [-2.0, 1.0], "each low below its high"),
        (("spec", "tasks"), [3], "spec.tasks: [3], expected names"),
        (("spec", "features", "state", "shape"), [10**9], "expected a shape of 1 to 100,000, slices within it"),
        (("spec", "features", "state", "slices"), {"object_pos": [0, 99]}, "slices within it"),
        (("model",), None, "does not describe a world-action model"),
        (("stage",), [], "stage is [], expected a word"),
    ],
)
def test_a_config_that_no_model_has_is_refused(good, way, value, reason, tmp_path: Path) -> None:
    config, tensors = copy.deepcopy(good[0]), good[1]
    node = config
    for key in way[:-1]:
        node = node[key]
    node[way[-1]] = value
    save_checkpoint(tmp_path / "bad", config, tensors)
    with pytest.raises(UserError) as caught:
        load_model(tmp_path / "bad")
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_sizes_that_the_weights_do_not_confirm_take_no_memory(good, tmp_path: Path) -> None:
    config, tensors = copy.deepcopy(good[0]), good[1]
    config["model"]["world_width"] = 8192  # 2 GB of weights, if they were made
    save_checkpoint(tmp_path / "bad", config, tensors)
    with pytest.raises(UserError, match=r"has shape .*, config.json says"):
        load_model(tmp_path / "bad")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_not_loaded(good, value: float, tmp_path: Path) -> None:
    config, tensors = good
    tensors["action.out.bias"][0] = value
    save_checkpoint(tmp_path / "bad", config, tensors)
    with pytest.raises(UserError) as caught:
        load_model(tmp_path / "bad")
    assert str(caught.value) == (
        f"{tmp_path / 'bad'}: tensor 'action.out.bias' holds a value that is not finite; nothing was loaded"
    )
