"""A simulator fitted to episodes: what was changed is found again, and what cannot be fitted is refused."""

from __future__ import annotations

from dataclasses import replace
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
from rl.envs.cameras import CameraUse
from rl.envs.metaworld import fit as fitting
from rl.envs.metaworld import fit_camera
from rl.envs.metaworld.events import Event, Perturbed
from rl.envs.metaworld.fit import Fit, fit
from rl.envs.metaworld.fit_camera import CameraFit
from rl.envs.metaworld.tasks import MetaWorldTask
from rl.envs.names import MetaWorldOptions, typed_options
from rl.envs.sim import make_spec
from world_model.data.episodes import Episode, EpisodeStore
from world_model.spec import Feature, Spec
from world_model.view import View

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


CAMERA = {"azimuth": 9.0, "elevation": -6.0, "lookat_x": 0.03, "lookat_y": -0.03, "distance": 1.1}
CAMERA |= {"light": 0.8, "red": 1.15, "blue": 0.85, "image_delay": 5.0}
SEES = "door-open"
ROBOT = {"hand_pos": (0, 3), "gripper": (3, 4)}
EVERY = 5


def watched(seeds: list[int], n_steps: int = 25) -> list[Episode]:
    """Episodes of an arm whose camera is not as the simulator's; the state is what a policy with images gets."""
    events = {k: Event(k, "startup", v, v, camera="front") for k, v in CAMERA.items()}  # type: ignore[arg-type]
    task = Perturbed(MetaWorldTask(SEES, looked_at=True), events)
    front, episodes = {"images.front": CameraUse(View(), 32, 32)}, []
    for seed in seeds:
        drawn = np.random.default_rng(seed).uniform(-1, 1, (n_steps // 5, 4)).astype(np.float32)
        actions = drawn.repeat(5, axis=0)
        frames, images = [task.reset(seed)], [task.images(front)["images.front"]]
        for step, action in enumerate(actions, start=1):
            frames.append(task.step(action)[0])
            if step % EVERY == 0:
                images.append(task.images(front)["images.front"])
        obs = {"state": torch.tensor(np.stack(frames)[:, :4]), "images.front": torch.tensor(np.stack(images))}
        success, every = torch.zeros(n_steps, dtype=torch.bool), {"images.front": EVERY}
        episodes.append(Episode(obs, torch.tensor(actions), success, SEES, "robot", seed, every=every))
    return episodes


def test_another_camera_is_found_again_from_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "N_GENERATIONS", 1)  # the physics are the simulator's, where the search begins
    monkeypatch.setattr(fitting, "N_SETS", 12)
    monkeypatch.setattr(fit_camera, "N_SEARCHED", 5)
    monkeypatch.setattr(fit_camera, "N_JUDGED", 10)
    told: list[float] = []
    found = fit(SEES, watched([1, 2, 3, 4]), n_steps=25, slices=ROBOT, views={"front": View()}, tick=told.append)
    assert {*found.values} == {"gain", "delay", "noise"} and told == sorted(told) and told[-1] == 1.0
    front = found.cameras["front"]
    for name in ("azimuth", "elevation"):
        assert front.values[name] == pytest.approx(CAMERA[name], abs=1.5)  # degrees
    for name in ("lookat_x", "lookat_y"):
        assert front.values[name] == pytest.approx(CAMERA[name], abs=0.01)  # metres
    for name in ("distance", "light", "red", "blue"):
        assert front.values[name] == pytest.approx(CAMERA[name], rel=0.03)
    assert front.values["image_delay"] == pytest.approx(CAMERA["image_delay"], abs=1.0)  # steps
    assert front.after < 0.25 * front.before and front.before > 15.0
    events = found.events(spread=0.1)
    assert events["front_azimuth"]["camera"] == "front" and events["front_light"]["func"] == "light"
    typed_options("metaworld", {"events": events}, MetaWorldOptions)


def test_noise_where_nothing_recorded_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state with the hand alone: the noise is what the replay leaves over."""
    monkeypatch.setattr(fitting, "N_GENERATIONS", 1)
    monkeypatch.setattr(fitting, "N_SETS", 12)
    generator, noisy = torch.Generator().manual_seed(0), watched([1, 2])
    for episode in noisy:
        episode.obs["state"] += 0.002 * torch.randn(episode.obs["state"].shape, generator=generator)
    assert fit(SEES, noisy, n_steps=25, slices=ROBOT).values["noise"] == pytest.approx(0.002, rel=0.25)
    assert fit(SEES, watched([1, 2]), n_steps=25, slices=ROBOT).values["noise"] == 0.0


def test_events_of_a_camera_around_the_fit() -> None:
    values = {"azimuth": 10.0, "elevation": 0.0, "distance": 1.2, "image_delay": 4.0}
    events = Fit({}, 1.0, 0.5, {"front": CameraFit(values, 20.0, 4.0)}).events(spread=0.1)
    of_front = {"mode": "reset", "camera": "front"}
    assert events["front_azimuth"] == {"func": "azimuth", "low": 9.5, "high": 10.5, **of_front}
    assert events["front_elevation"] == {"func": "elevation", "low": -0.5, "high": 0.5, **of_front}
    assert events["front_distance"] == {"func": "distance", "low": 1.1886, "high": 1.2115, **of_front}
    assert events["front_image_delay"] == {"func": "image_delay", "low": 4.0, "high": 4.0, **of_front}
    assert "front_elevation" not in Fit({}, 1.0, 0.5, {"front": CameraFit(values, 20.0, 4.0)}).events(spread=0.0)


def test_the_command_fits_the_cameras_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fitting, "N_GENERATIONS", 1)
    monkeypatch.setattr(fitting, "N_SETS", 12)
    for name, n in (("N_SEARCHED", 1), ("N_JUDGED", 2), ("N_EVALUATIONS", 2), ("MOST_DELAY", 2)):
        monkeypatch.setattr(fit_camera, name, n)
    features = {"state": Feature((4,), slices=ROBOT), "images.front": Feature((32, 32, 3), dtype="uint8", every=EVERY)}
    spec = replace(make_spec("metaworld", [SEES]), features=features)
    EpisodeStore("recorded").append(watched([1, 2], 10), spec)
    words = ["fit", "recorded", "checkpoint=metaworld-pixels-tuned", "n_steps=10"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "camera front\nazimuth " in out and "pixels on episodes kept apart: " in out
    config = compose("fitted.yaml", [], TrainConfig)
    assert (
        config.checkpoint == "metaworld-pixels-tuned" and config.episodes == "recorded" and config.env.kind == "dream"
    )
    assert config.env.options["events"]["front_azimuth"]["camera"] == "front"
    for options, line in (
        ([], "recorded: episodes with images of front; name the checkpoint whose cameras they are compared with, "),
        (["checkpoint=metaworld-tuned"], "checkpoint=metaworld-tuned: it reads no images of front; name another"),
    ):
        assert cli.main(["fit", "recorded", *options]) == 2
        assert line in capsys.readouterr().err


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
        ("push", [], "recorded: not as in env.simulator=metaworld: state has shape (3, 5), expected (3, 21)"),
    ],
)
def test_episodes_of_another_robot(
    task: str, options: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = Spec({"state": Feature((5,))}, (-1.0,) * 4, (1.0,) * 4, (task,), 80.0)
    obs, action, success = {"state": torch.zeros(3, 5)}, torch.zeros(2, 4), torch.zeros(2, dtype=torch.bool)
    episode = Episode(obs, action, success, task, "robot", 0)
    EpisodeStore("recorded").append([episode], spec)
    assert cli.main(["fit", "recorded", *options]) == 2
    assert capsys.readouterr().err == f"wamtune: {line}\n"


def test_episodes_of_another_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    EpisodeStore("recorded").append(lived([1, 2]), replace(make_spec("metaworld", [TASK]), control_hz=20.0))
    assert cli.main(["fit", "recorded", "n_steps=5"]) == 2
    line = "recorded: recorded at 20 Hz, and env.simulator=metaworld runs at 80 Hz; name episodes that were recorded at"
    assert capsys.readouterr().err == f"wamtune: {line} its rate\n"


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
