"""PPO on chunks as an algorithm of Stable-Baselines3 (SB3): `ChunkPPO("MlpPolicy", env).learn(10_000)`.

It collects through the adapters of `rl.envs.adapters` and trains with `rl.ppo.update.PPO`. This file holds everything
specific to SB3: its callbacks during a rollout, its logger, and `predict` with flat numpy observations. A run of
`wamtune train` with callbacks collects through it as well.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rewards.errors import UserError, closest_or_known
from rl.config import PPOConfig
from rl.envs.adapters import ChunkVecEnv, StepVecEnv, action_space, observation_space, unflatten_obs
from rl.policies.api import TrainablePolicy
from rl.policies.chain import load_weights
from rl.policies.gaussian import GaussianPolicy
from rl.ppo.buffer import Rollout, Samples
from rl.ppo.update import PPO
from world_model.checkpoint import (
    checked_weights,
    load_checkpoint,
    load_training_state,
    pack_training_state,
    save_checkpoint,
)
from world_model.env import BatchedEnv, ChunkStep
from world_model.spec import STATE
from world_model.tree import n_rows

MLP = "MlpPolicy"
"""Name of the only policy that is built by name, `GaussianPolicy`; others are passed as objects."""


class ChunkPPO(OnPolicyAlgorithm):
    """PPO on chunks of actions, with the members of an algorithm of Stable-Baselines3.

    Args:
        policy: "MlpPolicy", or a policy of `rl.policies`, which is trained in place.
        env: a `StepVecEnv` or `ChunkVecEnv` of `rl.envs.adapters`, or the `BatchedEnv` itself.
        config: hyper-parameters; those of `wamtune train` by default. Its `n_steps` counts chunks.
        chunk_size: actions per chunk of "MlpPolicy"; any other policy has its own.
        imitation: draws a weighted loss to add; it may return None.
        seed: of the weights of "MlpPolicy", of every random choice of the update, and of exploration in `predict`.
        verbose: as in Stable-Baselines3.
        tensorboard_log: as in Stable-Baselines3.
    """

    policy: ChunkPredictor  # type: ignore[assignment] # it decides on chunks, an ActorCriticPolicy on steps
    env: ChunkVecEnv

    def __init__(
        self,
        policy: str | TrainablePolicy,
        env: StepVecEnv | BatchedEnv,
        config: PPOConfig | None = None,
        *,
        chunk_size: int = 1,
        imitation: Callable[[torch.Generator], Tensor | None] | None = None,
        seed: int = 0,
        verbose: int = 0,
        tensorboard_log: str | None = None,
    ) -> None:
        config, batched = config or PPOConfig(), _batched(env)
        chosen = _mlp(policy, batched, chunk_size, seed) if isinstance(policy, str) else policy
        self.ppo = PPO(chosen, config, imitation, seed)
        super().__init__(
            policy=ChunkPredictor,  # type: ignore[arg-type] # nobody builds it from its class
            env=ChunkVecEnv(batched, chosen.n_action_steps, config.gamma),
            learning_rate=self.ppo.learning_rate,
            n_steps=config.n_steps,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            ent_coef=config.ent_coef,
            vf_coef=config.vf_coef,
            max_grad_norm=config.max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=batched.device,
            _init_setup_model=False,
        )
        self.policy = ChunkPredictor(chosen, batched, seed)
        self._setup_lr_schedule()
        self.rollout: Rollout | None = None
        self.rollout_buffer = None  # type: ignore[assignment] # `learn` hands it to `collect_rollouts`

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Leave the environment as it is; SB3 would move the channels of its images to the front, for its networks."""
        wrapped: VecEnv = env
        return wrapped

    def collect_rollouts(  # type: ignore[override]
        self, env: ChunkVecEnv, callback: BaseCallback, rollout_buffer: object, n_rollout_steps: int
    ) -> bool:
        """Collect `rollout`: up to `n_rollout_steps` chunks in each environment; False where a callback ended it."""
        return self.collect(env, callback, n_rollout_steps, self.ppo.config.fresh_rollouts)

    def collect(self, env: ChunkVecEnv, callback: BaseCallback, n_steps: int, fresh: bool) -> bool:
        """Collect `rollout` as `collect_rollouts` does; `fresh` resets first. One callback step is one chunk."""
        callback.on_rollout_start()
        n_done, going_on = 0, True
        if fresh or not env.batched.begun:
            env.count_anew()  # `PPO.collect` resets the environments without the adapter

        def on_step(actions: Tensor, step: ChunkStep) -> bool:
            nonlocal n_done, going_on
            n_done += 1
            self.num_timesteps += int(step.executed.sum())
            new_obs, rewards, dones, infos = env.translate(step)
            self._update_info_buffer(infos, dones)
            # Local variables under the names that SB3's `collect_rollouts` has, for callbacks that read `self.locals`.
            seen = {"new_obs": new_obs, "rewards": rewards, "dones": dones, "infos": infos}
            seen |= {"actions": actions.cpu().numpy(), "n_steps": n_done, "place": env.batched.place, "env": env}
            callback.update_locals(seen)
            going_on = bool(callback.on_step())
            return going_on

        self.rollout = self.ppo.collect(env.batched, n_steps, fresh, on_step)
        if going_on:
            callback.on_rollout_end()
        return going_on

    def train(self) -> None:
        """Update from the last collected rollout."""
        assert self.rollout is not None
        self.ppo.progress_remaining = self._current_progress_remaining
        samples = Samples.from_rollout(self.rollout, self.gamma, self.gae_lambda)
        for name, value in self.ppo.update(samples).items():
            self.logger.record(f"train/{name}", value)
        self._n_updates += 1

    def save(self, path: str | Path, *_: object, **__: object) -> None:  # type: ignore[override]
        """Write weights, optimizer and random state as a checkpoint folder; a `.zip` suffix of the name is removed.

        A zip of Stable-Baselines3 contains pickle, so loading one can run code; loading this folder cannot.
        """
        state = {"optimizer": self.ppo.optimizer.state_dict(), "generator": self.ppo.generator.get_state()}
        state |= {"num_timesteps": self.num_timesteps, "n_updates": self._n_updates}
        weights, about = dict(self.policy.chunks.state_dict()), {"algorithm": type(self).__name__}
        readme = f"# PPO on chunks\n\nAfter {self.num_timesteps:,} steps; load it with `rl.ppo.sb3.ChunkPPO.load`.\n"
        save_checkpoint(folder_of(path), about, weights, readme, pack_training_state(state))

    @classmethod
    def load(  # type: ignore[override]
        cls, path: str | Path, env: StepVecEnv | BatchedEnv, policy: str | TrainablePolicy = MLP, **options: Any
    ) -> ChunkPPO:
        """Load what `save` wrote; give the same `policy` and `options` as to the constructor then.

        Raises:
            UserError: `path` is not such a folder, or its weights do not fit the policy.
        """
        if Path(path).is_file():
            raise UserError(f"{path}: a zip of Stable-Baselines3 is pickled and can run code; load a checkpoint folder")
        weights, state = load_checkpoint(folder_of(path))[1], load_training_state(folder_of(path))
        model = cls(policy, env, **options)
        try:
            load_weights(model.policy.chunks, checked_weights(path, weights))
            model.ppo.optimizer.load_state_dict(state["optimizer"])
            model.num_timesteps, model._n_updates = state["num_timesteps"], state["n_updates"]
        except (KeyError, RuntimeError, ValueError) as error:
            expected = "give load() the env, policy and chunk_size that it was saved with"
            raise UserError(f"{path}: what was saved does not fit this policy; {expected}") from error
        model.ppo.generator.set_state(state["generator"])
        return model


class ChunkPredictor(BasePolicy):
    """Adapter of a chunk policy to SB3's policy interface: `predict` takes flat observations, returns single actions.

    Args:
        chunks: the policy; it is not copied.
        env: defines the observation and action space.
        seed: of exploration in `predict`.
    """

    def __init__(self, chunks: TrainablePolicy, env: BatchedEnv, seed: int = 0) -> None:
        super().__init__(observation_space(env), action_space(env))
        self.chunks, self._generator = chunks, torch.Generator(chunks.device).manual_seed(seed)

    def _predict(self, observation: Tensor | dict[str, Tensor], deterministic: bool = False) -> Tensor:
        """Decide on chunks (n, n_action_steps, action_dim) for n observations of an adapter."""
        policy, device = self.chunks, self.chunks.device
        context = policy.encode(unflatten_obs(observation, policy.spec, policy.n_context_frames))
        if deterministic:  # the same noise for each row, so that a decision depends on the observation alone
            same = torch.zeros(n_rows(context), dtype=torch.long, device=device)
            return policy.decide(context, same, same)
        return policy.sample(context, self._generator).actions

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return one action per row for a single-step environment; `state` (as SB3 calls it) holds the rest of a chunk.

        Args:
            observation: of an adapter, with n rows or of one environment.
            state: what the last call returned: queued actions (n, k, action_dim) and how many are used (n,).
            episode_start: (n,) bool; a new episode discards its queued actions.
            deterministic: decide without exploration.
        """
        given = observation if isinstance(observation, dict) else {STATE: np.asarray(observation, np.float32)}
        is_single = given[STATE].ndim == 1
        rows = {name: values[None] if is_single else values for name, values in given.items()}
        n, k = len(rows[STATE]), self.chunks.n_action_steps
        if state is None:
            state = np.zeros((n, k, self.chunks.spec.action_dim), np.float32), np.full(n, k)
        queue, used = (part.copy() for part in state)
        if episode_start is not None:
            used[np.atleast_1d(episode_start).astype(bool)] = k
        empty = used >= k  # rows that need a new chunk
        if empty.any():
            with torch.no_grad():
                chosen = {name: torch.as_tensor(v[empty], device=self.chunks.device) for name, v in rows.items()}
                chunk = self._predict(chosen if isinstance(observation, dict) else chosen[STATE], deterministic)
            queue[empty], used[empty] = chunk.cpu().numpy(), 0
        action = queue[np.arange(n), used]
        return (action[0] if is_single else action), (queue, used + 1)


def folder_of(path: str | Path) -> Path:
    """Return the checkpoint folder for a path of Stable-Baselines3, without the `.zip` that it may append."""
    path = Path(path)
    return path.with_suffix("") if path.suffix == ".zip" else path


def _batched(env: StepVecEnv | BatchedEnv) -> BatchedEnv:
    if isinstance(env, BatchedEnv | StepVecEnv):
        return env if isinstance(env, BatchedEnv) else env.batched
    raise UserError(
        f"env: a {type(env).__name__} does not execute chunks; expected a VecEnv of rl.envs.adapters, "
        "such as StepVecEnv(SimEnv('Pendulum-v1', 8))"
    )


def _mlp(name: str, env: BatchedEnv, chunk_size: int, seed: int) -> GaussianPolicy:
    if name != MLP:
        raise UserError(f"policy={name!r}: {closest_or_known(name, [MLP])}, or give a policy of rl.policies")
    torch.manual_seed(seed)
    return GaussianPolicy(env, chunk_size).to(env.device)
