"""Cameras and what a model sees through them; skipped where there is no OpenGL to draw with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rewards import RewardManager
from rewards.errors import UserError
from rl import cli
from rl.build import make_sim
from rl.compose import compose
from rl.config import SimulatorConfig, TrainConfig
from rl.envs.cameras import CameraUse
from rl.envs.sim import SimEnv, make_spec
from rl.envs.workers import Group
from rl.policies.wam import flow_policy
from rl.stages import images as stage_images
from rl.stages import run as stages
from rl.stages.collect import collect_scripted
from rl.stages.images import run_again, with_images
from world_model.data.episodes import Episode, EpisodeStore
from world_model.spec import Feature
from world_model.view import View
from world_model.wam.metrics import image_metrics
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model

torch.set_num_threads(1)
VIEW = View()


def cameras(view: View, size: int) -> dict[str, CameraUse]:
    return {"images.front": CameraUse(view, size, size)}


def opengl() -> bool:
    try:
        Group("metaworld", ["push"], {}, cameras(VIEW, 16)).reset({0: 1})
    except UserError:
        return False
    return True


pytestmark = pytest.mark.skipif(not opengl(), reason="no OpenGL")


def rendered(view: View, task: str = "push", seed: int = 3, size: int = 64) -> np.ndarray:
    _, (images,) = Group("metaworld", [task], {}, cameras(view, size)).reset({0: seed})
    return images["images.front"]


def test_an_image_depends_on_what_is_there_alone():
    first, other = rendered(VIEW), rendered(VIEW, "door-open")
    assert first.shape == (64, 64, 3) and first.std() > 20
    assert np.array_equal(rendered(VIEW), first) and np.array_equal(rendered(VIEW, "door-open"), other)
    assert not np.array_equal(rendered(VIEW, seed=4), first)


def test_the_goal_can_be_hidden():
    def green(image: np.ndarray) -> int:
        red, green, blue = image.transpose(2, 0, 1)
        return int(((green > 150) & (red < 80) & (blue < 80)).sum())

    assert green(rendered(VIEW)) >= 4 and green(rendered(View(shows_goal=False))) == 0


def test_a_camera_of_the_model_by_name():
    assert not np.array_equal(rendered(View(camera="gripperPOV")), rendered(VIEW))
    with pytest.raises(UserError, match=r"camera='wrist': the model has .*gripperPOV"):
        rendered(View(camera="wrist"))


def test_without_opengl_one_line_says_what_to_install():
    code = "import os; from rl.envs.metaworld.tasks import MetaWorldTask as T; from world_model.view import View; "
    code += "from rl.envs.cameras import CameraUse; t = T('push', looked_at=True); t.reset(0); "
    code += "os.environ['MUJOCO_GL'] = 'nothing'; t.images({'images.front': CameraUse(View(), 16, 16)})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert "images need OpenGL, and MUJOCO_GL=nothing finds none" in last and "apt-get install libegl1" in last


def test_a_process_that_has_drawn_ends_without_a_word():
    code = (
        "import torch; from rl.envs.metaworld.camera import _context; torch.kept = _context()  # outlives most modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("task", ["push", "hammer", "door-open"])  # of two, a part that only shows tells the state
def test_drawing_leaves_the_physics_alone(task: str):
    plain, drawn = (Group("metaworld", [task], {}, used) for used in ({}, cameras(VIEW, 64)))
    assert plain.envs[0].model.nbuffer < 0.2 * drawn.envs[0].model.nbuffer  # and what is only drawn takes no memory
    actions = np.random.default_rng(0).uniform(-1, 1, (1, 40, 4)).astype(np.float32)
    assert np.array_equal(plain.reset({0: 5})[0], drawn.reset({0: 5})[0])
    begun = np.zeros(1, int)
    one, other = (group.advance(actions, np.array([40]), False, begun) for group in (plain, drawn))
    assert np.array_equal(one.frames, other.frames) and one.images == [[]] and len(other.images[0]) == 40


def make_seen(model: WorldActionModel, tasks: list[str], **options: Any) -> SimEnv:
    """Environments that give what a model reads, through its cameras."""
    return SimEnv("metaworld", len(tasks), tasks, features=model.spec.features, cameras=model.cameras, **options)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_new_image_comes_where_a_chunk_ends(n_workers: int, image_model: WorldActionModel):
    model, tasks = image_model, ["push", "door-open"]
    sim = make_seen(model, tasks, n_workers=n_workers)
    told = slice(0, 4)  # proprioception
    assert sim.spec.to_dict() == model.spec.to_dict()
    plain = SimEnv("metaworld", 2, tasks)
    for env in (sim, plain):
        env.set_episode_seeds([7, 8])
    obs, full = sim.reset(), plain.reset()
    assert torch.equal(obs["state"], full["state"][..., told])
    first = obs["images.front"]
    assert first.dtype == torch.uint8 and first.shape == (2, 2, 32, 32, 3) and torch.equal(first[:, 0], first[:, 1])
    for i, task in enumerate(tasks):  # each environment has its own camera image
        assert np.array_equal(first[i, -1].numpy(), rendered(model.cameras["front"], task, seed=7 + i, size=32))
    step, whole = sim.step_chunk(torch.full((2, 8, 4), 0.4)), plain.step_chunk(torch.full((2, 8, 4), 0.4))
    assert torch.equal(step.frames["state"], whole.frames["state"][..., told])
    images = step.frames["images.front"]
    assert torch.equal(images[:, :7], first[:, -1:].expand(-1, 7, -1, -1, -1))
    assert (images[:, 7] != first[:, -1]).flatten(1).any(1).all()
    assert torch.equal(step.obs["images.front"], torch.stack([first[:, -1], images[:, 7]], dim=1))
    # The codes follow: the old image until the new one, which is another.
    latents = model.encode_obs(step.frames)["latents"]
    before = model.encode_obs(obs)["latents"][:, -1:]
    torch.testing.assert_close(latents[:, :7], before.expand(-1, 7, -1))
    assert ((latents[:, 7:] - before).abs().amax(2) > 1e-3).all()
    sim.close()


@pytest.mark.parametrize("n_workers", [0, 2])
def test_images_of_any_size_and_period_beside_a_state_in_two_parts(n_workers: int) -> None:
    wanted = {
        "state": Feature((4,)),
        "environment_state": Feature((17,)),
        "images.front": Feature((24, 40, 3), dtype="uint8"),
        "images.wrist": Feature((16, 16, 3), dtype="uint8", every=2),
    }
    views = {"wrist": View(camera="gripperPOV")}
    env = SimEnv("metaworld", 2, ["push", "hammer"], features=wanted, cameras=views, n_workers=n_workers)
    assert {name: feature.shape for name, feature in env.spec.features.items()} == {
        name: feature.shape for name, feature in wanted.items()
    }
    env.set_episode_seeds([7, 8])
    obs = env.reset()
    assert obs["images.front"].shape == (2, 2, 24, 40, 3) and obs["images.wrist"].shape == (2, 2, 16, 16, 3)
    step = env.step_chunk(torch.full((2, 4, 4), 0.4))
    new = {name: (step.frames[name].diff(dim=1) != 0).flatten(2).any(2) for name in env.spec.images}
    assert new["images.front"].all()  # a new image at each step
    assert new["images.wrist"].tolist() == [[True, False, True]] * 2
    env.close()
    (first,), _ = replayed("push", 7, torch.full((4, 4), 0.4), CameraUse(VIEW, 24, 40))
    assert torch.equal(first[0], obs["images.front"][0, -1])
    assert torch.equal(first[1:], step.frames["images.front"][0])


def replayed(task: str, seed: int, actions: torch.Tensor, *uses: CameraUse) -> tuple[list[torch.Tensor], np.ndarray]:
    """Images of each camera when an episode is run again, and the last state."""
    n = len(actions)
    episode = Episode({"state": torch.zeros(n + 1, 4)}, actions, torch.zeros(n, dtype=torch.bool), task, "policy", seed)
    named = {f"images.{i}": use for i, use in enumerate(uses)}
    images, last = SimEnv.replay(id="", episode=episode, cameras=named)
    return [images[name] for name in named], last


def test_each_camera_of_a_replay_has_its_own_size_and_period() -> None:
    cameras = CameraUse(VIEW, 24, 40), CameraUse(View(camera="gripperPOV"), 16, 16, every=3)
    (front, wrist), last = replayed("push", 3, torch.full((7, 4), 0.2), *cameras)
    assert front.shape == (8, 24, 40, 3) and wrist.shape == (4, 16, 16, 3)  # after 0, 3, 6 steps and at the end
    assert last.shape == (21,)


def test_the_expert_acts_for_a_policy_with_images(image_model: WorldActionModel) -> None:
    seen, plain = make_seen(image_model, ["push"]), SimEnv("metaworld", 1, ["push"])
    for env in (seen, plain):
        env.set_episode_seeds([7])
        env.reset()
    for _ in range(3):
        actions = plain.expert_actions()
        assert torch.equal(seen.expert_actions(), actions)
        seen.step(actions), plain.step(actions)


def test_noise_is_on_the_state_alone(image_model: WorldActionModel):
    noisy, plain = (make_seen(image_model, ["push"], obs_noise=noise) for noise in (0.1, 0.0))
    one, other = noisy.reset(seed=3), plain.reset(seed=3)
    assert torch.equal(one["images.front"], other["images.front"])
    assert (one["state"] != other["state"]).all()
    first, second = (env.step_chunk(torch.full((1, 8, 4), 0.4)) for env in (noisy, plain))
    assert torch.equal(first.frames["state"], second.frames["state"])  # the noise is in the observation alone
    assert torch.equal(first.frames["images.front"], second.frames["images.front"])
    assert torch.equal(first.obs["images.front"], second.obs["images.front"])
    assert (first.obs["state"] != second.obs["state"]).all()


def test_what_cannot_be_seen_is_refused_by_name(image_model: WorldActionModel):
    model = image_model
    with pytest.raises(UserError, match="reads 'hand_pos', which the simulator does not have; choose another task"):
        SimEnv("Pendulum-v1", 1, features=model.spec.features)
    config = compose(None, ["name=a", "env.tasks=[push]", "n_action_steps=4"], TrainConfig)
    sim = make_sim(config, model, ["push"], 1, rewards=False)
    from rl.build import make_policy

    with pytest.raises(
        UserError, match=r"n_action_steps=4: the policy gets a new images\.front every 8 steps; use a multiple of 8"
    ):
        make_policy(config, model, sim)


PRETRAIN = """# Tiny, and it sees.
name: tiny
tasks: [drawer-open]
threads: 1
episodes: episodes
n_expert: 3
n_noisy: 2
n_random: 1
n_heldout: 6
trust_steps: 20
model:
  {width: 32, world_width: 48, action_width: 32, n_layers: 1, n_heads: 2,
   image_size: 32, patch_dim: 4, views: {front: {}}}
codec: {n_steps: 20, batch_size: 16, log_every: 5, save_every: 10}
stage: {n_steps: 20, batch_size: 16, log_every: 5, save_every: 10}
"""
TUNE = """# Tiny.
name: tiny-tuned
checkpoint: pretrained
episodes: episodes
threads: 1
demos: {drawer-open: 2}
n_policy: 2
n_policy_heldout: 1
n_eval: 2
trust_steps: 20
stage: {n_steps: 20, batch_size: 16, log_every: 5, save_every: 10}
refit: {n_steps: 20, batch_size: 16, log_every: 5, save_every: 10}
"""
TRAIN = """
checkpoint=tuned env.tasks=[drawer-open] env.n_envs=2 n_rounds=1 dream.n_envs=4 dream.n_updates=1 dream.n_starts=2
dream.refit_steps=2 dream.horizon=4 ppo.batch_size=8 ppo.imitation_steps=2 ppo.critic_warmup_steps=2 env.max_steps=32
gate.n_episodes=2 gate.max_episodes=2 eval.n_episodes=2 eval.n_paired=2 threads=1 name=sees"""


def test_a_model_that_sees_goes_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pretrain.yaml").write_text(PRETRAIN)
    (tmp_path / "tune.yaml").write_text(TUNE)
    image_data: list[str] = []
    draw = stages.with_images
    monkeypatch.setattr(stages, "with_images", lambda *of: image_data.append(of[1].folder.name) or draw(*of))
    assert cli.main(["pretrain", "pretrain.yaml"]) == 0
    assert sorted(image_data) == ["episodes", "heldout"]  # each is read once, and used by all phases
    (tmp_path / "pretrained").symlink_to(next((tmp_path / "runs" / "tiny").iterdir()))
    figures = (tmp_path / "pretrained" / "checkpoints" / "last" / "README.md").read_text()
    assert "| PSNR |" in figures and "in dB over the pixels that differ" in figures
    image_data.clear()
    assert cli.main(["tune", "tune.yaml"]) == 0
    assert sorted(image_data) == ["episodes", "heldout"]
    (tmp_path / "tuned").symlink_to(next((tmp_path / "runs" / "tiny-tuned").iterdir()))
    model = load_model("tuned")
    assert model.image_codec is not None and model.spec.features["images.front"].shape == (32, 32, 3)
    own = EpisodeStore(tmp_path / "tuned" / "episodes").load()
    assert own and all(e.every == {"images.front": 8} and e.obs.keys() == {"state", "images.front"} for e in own)
    assert all(len(e.obs["images.front"]) == -(-e.length // 8) + 1 for e in own)
    assert cli.main(["train", "dream", *TRAIN.split()]) == 0
    report = next((tmp_path / "runs" / "sees").glob("*/report.html")).read_text()
    assert '<img alt="simulator, dream, difference" src="data:image/gif;base64,' in report
    (run,) = (tmp_path / "runs" / "sees").iterdir()
    videos = sorted(run.glob("videos/*.gif"))
    assert videos and iio.imread(videos[0]).ndim == 4
    events = EventAccumulator(str(run), {"images": 0})
    events.Reload()
    shown = events.Images(f"videos/{videos[0].stem}")[0].encoded_image_string
    assert events.Tags()["images"] == [f"videos/{f.stem}" for f in videos] and shown == videos[0].read_bytes()
    for source in ("expert", "policy", "joint"):
        assert (
            cli.main(["dream", "tuned", "task=drawer-open", f"source={source}", "n_chunks=3", f"out={source}.gif"]) == 0
        )
        video = iio.imread(f"{source}.gif")
        assert video.shape[0] == 4 and video.shape[3] == 3 and video[0].std() > 10
        assert not np.array_equal(video[0], video[3])
    assert cli.main(["dream", "tuned", "task=drawer-open", "out=goals/goal.png", "source=policy"]) == 0
    sim = make_seen(model, ["drawer-open"], max_steps=64, terminate_on_success=False)
    goal = {"goal_image": {"weight": -1.0, "params": {"path": "goals/goal.png"}}}
    sim.rewards = RewardManager(goal, {*sim.spec.slices, "latents"}, "sim", images=model)
    near = "rewards.near={func: goal_image, weight: -1.0, params: {path: goals/goal.png}}"
    assert cli.main(["check", "pixels", "checkpoint=tuned", "env.tasks=[drawer-open]", near]) == 0
    sim.set_episode_seeds([2_000_000])
    policy = flow_policy(model, sim)
    obs = sim.reset()
    for _ in range(8):
        step = sim.step_chunk(policy.decide(policy.encode(obs), sim.episode_seed, sim.elapsed))
        obs = step.obs
    assert step.reward[0, -1].item() == pytest.approx(0.0, abs=1e-6)  # there it is
    assert (step.reward[0, :-1] < 0).all()


def test_a_film_is_drawn_once_and_of_what_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_model: WorldActionModel
):
    store = EpisodeStore(tmp_path)
    episodes = collect_scripted("noisy", ["push"], 2)
    store.append(episodes, make_spec("metaworld", ["push"]))
    again, images = with_images(SimulatorConfig(), store, image_model.config, ["push"], None)
    assert [len(p) for p in images] == [e.length + 1 for e in again]
    assert np.array_equal(images[0][0, 0].numpy(), rendered(VIEW, seed=episodes[0].seed, size=32))
    with monkeypatch.context() as patch:
        patch.setattr(stage_images, "_run_again", lambda *_: pytest.fail("rendered again"))
        _, kept = with_images(SimulatorConfig(), store, image_model.config, ["push"], None)
    assert all(torch.equal(a, b) for a, b in zip(kept, images, strict=True))
    other = EpisodeStore(tmp_path / "other")
    episodes[0].seed += 1
    other.append(episodes, make_spec("metaworld", ["push"]))
    with pytest.raises(UserError, match="does not run as it was recorded"):
        with_images(SimulatorConfig(), other, image_model.config, ["push"], None)


def test_the_built_in_model_with_a_camera_predicts_images_that_it_was_not_trained_on() -> None:
    """In dB where something moves: at least 5 above what repeating the last image gives."""
    model = load_model("metaworld-pixels-tuned")
    episodes = collect_scripted("expert", ["drawer-open", "push"], 2, seed=900_000)
    images = [run_again(SimulatorConfig(), episode, model.config) for episode in episodes]
    found = image_metrics(model, stage_images.encoded_episodes(model, SimulatorConfig(), episodes, images), images)[
        "mean"
    ]
    assert found["psnr"] > found["repeat"] + 5 and found["psnr_far"] > found["repeat_far"] + 5
    assert found["shuffle_ratio"] > 1.5
