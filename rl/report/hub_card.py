"""The front matter of a model card on the Hugging Face Hub: YAML from the `config.json` of a checkpoint.

The config may come from somebody else: an entry of an unexpected kind is left out, and all text is quoted by PyYAML.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from rewards.errors import UserError
from world_model.hub import PREFIX, parse_hub_name

TAGS = ["wamtune", "robotics"]

MOST_TASKS = 100
"""Tasks with figures in the front matter at most; the card itself shows all of them."""

MOST_EPISODES = 1_000_000_000
"""Largest number of episodes that is believed."""


def with_front_matter(card: str, config: dict[str, Any], name: str, license: str) -> str:
    """Return a model card that begins with front matter; the front matter of an earlier upload is replaced.

    Args:
        card: the text of README.md, which stays as it is.
        config: of the checkpoint, as `load_checkpoint` returns it.
        name: of the model, which the Hub shows beside its figures.
        license: identifier of a license on the Hub, such as apache-2.0.
    """
    return f"---\n{front_matter(config, name, license)}---\n{_FRONT_MATTER.sub('', card)}"


def front_matter(config: dict[str, Any], name: str, license: str) -> str:
    """Return the front matter as YAML; arguments are those of `with_front_matter`."""
    tags = [*TAGS]
    brought = isinstance(config.get("policy"), dict)  # a policy of LeRobot, or of the user's own
    if not brought and config.get("policy") != "gaussian":  # which have no world model
        tags.append("world-model")
    if config.get("stage") == "rl":
        tags.append("reinforcement-learning")
    entries: dict[str, Any] = {
        "library_name": "lerobot" if brought and config["policy"].get("func") == "lerobot" else "wamtune",
        "pipeline_tag": "robotics",
        "license": license,
        "tags": tags,
    }
    if base := _base_model(config.get("parent")):
        entries["base_model"] = base
    if results := _results(config.get("metrics")):
        entries["model-index"] = [{"name": name, "results": results}]
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=10_000)


_FRONT_MATTER = re.compile(r"\A---\n.*?^---\n", re.MULTILINE | re.DOTALL)


def _base_model(parent: Any) -> str | None:
    """Return the repository that a checkpoint was trained from; other parents have no name on the Hub."""
    if not isinstance(parent, str) or not parent.startswith(PREFIX):
        return None
    try:
        return parse_hub_name(parent).repo
    except UserError:
        return None


def _results(metrics: Any) -> list[dict[str, Any]]:
    """Return an entry of `model-index` for each task whose success was measured; [] without figures."""
    success = metrics.get("success") if isinstance(metrics, dict) else None
    rows = success if isinstance(success, dict) else {}
    # The mean over tasks has no interval, so it stays in the text.
    results = [_result(task, row) for task, row in rows.items() if task != "mean" and _is_measured(row)]
    return results[:MOST_TASKS]


def _is_measured(row: Any) -> bool:
    """Whether a row holds a success rate with its interval, 0 to 1, and a number of episodes."""
    if not isinstance(row, dict):
        return False
    # An interval of Wilson may end a rounding error outside of [0, 1].
    shares = all(_is_within(row.get(key), -1e-9, 1 + 1e-9) for key in ("rate", "low", "high"))
    return shares and _is_within(row.get("n"), 1, MOST_EPISODES)


def _is_within(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high  # false for NaN


def _result(task: str, row: dict[str, Any]) -> dict[str, Any]:
    # Unpaired surrogates can be written in JSON, and cannot in UTF-8.
    text = " ".join(task.encode("utf-8", "replace").decode().split())[:200] or "task"
    low, high = (round(100 * min(max(row[key], 0.0), 1.0), 1) for key in ("low", "high"))
    n = int(row["n"])
    metric = {
        "type": "success_rate",
        "name": f"success rate in %, 95 % interval {low:g} to {high:g}, {n:,} episodes",
        "value": round(100 * min(max(row["rate"], 0.0), 1.0), 2),
        "args": {"low": low, "high": high, "n_episodes": n},
    }
    identifier = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "task"
    return {
        "task": {"type": "robotics", "name": "robotics"},
        "dataset": {"type": identifier, "name": text},  # what was measured on: the Hub knows no simulators
        "metrics": [metric],
    }
