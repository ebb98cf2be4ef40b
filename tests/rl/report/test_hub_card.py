"""The front matter of a card on the Hub: what it says of a checkpoint, and that nothing in a config can break it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rl.report.hub_card import front_matter, with_front_matter
from world_model.checkpoint import BUILTIN

ROW = {"rate": 0.5, "low": 0.25, "high": 0.75, "n": 12}


def entries(**config: Any) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(front_matter(config, "pole", "apache-2.0"))
    return found


def measured(**success: Any) -> list[dict[str, Any]]:
    """Return the results in the front matter of a checkpoint with these rows of success."""
    found = entries(metrics={"success": success})
    return found["model-index"][0]["results"] if "model-index" in found else []


def test_a_checkpoint_with_figures() -> None:
    config = {"stage": "rl", "parent": "hf://ann/base@v1", "metrics": {"success": {"push": ROW, "mean": {"rate": 0.5}}}}
    metric = {
        "type": "success_rate",
        "name": "success rate in %, 95 % interval 25 to 75, 12 episodes",
        "value": 50.0,
        "args": {"low": 25.0, "high": 75.0, "n_episodes": 12},
    }
    result = {
        "task": {"type": "robotics", "name": "robotics"},
        "dataset": {"type": "push", "name": "push"},
        "metrics": [metric],
    }
    assert entries(**config) == {
        "library_name": "wamtune",
        "pipeline_tag": "robotics",
        "license": "apache-2.0",
        "tags": ["wamtune", "robotics", "world-model", "reinforcement-learning"],
        "base_model": "ann/base",
        "model-index": [{"name": "pole", "results": [result]}],
    }


def test_a_gaussian_policy_has_no_world_model() -> None:
    tags = ["wamtune", "robotics", "reinforcement-learning"]
    assert entries(stage="rl", policy="gaussian")["tags"] == tags


def test_the_built_in_checkpoint() -> None:
    config = json.loads((BUILTIN / "metaworld-tuned" / "config.json").read_text())
    found = entries(**config)
    (index,) = found["model-index"]
    assert len(index["results"]) == 12 and "base_model" not in found  # its parent is no name on the Hub
    hammer = next(result for result in index["results"] if result["dataset"]["name"] == "hammer")
    assert hammer["metrics"][0]["args"] == {"low": 28.2, "high": 46.8, "n_episodes": 100}


@pytest.mark.parametrize("metrics", [None, {}, {"prediction": {}}, {"success": {}}, {"success": [1]}, "x", 3])
def test_without_figures_there_is_no_model_index(metrics: Any) -> None:
    assert entries(metrics=metrics).keys() == {"library_name", "pipeline_tag", "license", "tags"}


@pytest.mark.parametrize(
    "row",
    [
        None,
        "0.5",
        {"rate": 0.5},
        {**ROW, "rate": float("nan")},
        {**ROW, "low": float("-inf")},
        {**ROW, "high": 7.0},
        {**ROW, "rate": "0.5\n- x: y"},
        {**ROW, "rate": True},
        {**ROW, "n": 0},
        {**ROW, "n": float("inf")},
        {**ROW, "n": 10**400},
        {**ROW, "n": "many"},
    ],
)
def test_a_figure_of_another_kind_is_left_out(row: Any) -> None:
    assert [result["dataset"]["name"] for result in measured(push=row, reach=ROW)] == ["reach"]


@pytest.mark.parametrize(
    "task",
    ["a: [b", "---\nlicense: mit\n---", "yes", "\ud800", "*x", "\x00\x1b", "", "{", "!!python/name:os.system", "é"],
)
def test_a_hostile_name_stays_text(task: str) -> None:
    text = front_matter({"metrics": {"success": {task: ROW}}}, "pole", "mit")
    text.encode()
    assert "\n---" not in text
    (result,) = yaml.safe_load(text)["model-index"][0]["results"]
    assert isinstance(result["dataset"]["name"], str) and result["metrics"][0]["value"] == 50.0


@pytest.mark.parametrize("parent", [None, 3, "", "metaworld-tuned", "runs/demo", "ann/base", "hf://a: b", "hf://x"])
def test_a_parent_without_a_name_on_the_hub_is_left_out(parent: Any) -> None:
    assert "base_model" not in entries(parent=parent)


def test_the_text_of_the_card_stays(tmp_path: Path) -> None:
    card = "# Pole\n\nText.\n\n---\n\nMore.\n"
    once = with_front_matter(card, {}, "pole", "mit")
    assert once.startswith("---\nlibrary_name: wamtune\n") and once.endswith(f"\n---\n{card}")
    assert with_front_matter(once, {}, "pole", "mit") == once
    assert "license: apache-2.0\n" in with_front_matter(once, {}, "pole", "apache-2.0")
