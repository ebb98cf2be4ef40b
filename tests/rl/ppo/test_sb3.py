"""The update as an algorithm of Stable-Baselines3, and `predict` as it calls it."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from rewards import RewardManager
from rewards.errors import UserError
from rl.config import PPOConfig
from rl.envs.adapters import ChunkVecEnv, StepVecEnv, flatten_obs
from rl.envs.sim import SimEnv
from rl.policies.gaussian import GaussianPolicy
from rl.policies.wam import flow_policy
from rl.ppo.buffer import Samples
from rl.ppo.sb3 import ChunkPPO, ChunkPredictor
from rl.ppo.update import PPO

N = 6
CONFIG = PPOConfig(n_steps=4, batch_size=16, n_epochs=2, learning_rate=1e-3, gamma=0.9, bc_coef=0.0, target_kl=None)
REWARDS = {"task_reward": {"weight": 1.0}, "success": {"weight": 1.0}}


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def env(make_point):
    env = make_point(N, seed=1)
    env.reset()
    return env


@pytest.fixture(params=["flow", "gaussian"])
def either(request, model, env):
    torch.manual_seed(0)
    return flow_policy(model, env) if request.param == "flow" else GaussianPolicy(env, chunk_size=4)


class Count(BaseCallback):
    def __init__(self, stop_after=None):
        super().__init__()
        self.stop_after, self.starts, self.ends = stop_after, 0, 0

    def _on_rollout_start(self):
        self.starts += 1

    def _on_rollout_end(self):
        self.ends += 1

    def _on_step(self):
        return self.stop_after is None or self.n_calls < self.stop_after


def test_learn_calls_back_after_every_chunk(make_point, either):
    env, count = make_point(8, seed=2, terminate_on_success=False), Count()
    ppo, before = ChunkPPO(either, env, CONFIG), weights(either)
    ppo.learn(total_timesteps=3 * 4 * 8 * 4, callback=count)  # 3 rollouts of 4 chunks of 4 steps in 8 environments
    assert ppo.num_timesteps == 384 and (count.starts, count.n_calls, count.ends) == (3, 12, 3)
    assert ppo._n_updates == 3 and not same(weights(either), before)
    before = weights(either)
    stop = Count(stop_after=2)
    ppo.learn(total_timesteps=10_000, callback=stop)  # as in SB3, a rollout that was ended teaches nothing
    assert (stop.starts, stop.n_calls, stop.ends) == (1, 2, 0) and same(weights(either), before)
    assert ppo.num_timesteps == 2 * 4 * 8
    action, state = ppo.predict(ppo.env.reset(), deterministic=True)
    assert action.shape == (8, 2) and state[0].shape == (8, 4, 2)


def test_learn_equals_our_update_to_the_bit(make_point):
    """The same rollouts, the same updates; SB3 resets the environments when it begins."""
    learned = []
    for through_sb3 in (True, False):
        env = make_point(8, seed=2)
        torch.manual_seed(5)
        policy = GaussianPolicy(env, chunk_size=4)
        if through_sb3:
            ChunkPPO(policy, StepVecEnv(env), CONFIG, seed=1).learn(200)
        else:
            ppo, n = PPO(policy, CONFIG, seed=1), 0
            env.reset()
            while n < 200:
                rollout = ppo.collect(env, 4)
                n += int(rollout.n_executed.sum())
                ppo.update(Samples.from_rollout(rollout, CONFIG.gamma, CONFIG.gae_lambda))
        learned.append(weights(policy))
    assert same(*learned)


def test_what_a_callback_sees_of_a_step(make_point):
    """Two chunks of 4 and one of 2 steps to the end of an episode; each step costs 1, discounted by .9."""
    seen = []

    class Look(BaseCallback):
        def _on_step(self):
            seen.append({**self.locals, "num_timesteps": self.num_timesteps})
            return True

    rewards = RewardManager({"time_cost": {"weight": -1.0}}, (), "sim")
    env = make_point(2, max_steps=6, rewards=rewards, terminate_on_success=False)
    ChunkPPO("MlpPolicy", env, replace(CONFIG, n_steps=2, batch_size=4), chunk_size=4).learn(1, callback=Look())
    first, second = seen
    assert first["dones"].tolist() == [False] * 2 and second["dones"].tolist() == [True] * 2
    np.testing.assert_allclose(first["rewards"], -(1 + 0.9 + 0.81 + 0.729), rtol=1e-6)
    assert second["infos"][0]["episode"]["r"] == -6 and second["infos"][0]["episode"]["l"] == 6
    assert second["infos"][1]["TimeLimit.truncated"] and not second["infos"][1]["is_success"]
    assert (first["num_timesteps"], second["num_timesteps"]) == (8, 12)
    assert first["actions"].shape == (2, 4, 2) and first["new_obs"].shape == (2, 10) and first["place"] == "sim"


def test_the_learning_rate_follows_the_progress_of_learn(make_point):
    """From 1e-3 to 0 over 384 steps in 3 rollouts: after them 2/3, 1/3 and 0 of the training remain."""
    rate = {"func": "linear", "params": {"start": 1e-3, "end": 0.0}}
    env, seen = make_point(8, seed=2, terminate_on_success=False), []
    ppo = ChunkPPO("MlpPolicy", env, replace(CONFIG, learning_rate=rate), chunk_size=4)
    record = ppo.ppo.update
    ppo.ppo.update = lambda samples: seen.append(record(samples)) or seen[-1]
    ppo.learn(384)
    assert [stats["learning_rate"] for stats in seen] == pytest.approx([1e-3 * 2 / 3, 1e-3 / 3, 0.0])


@pytest.mark.parametrize(("fresh", "elapsed"), [(False, 48), (True, 16)])
def test_each_rollout_may_begin_new_episodes(make_point, fresh, elapsed):
    env = make_point(8, seed=2, max_steps=400, terminate_on_success=False)
    ChunkPPO("MlpPolicy", env, replace(CONFIG, fresh_rollouts=fresh), chunk_size=4).learn(3 * 4 * 8 * 4)
    assert env.elapsed.tolist() == [elapsed] * 8


class Rates(BaseCallback):
    def __init__(self):
        super().__init__()
        self.found = []

    def _on_step(self):
        self.found.append(np.mean(self.parent._is_success_buffer))
        return True


def test_it_learns_to_reach_the_goal_under_the_evaluation_of_sb3(make_point):
    config = replace(CONFIG, n_steps=8, batch_size=128, n_epochs=4, learning_rate=3e-3, critic_learning_rate=3e-3)
    config = replace(config, fresh_rollouts=True)
    rewards = [RewardManager(REWARDS, ("task_reward",), "sim") for _ in range(2)]
    train, judge = (make_point(64, seed=i, rewards=rewards[i]) for i in range(2))
    rates = Rates()
    evaluation = EvalCallback(StepVecEnv(judge), None, rates, n_eval_episodes=64, eval_freq=8, verbose=0)
    ChunkPPO("MlpPolicy", ChunkVecEnv(train, 4), config, chunk_size=4, seed=1).learn(15 * 8 * 64 * 4, evaluation)
    assert rates.found[0] < 0.4 and rates.found[-1] > 0.8  # the first before any update


def test_it_runs_on_a_task_of_gymnasium(tmp_path):
    rewards = RewardManager({"task_reward": {"weight": 1.0}}, ("task_reward",), "sim")
    env = StepVecEnv(SimEnv("Pendulum-v1", 4, n_context_frames=1, max_steps=200, rewards=rewards))
    config = PPOConfig(n_steps=8, batch_size=32, n_epochs=1)
    ppo = ChunkPPO("MlpPolicy", env, config, chunk_size=2).learn(128)
    ppo.save(tmp_path / "model.zip")
    again = ChunkPPO.load(tmp_path / "model.zip", env, config=config, chunk_size=2)
    assert again.num_timesteps == ppo.num_timesteps == 128 and again._n_updates == ppo._n_updates == 2
    assert same(weights(again.policy), weights(ppo.policy))
    assert torch.equal(again.ppo.generator.get_state(), ppo.ppo.generator.get_state())
    steps = [group["n_steps"] for group in again.ppo.optimizer.param_groups]
    assert steps == [group["n_steps"] for group in ppo.ppo.optimizer.param_groups] == [2, 2]
    with pytest.raises(UserError, match=r"what was saved does not fit this policy; give load\(\) the env, policy and"):
        ChunkPPO.load(tmp_path / "model.zip", env, config=config, chunk_size=3)


def test_what_it_does_not_take(make_point):
    with pytest.raises(UserError, match=r"^policy='MlpPolcy': did you mean 'MlpPolicy'\?, or give a policy of rl.pol"):
        ChunkPPO("MlpPolcy", make_point(1))
    env = DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")])
    with pytest.raises(UserError, match=r"^env: a DummyVecEnv does not execute chunks; expected a VecEnv of rl.envs"):
        ChunkPPO("MlpPolicy", env)


# --- predict ---


@torch.no_grad()
def test_predict_executes_a_chunk_in_order(model, env):
    policy = flow_policy(model, env)
    observation = flatten_obs(env.observe(), env.spec).numpy()
    context = policy.encode(env.observe())
    chunk = policy.decide(context, *torch.zeros(2, N, dtype=torch.long)).numpy()
    state, start = None, np.ones(N, bool)
    for j in range(4):
        # What is seen in the middle of a chunk does not matter.
        action, state = ChunkPredictor(policy, env).predict(observation + j, state, start, deterministic=True)
        np.testing.assert_array_equal(action, chunk[:, j])
        start = np.zeros(N, bool)
    fresh, _ = ChunkPredictor(policy, env).predict(observation, state, start, deterministic=True)
    np.testing.assert_array_equal(fresh, chunk[:, 0])


def test_predict_starts_a_new_chunk_where_an_episode_starts(either, env):
    observation = flatten_obs(env.observe(), env.spec).numpy()
    first, state = ChunkPredictor(either, env).predict(observation, deterministic=True)
    kept = state[0].copy()
    start = np.zeros(N, bool)
    start[2] = True
    second, later = ChunkPredictor(either, env).predict(observation + 0.3, state, start, deterministic=True)
    np.testing.assert_array_equal(state[0], kept)  # the caller's state is left alone
    others = np.arange(N) != 2
    np.testing.assert_array_equal(second[others], state[0][others, 1])
    np.testing.assert_array_equal(second[2], later[0][2, 0])
    assert later[1].tolist() == [2, 2, 1, 2, 2, 2]
    assert first.dtype == second.dtype == np.float32


def test_predict_takes_a_single_observation(either, env):
    observation = flatten_obs(env.observe(), env.spec).numpy()
    action, state = ChunkPredictor(either, env).predict(observation[0])
    assert action.shape == (2,) and state[0].shape == (1, 4, 2)
    action, _ = ChunkPredictor(either, env).predict(observation[0], state)
    np.testing.assert_array_equal(action, state[0][0, 1])


@torch.no_grad()
def test_what_predict_decides_depends_on_the_observation_alone(either, env):
    observation = flatten_obs(env.observe(), env.spec).numpy()
    together, _ = ChunkPredictor(either, env).predict(observation, deterministic=True)
    for row in range(N):
        alone, _ = ChunkPredictor(either, env).predict(observation[row], deterministic=True)
        np.testing.assert_allclose(alone, together[row], atol=1e-5)


@torch.no_grad()
def test_exploring_repeats_with_the_seed(either, env):
    observation = flatten_obs(env.observe(), env.spec).numpy()
    actions = []
    for seed in (0, 0, 1):
        torch.rand(1)  # the global generator plays no part
        actions.append(ChunkPredictor(either, env, seed).predict(observation)[0])
    np.testing.assert_array_equal(actions[0], actions[1])
    assert np.abs(actions[2] - actions[0]).max() > 1e-3


def test_a_policy_acts_in_a_vec_env(trained, make_point):
    env = StepVecEnv(make_point(8, seed=3))
    policy = ChunkPredictor(flow_policy(trained, env.batched), env.batched)
    obs, state, start, solved = env.reset(), None, np.ones(8, bool), np.zeros(8, bool)
    for _ in range(12):
        action, state = policy.predict(obs, state, start, deterministic=True)
        obs, _, start, infos = env.step(action)
        solved |= np.array([info["is_success"] for info in infos])
    assert solved.mean() > 0.7
