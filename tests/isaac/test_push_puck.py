"""Our own task, from its registration to post-training: a dream of Isaac Lab, and terms of ours inside it."""

from pathlib import Path

import gymnasium
import pytest
import torch

from rl.compose import compose
from rl.config import TrainConfig
from rl.envs.isaac.env import IsaacEnv
from rl.rounds.loop import PostTraining
from rl.stages.collect import collect_from
from world_model.data.episodes import Episode
from world_model.wam.config import ModelConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model, save_model
from world_model.wam.training import StageConfig, fit_statistics, train_stage

N = 64
TASK = "Isaac-Push-Puck"


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    """One of the expert in each environment, not ended by its success."""
    env = IsaacEnv(TASK, N, n_context_frames=2, terminate_on_success=False)
    found = collect_from(env, 1, "expert", N)
    env.close()
    return found


def test_isaac_lab_finds_it_by_its_entry_point() -> None:
    from importlib.metadata import entry_points

    (point,) = [p for p in entry_points(group="isaaclab.tasks") if p.name == "wamtune"]
    point.load()
    assert gymnasium.spec(TASK).kwargs["env_cfg_entry_point"] == "rl.envs.isaac.push.task:PushPuckCfg"


def test_the_expert_solves_it(episodes: list[Episode]) -> None:
    assert sum(e.is_success for e in episodes) >= 0.9 * N
    for episode in episodes:
        state = episode.state
        assert episode.action.abs().max() <= 1 and state.shape[1] == 9
        if episode.is_success:
            first = int(episode.success.nonzero()[0])
            assert (state[first + 1, 3:5] - state[first + 1, 6:8]).norm() < 0.03
            assert (state[0, 3:5] - state[0, 6:8]).norm() >= 0.09  # begun at a distance
            assert episode.length > first + 1 or first + 1 == 120  # success was seen and did not end it
    # Each clone stands in a place of its own, and things are in the frame of theirs.
    starts = torch.stack([e.state[0] for e in episodes])
    assert starts[:, :2].abs().max() < 0.35 and starts[:, 3:5].std(0).min() > 0.05


def test_seeds_name_the_episodes(episodes: list[Episode]) -> None:
    env = IsaacEnv(TASK, N, n_context_frames=2, terminate_on_success=False)
    again = collect_from(env, 1, "expert", N)
    env.close()
    for one, other in zip(episodes, again, strict=True):
        assert one.seed == other.seed and torch.equal(one.state[0], other.state[0])


@pytest.fixture(scope="module")
def checkpoint(episodes: list[Episode], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that has seen the expert: enough to dream and to act, not to win."""
    env = IsaacEnv(TASK, 16)
    spec = env.spec
    env.close()
    torch.manual_seed(0)
    model = WorldActionModel(ModelConfig(width=32, world_width=32, action_width=32, n_layers=2, n_heads=2), spec)
    windows = model.windows(episodes)
    fit_statistics(model, windows)
    train_stage("pretrain", model, windows, StageConfig(n_steps=150, batch_size=64))
    train_stage("tune", model, windows, StageConfig(n_steps=150, batch_size=64, atoms=(0.3, 0.7, 0, 0, 0)))
    folder = tmp_path_factory.mktemp("checkpoint") / "push"
    save_model(folder, model, "tune", "", {})
    return folder


def test_a_round_in_isaac_lab_and_in_the_dream_of_it(checkpoint: Path) -> None:
    few = "threads=1 total_timesteps=2000 n_rounds=1 env.n_envs=32 eval.n_episodes=40 ppo.bc_coef=0".split()
    few += "ppo.n_steps=2 ppo.batch_size=64 ppo.n_epochs=1 ppo.critic_warmup_steps=0 ppo.imitation_steps=2".split()
    few += "dream.n_envs=32 dream.n_updates=1 dream.horizon=1 dream.refit_steps=3 dream.n_starts=32".split()
    few += "gate.n_episodes=32 gate.max_episodes=32".split()
    config = compose("isaac-push", [f"checkpoint={checkpoint}", *few], TrainConfig)
    logged: dict[str, float] = {}
    post = PostTraining(config, load_model(checkpoint), None)
    post.log = lambda step, values: logged.update(values)
    assert post.eval_envs.envs == [post.sim]  # there can be no second one
    try:
        outcome = post.run()
    finally:
        post.close()
    assert [result.phase for result in outcome.results] == ["sim", "dream"]
    assert [r.seed for r in outcome.before] == [r.seed for r in outcome.after]
    assert outcome.results[1].verdict is not None and outcome.gate_steps > 0
    assert post.dreams is not None and len(post.dreams.episodes) >= 64  # of the gate, both policies
    assert {"rollout/dream_success", "rollout/sim_success", "train/approx_kl"} <= logged.keys()


def test_the_camera_sees_every_environment_apart() -> None:
    env = IsaacEnv("Isaac-Push-Puck-Camera", 16, groups=("policy", "image"))
    try:
        obs = env.reset()
        step = env.step_chunk(torch.zeros(16, 1, 2))
    finally:
        env.close()
    assert env.spec.images == ("images.rgb",)  # the name of the term
    image = step.obs["images.rgb"]
    assert obs["state"].shape == (16, 1, 9) and image.shape == (16, 1, 64, 64, 3)
    assert image.dtype == torch.uint8 and image.float().std() > 5
    assert torch.equal(image, step.frames["images.rgb"])
    assert len({tuple(picture.flatten().tolist()) for picture in image}) == 16


def test_the_first_image_of_an_episode_is_not_the_last_of_the_one_before() -> None:
    env = IsaacEnv("Isaac-Push-Puck-Camera", 4, groups=("policy", "image"), overrides=("env.episode_length_s=0.1",))
    try:
        env.reset()
        for _ in range(env.max_steps):
            step = env.step_chunk(torch.zeros(4, 1, 2))
    finally:
        env.close()
    assert step.truncated.all()
    for before, after in zip(step.final_obs["images.rgb"], step.obs["images.rgb"], strict=True):
        assert not torch.equal(before, after)


def test_a_term_of_ours_is_paid_inside_isaac_lab() -> None:
    from isaaclab.utils import configclass

    from rl.envs.isaac.push.task import PushPuckCfg
    from rl.envs.isaac.rewards import isaac_term

    @configclass
    class WithOurs(PushPuckCfg):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.rewards.time = isaac_term("time_cost", -2.0)
            self.rewards.jerk = isaac_term("action_jerk", -1.0)

    entry = {"env_cfg_entry_point": WithOurs}
    gymnasium.register("Isaac-With-Ours", "isaaclab.envs:ManagerBasedRLEnv", disable_env_checker=True, kwargs=entry)
    env = IsaacEnv("Isaac-With-Ours", 16)
    try:
        env.reset()
        manager = env._env.reward_manager
        ours = [manager.active_terms.index(name) for name in ("time", "jerk")]
        paid = []
        for action in torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]):
            env.step(action.expand(16, 2))
            paid.append(manager._step_reward[:, ours].clone())
    finally:
        env.close()
    # The jerk of 1, 1, 1 (an episode begins as if its first action had always been applied), 1, 1, 1 and 1, 1, -1.
    assert torch.stack(paid)[:, 0].tolist() == [[-2.0, 0.0], [-2.0, 0.0], [-2.0, -4.0]]
