"""Compare our PPO, Stable-Baselines3's and rsl_rl's on Isaac-Cartpole, in one process: success, return and speed.

    make isaac
    .venv-isaac/bin/python -m pip install --no-deps rsl-rl-lib==5.5.1 tensordict pyvers GitPython gitdb smmap
    ISAACSIM_ASSET_ROOT=.venv-isaac/assets .venv-isaac/bin/python benchmarks/isaac.py [N_ENVS]

All three use the same simulator, network (two layers of 64, tanh), batch, epochs, learning rate and number of steps.
They run in turn, `ROUNDS` times, each from new weights. Ours starts new episodes with each rollout, as its preset does.
Each runs once with the physics as Isaac Lab ships it, and once with replayed physics, as in our `IsaacEnv`. The last
column compares our PPO with replay to theirs without it. Success means to stay on the track for 5 seconds; the return
is Isaac Lab's. Both are measured with the mean action in 256 episodes.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards import RewardManager
from rl.compose import compose
from rl.config import TrainConfig
from rl.envs.isaac.env import IsaacEnv
from rl.policies.gaussian import GaussianPolicy
from rl.ppo.sb3 import ChunkPPO
from rl.rounds.evaluate import Acts, evaluate_sim
from rl.statistics import success_rate

STEPS, PER_ROLLOUT, ROUNDS = 245_760, 32, 2
EPOCHS, BATCHES, RATE, GAMMA, LAMBDA = 10, 16, 1e-3, 0.99, 0.98

Learner = Callable[[IsaacEnv, int, int], Acts]


def main() -> None:
    torch.set_num_threads(1)
    n_envs = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    rewards = RewardManager({"task_reward": {"weight": 1.0}}, ("task_reward",), "sim")
    env = IsaacEnv("Isaac-Cartpole", n_envs, success="time_out", terminate_on_success=False, rewards=rewards)
    seconds: dict[tuple[str, bool], list[float]] = {(name, on): [] for on in (False, True) for name in LEARNERS}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in LEARNERS}
    for learn in LEARNERS.values():  # a first call, so that imports and compilation are not timed
        learn(env, 0, 4 * n_envs * PER_ROLLOUT)
    for seed in range(ROUNDS):
        for name, on in seconds:
            replay_physics(on)
            env.begun = False
            env._env.reset(seed=seed)
            begun = time.perf_counter()
            policy = LEARNERS[name](env, seed, STEPS)
            seconds[name, on].append(time.perf_counter() - begun)
            results = evaluate_sim(policy, env, range(1000, 1000 + 256))
            found[name].append((success_rate(results), float(np.mean([r.reward for r in results]))))
    env.close()
    print("| | success | return | steps/s as shipped | steps/s replayed | ours, replayed, to it as shipped |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    ours = STEPS / np.median(seconds["wamtune", True])
    for name in LEARNERS:
        success, paid = np.mean(found[name], axis=0)
        shipped, replayed = (STEPS / np.median(seconds[name, on]) for on in (False, True))
        speeds = f"{shipped:,.0f} | {replayed:,.0f} | {ours / shipped:.2f}"
        print(f"| {name} | {100 * success:.1f} % | {paid:.2f} | {speeds} |")


def replay_physics(on: bool) -> None:
    """Turn the replay of `rl.envs.isaac.graph` on or off for the running environment."""
    from isaaclab.physics import PhysicsManager
    from isaaclab_newton.physics import NewtonManager

    PhysicsManager._cfg.use_cuda_graph = on
    NewtonManager._graph = None


def learn_ours(env: IsaacEnv, seed: int, n_steps: int) -> Acts:
    batch = env.num_envs * PER_ROLLOUT // BATCHES
    words = f"seed={seed} ppo.n_steps={PER_ROLLOUT} ppo.n_epochs={EPOCHS} ppo.batch_size={batch} ppo.gamma={GAMMA}"
    rates = f"ppo.learning_rate={RATE} ppo.critic_learning_rate={RATE} ppo.gae_lambda={LAMBDA}"
    config = compose("isaac", [*words.split(), *rates.split()], TrainConfig)
    torch.manual_seed(seed)
    ppo = ChunkPPO(GaussianPolicy(env), env, config.ppo, seed=seed)
    ppo.learn(n_steps)
    return ppo.policy.chunks


def learn_sb3(env: IsaacEnv, seed: int, n_steps: int) -> Acts:
    from isaaclab_rl.sb3 import Sb3VecEnvWrapper
    from stable_baselines3 import PPO

    batch = env.num_envs * PER_ROLLOUT // BATCHES
    wrapped = Sb3VecEnvWrapper(env._env, fast_variant=True)
    network = {"net_arch": [64, 64], "activation_fn": torch.nn.Tanh, "log_std_init": -0.5}
    options: dict[str, Any] = {"n_steps": PER_ROLLOUT, "batch_size": batch, "n_epochs": EPOCHS}
    options |= {"gamma": GAMMA, "gae_lambda": LAMBDA}
    ppo = PPO("MlpPolicy", wrapped, RATE, seed=seed, device="cpu", max_grad_norm=1.0, policy_kwargs=network, **options)
    ppo.learn(n_steps)
    return Mean(lambda state: ppo.policy.get_distribution(state).distribution.mean)


def learn_rsl_rl(env: IsaacEnv, seed: int, n_steps: int) -> Acts:
    from isaaclab_rl.rsl_rl import RslRlVecEnvWrapper, handle_deprecated_rsl_rl_cfg
    from isaaclab_rl.rsl_rl.utils import create_rsl_rl_runner
    from isaaclab_tasks.core.cartpole.agents.rsl_rl_ppo_cfg import CartpolePPORunnerCfg
    from tensordict import TensorDict

    torch.manual_seed(seed)
    config = CartpolePPORunnerCfg()
    config.num_steps_per_env, config.save_interval = PER_ROLLOUT, 10**9
    config.actor.hidden_dims = config.critic.hidden_dims = [64, 64]
    config.actor.activation = config.critic.activation = "tanh"
    config.actor.distribution_cfg.init_std = float(np.exp(-0.5))
    config.algorithm.num_learning_epochs, config.algorithm.num_mini_batches = EPOCHS, BATCHES
    config.algorithm.learning_rate, config.algorithm.schedule, config.algorithm.gamma = RATE, "fixed", GAMMA
    config.algorithm.lam, config.algorithm.entropy_coef, config.device = LAMBDA, 0.0, "cpu"
    config = handle_deprecated_rsl_rl_cfg(config, version("rsl-rl-lib"))
    with contextlib.redirect_stdout(io.StringIO()):
        runner = create_rsl_rl_runner(RslRlVecEnvWrapper(env._env), config)
        runner.learn(n_steps // (env.num_envs * PER_ROLLOUT))
    policy = runner.get_inference_policy("cpu")
    return Mean(lambda state: policy(TensorDict({"policy": state}, batch_size=[len(state)])))


class Mean:
    """A policy of another library with the interface of `evaluate_sim`; it acts with the mean action."""

    def __init__(self, mean: Callable[[Tensor], Tensor]) -> None:
        self.mean = mean

    def encode(self, obs: dict[str, Tensor]) -> Tensor:
        """Return the newest frame."""
        return obs["state"][:, -1]

    def decide(self, context: Tensor, seed: Tensor, counter: Tensor) -> Tensor:
        """Return a chunk of one action; the environment clips it."""
        return self.mean(context).unsqueeze(1)


LEARNERS: dict[str, Learner] = {"wamtune": learn_ours, "SB3": learn_sb3, "rsl_rl": learn_rsl_rl}


if __name__ == "__main__":
    main()
