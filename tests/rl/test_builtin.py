"""The built-in checkpoints do what their cards say, on a few fresh episodes."""

import json
from collections import Counter

import pytest
import torch

from rl.stage_collect import collect_scripted
from world_model.checkpoint import builtin_checkpoints, find_checkpoint
from world_model.episodes import EpisodeStore
from world_model.metrics import inverse_metrics, prediction_metrics
from world_model.store import load_model

TASKS = ("push", "pick-place")
LAST_MILE = ("assembly", "box-close", "hand-insert", "peg-insert-side", "hammer", "pick-place-wall")


@pytest.fixture(scope="module")
def episodes():
    """Of seeds that no training saw."""
    return collect_scripted("expert", TASKS, 3, seed=900_000) + collect_scripted("noisy", TASKS, 3, seed=900_100)


def test_both_are_there_small_and_of_twelve_tasks():
    assert builtin_checkpoints() == ["metaworld-pretrained", "metaworld-tuned"]
    for name in builtin_checkpoints():
        size = sum(file.stat().st_size for file in find_checkpoint(name).iterdir())
        assert size < 11e6
        assert len(load_model(name).spec.tasks) == 12


def test_few_demonstrations_made_the_tuned_one():
    episodes = EpisodeStore(find_checkpoint("metaworld-tuned")).load()
    counts = Counter(episode.task for episode in episodes)
    assert len(counts) == 12 and max(counts.values()) <= 20
    assert all(episode.source == "expert" and episode.is_success for episode in episodes)


def test_the_card_says_how_good_it_is():
    config = json.loads((find_checkpoint("metaworld-tuned") / "config.json").read_text())
    success = config["metrics"]["success"]
    assert all(0.3 <= success[task]["rate"] <= 0.7 for task in LAST_MILE)  # room for the last mile
    assert config["metrics"]["prediction"]["mean"]["error_ratio"] < 0.35


@pytest.mark.parametrize("name", ["metaworld-pretrained", "metaworld-tuned"])
def test_it_predicts_objects_and_explains_actions(name, episodes):
    model = load_model(name)
    windows = model.windows(episodes)
    figures = prediction_metrics(model, windows)
    for task in TASKS:
        assert figures[task]["n"] > 50
        assert figures[task]["error_ratio"] < 0.5 and figures[task]["shuffle_ratio"] > 1.5
    expert = model.windows(episodes[:6])
    assert inverse_metrics(model, expert, n=256)["inverse_error"] < 0.5  # 1 is what the mean action gives


def test_tuning_left_the_world_encoder_alone():
    one, other = (load_model(name).encoder.state_dict() for name in builtin_checkpoints())
    assert all(torch.equal(one[name], other[name]) for name in one)
