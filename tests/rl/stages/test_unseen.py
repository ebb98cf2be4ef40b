"""benchmarks/unseen.py: its rewards against the simulator's own success, and a run from ten episodes."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import unseen
from benchmarks.unseen_rewards import WITHIN, closer, reached
from rewards.api import Transition
from rl.envs.metaworld.task_sets import ML45_TEST
from rl.envs.sim import make_spec
from rl.stages.collect import collect_scripted
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.windows import Windows
from world_model.wam.config import ModelConfig, TextConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.store import save_model
from world_model.wam.training import fit_statistics

KNOWN = ("push", "drawer-open")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that reads sentences and has learned nothing, of two other tasks."""
    torch.manual_seed(0)
    text = TextConfig(n_buckets=256, width=32, n_layers=1, n_heads=2)
    sizes = {"width": 32, "world_width": 48, "action_width": 32, "n_layers": 1, "n_heads": 2}
    config = ModelConfig(task_conditioning="text", text=text, **sizes)  # type: ignore[arg-type]
    model = WorldActionModel(config, make_spec("metaworld", KNOWN))
    episodes = collect_scripted("expert", KNOWN, 1)
    fit_statistics(model, Windows(episodes, KNOWN, config.n_context_frames, config.chunk_size), n=500)
    folder = tmp_path_factory.mktemp("unseen")
    EpisodeStore(folder / "episodes").append(episodes, model.spec)
    save_model(folder / "tiny", model, "tune", extra=EpisodeStore(folder / "episodes").files())
    return str(folder / "tiny")


def steps_of(episode: Episode) -> Transition:
    """Return the steps of an episode as the rows of one transition."""
    state = episode.obs["state"]
    n = episode.length
    never = torch.zeros(n, dtype=torch.bool)
    slices = {name: slice(*of) for name, of in make_spec("metaworld", [episode.task]).features["state"].slices.items()}
    return Transition(
        state=state[:-1],
        next_state=state[1:],
        action=episode.action,
        action_history=episode.action[:, None].repeat(1, 3, 1),
        success=episode.success,
        terminated=never,
        elapsed=torch.arange(1, n + 1),
        task=torch.zeros(n, dtype=torch.long),
        slices=slices,
    )


def test_the_reward_is_the_success_of_the_simulator() -> None:
    """After each step of the experts' episodes: the sum of `reached` so far is 1 where the simulator says success."""
    assert set(WITHIN) == set(ML45_TEST)
    for episode in collect_scripted("expert", ML45_TEST, 2):
        found = reached(steps_of(episode), task=episode.task).cumsum(0)
        assert torch.equal(found > 0.5, episode.success), episode.task
        assert bool(episode.success.any()) or episode.task != "door-unlock"


def test_closer_adds_up_to_the_way_of_object_and_hand() -> None:
    (episode,) = collect_scripted("expert", ["hand-insert"], 1)
    steps = steps_of(episode)
    state = episode.obs["state"][[0, -1]]
    hand, of, goal = (state[:, steps.slices[name]] for name in ("hand_pos", "object_pos", "goal_pos"))
    first, last = (of - goal).norm(dim=1) + 0.5 * (hand - of).norm(dim=1)
    assert float(closer(steps, task="hand-insert").sum()) == pytest.approx(float(first - last), abs=1e-5)


SMALL = "dream.n_updates=1 dream.n_epochs=1 dream.n_envs=30 dream.n_starts=4 dream.horizon=2 dream.refit_steps=2"
TINY = [*SMALL.split(), "ppo.n_epochs=1", "ppo.batch_size=60", "ppo.critic_warmup_steps=2"]


def test_ten_episodes_are_ten_in_both_methods_and_there_is_no_demonstration(checkpoint: str) -> None:
    for method in ("dream", "sim"):
        row = {"checkpoint": checkpoint, "method": method, "task": "box-close", "k": 10, "seed": 0, "shaping": 0.0}
        config = unseen.config_of(row | {"changes": ""}, n_eval=4)
        assert config.ppo.bc_coef == 0 and not config.gate.enabled and config.n_rounds == 1
        assert config.total_timesteps == 10 * config.env.max_steps == 1520 or method == "dream"
        assert [name for name, term in config.rewards.items() if term is not None] == ["reached"]
    assert config.env.n_envs == 10
    of_many = unseen.config_of(row | {"k": 150, "method": "dream", "changes": ""}, n_eval=4)
    assert of_many.n_rounds * of_many.dream.n_episodes == 150


def test_the_curve_with_a_tiny_model(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    command = ["unseen.py", checkpoint, "--tasks", "box-close", "--episodes", "0", "10", "--n-eval", "4"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path), "--shaping", "1", "--set", *TINY])
    monkeypatch.setattr(unseen, "N_EVAL_ENVS", 4)
    monkeypatch.setattr(unseen, "SAC", partial(unseen.SAC, policy_kwargs={"net_arch": [8]}, batch_size=8))
    unseen.main()
    rows = unseen.read(tmp_path / "results.jsonl")
    assert [(row["method"], row["k"]) for row in rows] == [
        ("start", 0),
        ("dream", 10),
        ("imitate", 10),
        ("sim", 10),
        ("sac", 10),
    ]
    assert all(len(row["success"]) == 4 for row in rows)
    # all in: ten episodes of 152 steps, none of them cut short by a success
    assert [row["sim_steps"] for row in rows] == [0, 1520, 1520, 1520, 1520]
    assert [bool(row["dream"]) for row in rows] == [True, True, False, False, False] and rows[0]["dream"]["n"] == 4
    printed = capsys.readouterr().out
    assert "| episodes | method | box-close | mean [95 %] |" in printed and "of 4 |" in printed
    monkeypatch.setattr(unseen, "run", lambda *_: pytest.fail("all runs have finished"))
    unseen.main()
