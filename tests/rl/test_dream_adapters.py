"""The dream behind the usual interfaces: stock PPO, `evaluate_policy`, both env checkers, gymnasium's vector API."""

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.evaluation import evaluate_policy

from rl.config import PPOConfig
from rl.envs.adapters import ChunkVecEnv, GymEnv, GymVectorEnv, StepVecEnv
from rl.policies.wam import flow_policy
from rl.ppo.sb3 import ChunkPPO, ChunkPredictor
from world_model.dream_env import DreamEnv, StartStates

HORIZON, K = 2, 4


@pytest.fixture
def make_dream(model, episodes, monkeypatch):
    starts = StartStates.from_episodes(episodes, model.spec.tasks, n_context_frames=2)
    # Nothing is ever solved: every branch lasts HORIZON chunks.
    never = lambda frames, task: (0 * frames["state"][..., 0], frames["state"][..., 0])  # noqa: E731
    monkeypatch.setattr(model, "success_and_progress", never)
    return lambda num_envs: DreamEnv(model, num_envs, starts, HORIZON, max_steps=1000, seed=1)


def test_stock_ppo_and_evaluate_policy(make_dream):
    env = StepVecEnv(make_dream(4))
    ppo = PPO("MlpPolicy", env, n_steps=16, batch_size=32, n_epochs=1, seed=0, device="cpu")
    ppo.learn(128)
    assert ppo.num_timesteps == 128
    assert len(ppo.ep_info_buffer) == 128 / (HORIZON * K)
    # The steps that wait for their chunk are none of the episode's.
    assert {info["l"] for info in ppo.ep_info_buffer} == {HORIZON * K}
    returns, lengths = evaluate_policy(ppo, env, n_eval_episodes=6, return_episode_rewards=True, warn=False)
    assert lengths == [HORIZON * K] * 6 and returns == [0.0] * 6


def test_stock_ppo_on_whole_chunks(make_dream):
    env = ChunkVecEnv(make_dream(4), K)
    PPO("MlpPolicy", env, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu").learn(64)


def test_our_policy_is_evaluated_step_by_step(make_dream, model):
    env = StepVecEnv(make_dream(4))
    policy = ChunkPredictor(flow_policy(model, env.batched), env.batched)
    _, lengths = evaluate_policy(policy, env, n_eval_episodes=4, return_episode_rewards=True, warn=False)
    assert lengths == [HORIZON * K] * 4


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_env_checkers(make_dream):
    gymnasium_check_env(GymEnv(make_dream(1)), skip_render_check=True)
    sb3_check_env(GymEnv(make_dream(1)), skip_render_check=True)


def test_gymnasium_single_env(make_dream):
    env = GymEnv(make_dream(1))
    first, _ = env.reset(seed=4)
    for step in range(1, HORIZON * K + 1):
        obs, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
        assert np.array_equal(obs, first) == (step < K)  # it stays until the first chunk is complete
        assert truncated == (step == HORIZON * K) and not terminated and reward == 0 and info == {"is_success": False}


def test_gymnasium_vector_api(make_dream):
    env = RecordEpisodeStatistics(GymVectorEnv(make_dream(3)))
    assert env.unwrapped.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    obs, _ = env.reset(seed=2)
    again, _ = env.reset(seed=2)
    np.testing.assert_array_equal(obs, again)
    env.action_space.seed(0)
    for step in range(1, HORIZON * K + 1):
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert env.observation_space.contains(obs) and reward.shape == (3,) and not terminated.any()
        assert truncated.all() == (step == HORIZON * K)
    assert info["_final_obs"].all() and info["final_obs"][0].shape == obs[0].shape


def test_chunk_ppo_trains_in_the_dream_and_leaves_it_as_it_was(make_dream, model):
    env, twin = make_dream(4), make_dream(4)
    policy = flow_policy(model, env, noise_std=0.3)
    config = PPOConfig(n_steps=HORIZON, batch_size=8, n_epochs=2, learning_rate=1e-2, bc_coef=0.0, target_kl=None)
    before = [p.clone() for p in policy.actor_parameters()]
    twin.reset(seed=3)
    ppo = ChunkPPO(policy, env, config)
    ppo.learn(3 * HORIZON * K * 4)
    assert ppo.num_timesteps == 3 * HORIZON * K * 4
    assert not all(torch.equal(p, b) for p, b in zip(policy.actor_parameters(), before, strict=True))
    actions = torch.linspace(-1, 1, 4 * K * 2).view(4, K, 2)
    env.reset(seed=3)
    expected = twin.step_chunk(actions).frames["state"]
    assert torch.equal(env.step_chunk(actions).frames["state"], expected)
