"""A simulator fitted to episodes: what was changed is found again, and what cannot be fitted is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from rewards.errors import UserError
from rl import cli
from rl.compose import compose
from rl.config import TrainConfig
from rl.envs.metaworld import fit as fitting
from rl.envs.metaworld.events import Event, Perturbed
from rl.envs.metaworld.fit import Fit, fit
from rl.envs.metaworld.tasks import MetaWorldTask
from rl.envs.sim import make_spec
from world_model.data.episodes import Episode, EpisodeStore
from world_model.spec import Feature, Spec

TASK = "button-press-topdown"
TRUE = {"gain": 0.6, "delay": 2.0, "noise": 0.002}


def lived(seeds: list[int], n_steps: int = 25) -> list[Episode]:
    """Episodes of smooth random actions on an arm that is not as the simulator says."""
    task = Perturbed(MetaWorldTask(TASK), {k: Event(k, "startup", v, v) for k, v in TRUE.items()})  # type: ignore[arg-type]
    episodes = []
    for seed in seeds:
        drawn = np.random.default_rng(seed).uniform(-1, 1, (n_steps // 5, 4)).astype(np.float32)
        actions = drawn.repeat(5, axis=0)
        frames = [task.reset(seed), *(task.step(action)[0] for action in actions)]
        state, success = torch.tensor(np.stack(frames)), torch.zeros(len(actions), dtype=torch.bool)
        episodes.append(Episode({"state": state}, torch.tensor(actions), success, TASK, "robot", seed))
    return episodes


def test_what_was_changed_is_found_again() -> None:
    told: list[float] = []
    found = fit(TASK, lived([1, 2, 3, 4]), n_steps=25, tick=told.append)
    assert found.values["gain"] == pytest.approx(0.6, rel=0.05) and found.values["delay"] == 2.0
    assert found.values["noise"] == pytest.approx(0.002, rel=0.3)
    assert found.after < 0.3 * found.before and told[-1] <= 1.0


def test_events_around_the_fit() -> None:
    events = Fit({"mass": 1.0, "gain": 0.5, "delay": 2.0, "friction": 2.0}, 1.0, 0.5).events(spread=0.1)
    assert events["gain"] == {"func": "gain", "mode": "reset", "low": 0.45, "high": 0.55}
    assert events["delay"] == {"func": "delay", "mode": "reset", "low": 2.0, "high": 2.0}
    assert events["mass"] == {"func": "mass", "mode": "reset", "low": 0.9, "high": 1.1}
    assert "mass" not in Fit({"mass": 1.0}, 1.0, 0.5).events(spread=0.0)


def test_what_cannot_be_fitted() -> None:
    episodes = lived([1, 2])
    with pytest.raises(UserError, match="1 episodes: a fit needs at least two, one of them to be judged on"):
        fit(TASK, episodes[:1])
    episodes[1].seed = 99
    with pytest.raises(UserError, match=r"episode 1 begins 0\.\d+ m from where scene 99 begins in the simulator"):
        fit(TASK, episodes)


@pytest.mark.parametrize(
    ("task", "options", "line"),
    [
        ("pour", [], "recorded: episodes of pour; none is a task of env.simulator=metaworld"),
        ("pour", ["task=push"], "recorded: episodes of pour; none is a task of env.simulator=metaworld"),
        ("push", [], "recorded: not as in env.simulator=metaworld: state has shape (3, 4), expected (3, 21)"),
    ],
)
def test_episodes_of_another_robot(
    task: str, options: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = Spec({"state": Feature((4,))}, (-1.0,) * 4, (1.0,) * 4, (task,), 80.0)
    obs, action, success = {"state": torch.zeros(3, 4)}, torch.zeros(2, 4), torch.zeros(2, dtype=torch.bool)
    episode = Episode(obs, action, success, task, "robot", 0)
    EpisodeStore("recorded").append([episode], spec)
    assert cli.main(["fit", "recorded", *options]) == 2
    assert capsys.readouterr().err == f"wamtune: {line}\n"


def test_the_command_writes_a_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fitting, "N_GENERATIONS", 1)
    EpisodeStore("recorded").append(lived([1, 2]), make_spec("metaworld", [TASK]))
    assert cli.main(["fit", "recorded", "n_steps=5", "out=mine.yaml"]) == 0
    out = capsys.readouterr().out
    assert "preset: mine.yaml; wamtune train mine.yaml" in out and "mm -> " in out
    config = compose("mine.yaml", [], TrainConfig)
    assert config.env.tasks == (TASK,) and config.env.kind == "dream" and config.episodes == "recorded"
    written = yaml.safe_load(Path("mine.yaml").read_text())["env"]["options"]["events"]
    assert {name: event["low"] for name, event in written.items()} == {
        name: event["low"] for name, event in config.env.options["events"].items()
    }
    for words, line in (
        ([], "fit needs a folder of recorded episodes: wamtune fit runs/robot/sim"),
        (["none"], "none: no episodes here; record some with wamtune deploy CHECKPOINT run PRESET"),
        (["recorded", "task=push"], f"env.tasks=push: expected one of {TASK}"),
        (["recorded", "n_episodes=1"], "n_episodes=1: expected at least 2"),
        (["recorded", "spread=1.0"], "spread=1.0: expected at least 0 and less than 1"),
    ):
        assert cli.main(["fit", *words]) == 2
        assert capsys.readouterr().err == f"wamtune: {line}\n"
