"""What a step takes, asked before the model is built, against what a small model really takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.conftest import CONFIG, SPEC
from world_model.tree import n_bytes
from world_model.wam.cost import RandomWindows, counted_activations, step_cost
from world_model.wam.model import WorldActionModel
from world_model.wam.training import fit_statistics, train_stage
from world_model.wam.training_config import StageConfig

CPU = torch.device("cpu")
STAGE = StageConfig(batch_size=64)


def taken(stage: StageConfig, n_layers: int) -> tuple[dict[str, int], WorldActionModel]:
    """Bytes that a step of a real model takes, and the model."""
    model = WorldActionModel(replace(CONFIG, n_layers=n_layers), SPEC)
    windows, saved = RandomWindows(model), dict[str, Any]()
    fit_statistics(model, windows, n=100)
    with counted_activations(model) as activations:
        train_stage("pretrain", model, windows, replace(stage, n_steps=1), save=lambda step, state: saved.update(state))
    moments = [v for of in saved["optimizer"]["state"].values() for name, v in of.items() if name != "step"]
    found = {
        "weights": n_bytes(list(model.parameters())),
        "gradients": n_bytes([p.grad for p in model.parameters() if p.grad is not None]),
        "Adam": n_bytes(moments),
        "activations": activations.most,
    }
    return found, model


def test_memory_is_that_of_a_model_that_was_built() -> None:
    cost = step_cost(replace(CONFIG, n_layers=5), SPEC, STAGE, CPU)
    found, model = taken(STAGE, n_layers=5)
    asked = cost.memory()
    assert asked["weights"] == found["weights"]
    # A few weights are trained in the mode `policy` alone, which this stage leaves out.
    for name in ("gradients", "Adam"):
        assert found[name] <= asked[name] <= 1.06 * found[name]
    assert asked["activations"] == pytest.approx(found["activations"], rel=0.05)
    assert cost.n_weights == sum(p.numel() for p in model.parameters()) and cost.seconds > 0


def test_parts_and_recomputing_take_less_memory() -> None:
    config = replace(CONFIG, n_layers=8)
    whole, parts, again = (
        step_cost(config, SPEC, replace(STAGE, **change), CPU).activations
        for change in ({}, {"n_parts": 4}, {"recompute": True})
    )
    assert parts == pytest.approx(whole / 4, rel=0.1)
    assert again < 0.5 * whole
    # What is kept between the layers was really counted; on top of it comes one layer that is computed again.
    kept = taken(replace(STAGE, recompute=True), n_layers=8)[0]["activations"]
    assert kept < again < kept + 0.3 * whole


def test_processes_share_the_layers() -> None:
    cost = step_cost(CONFIG, SPEC, STAGE, CPU)
    alone, one_of_four = (sum(n for name, n in cost.memory(k).items() if name != "activations") for k in (1, 4))
    assert alone - one_of_four == 16 * (cost.n_layer_weights - cost.n_layer_weights // 4)
