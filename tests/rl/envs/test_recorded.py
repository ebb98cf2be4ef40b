"""Post-training where no simulator stands in for the robot: recorded episodes, a dream to train in, one to judge."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rewards.errors import UserError
from rl import cli
from rl.compose import compose
from rl.config import TrainConfig
from rl.envs.recorded import Recorded
from rl.policies.api import policy_state
from rl.rounds.evaluate import evaluate_sim
from rl.verbs.prepare import prepare
from world_model.data.episodes import EpisodeStore
from world_model.wam.store import load_model
from world_model.wam.trust import SMALLEST

TASK = "button-press-topdown"


@pytest.fixture
def recorded(tiny: list[str], demonstrations: list[Any], tmp_path: Path) -> list[str]:
    """Overrides of a run on recorded episodes alone."""
    model = load_model(tiny[0].partition("=")[2])
    EpisodeStore(tmp_path / "episodes").append([e for e in demonstrations if e.task == TASK], model.spec)
    return [*tiny, "env.id=recorded", f"episodes={tmp_path / 'episodes'}"]


def make(overrides: list[str], num_envs: int = 3) -> tuple[TrainConfig, Recorded]:
    config = compose("dream", overrides, TrainConfig)
    return config, Recorded(config, load_model(config.checkpoint), (TASK,), num_envs, max_steps=24, seed=0)


def test_a_seed_names_where_an_episode_begins_and_how_it_goes(recorded: list[str]) -> None:
    config, env = make(recorded)
    episodes = EpisodeStore(config.episodes).load()
    env.set_episode_seeds([7, 5, 7])
    env.reset()
    for row, seed in enumerate((7, 5, 7)):
        assert torch.equal(env.context["state"][row, -1], episodes[seed % len(episodes)].state[0])
    post = prepare(config)
    try:
        together = evaluate_sim(post.policy, env, range(20, 26))
        assert [r.seed for r in together] == [*range(20, 26)] and {r.task for r in together} == {TASK}
        assert evaluate_sim(post.policy, env, [23]) == together[3:4]
    finally:
        post.close()
    assert env.record(True) == []  # a dream is no record


def test_what_another_robot_recorded_is_refused(recorded: list[str], tmp_path: Path) -> None:
    config, _ = make(recorded)
    model = load_model(config.checkpoint)
    episodes = EpisodeStore(config.episodes).load()
    EpisodeStore(tmp_path / "slow").append(episodes, replace(model.spec, control_hz=10.0))
    with pytest.raises(UserError, match=r"episodes=.*slow: recorded with other features, bounds or rate"):
        make([*recorded, f"episodes={tmp_path / 'slow'}"])


def test_the_judge_is_another_dream_than_is_trained_in(recorded: list[str]) -> None:
    config, env = make(recorded)
    model = load_model(config.checkpoint)
    judge = dict(env.model.named_parameters())
    same = {name: torch.equal(value, judge[name]) for name, value in model.named_parameters()}
    assert not all(same[name] for name in same if name.startswith("world."))
    assert all(same[name] for name in same if name.startswith(("encoder.", "action.", "read_out.")))


def test_the_training_of_the_judge_shows_its_progress(recorded: list[str]) -> None:
    config, shares = compose("dream", [*recorded, "dream.refit_steps=200"], TrainConfig), list[float]()
    Recorded(config, load_model(config.checkpoint), (TASK,), 3, shares.append, max_steps=24)
    # 40 steps of calibration, which count for a third, then 200 of the refit, of which every hundredth shows
    assert shares == pytest.approx([*(i / 120 for i in range(1, 41)), 2 / 3, 1.0, 1.0])


def test_a_success_counts_only_where_trust_is_as_good_as_on_the_record(recorded: list[str]) -> None:
    _, env = make(recorded)
    solved = lambda frames, task: (torch.ones(frames["state"].shape[:2]), torch.zeros(frames["state"].shape[:2]))  # noqa: E731
    env.model.success_and_progress = solved  # type: ignore[method-assign]
    actions = torch.zeros(3, env.chunk_size, 4)
    assert env.max_expected_error is not None and env.max_expected_error > SMALLEST
    env.max_expected_error = 1e3
    env.set_episode_seeds([1, 2, 3])
    env.reset()
    step = env.step_chunk(actions)
    assert step.is_success.all() and not step.truncated.any()
    env.max_expected_error = 0.9 * float(env.expected_error.min())
    env.set_episode_seeds([1, 2, 3])
    env.reset()
    step = env.step_chunk(actions)
    assert step.truncated.all() and not step.is_success.any()


def test_a_run_asks_no_simulator(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rl.envs.sim.SimEnv.__init__", None)
    assert cli.main(["train", "dream", *recorded]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "judge of recorded episodes 100/100 (100 %)" in out
    assert "success in a dream of what was recorded on fresh episodes" in out
    for words in ("steps of gates", "simulator's", "from the simulator", "simulator_steps"):
        assert words not in out
    assert re.search(r"│ reward │ [\d.]+ → [\d.]+ │", out)
    (folder,) = Path("runs/dream").iterdir()
    assert "updates, without a simulator." in (folder / "checkpoints" / "last" / "README.md").read_text()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("gate/accepted" in row for row in rows) and not (folder / "pairs.json").exists()
    assert "a dream of what was recorded" in (folder / "report.html").read_text()
    before = policy_state(prepare(compose("dream", recorded, TrainConfig)).policy)
    assert before.keys() == policy_state(prepare(compose(str(folder), [], TrainConfig)).policy).keys()


@pytest.mark.parametrize("override", ["env.kind=mix", "episodes=''", "dream.n_episodes=4"])
def test_what_it_cannot_be_without(recorded: list[str], override: str) -> None:
    with pytest.raises(UserError, match=r"env.simulator=recorded: set env.kind=dream, episodes=FOLDER and dream"):
        prepare(compose("dream", [*recorded, override], TrainConfig))


def test_episodes_of_another_task_are_none(recorded: list[str]) -> None:
    with pytest.raises(UserError, match=r"there are none of push; record some, or name others"):
        prepare(compose("dream", [*recorded, "env.tasks=[push]"], TrainConfig))
