"""Policies that decide on a whole chunk of actions at once, with a likelihood for what they decided."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from rl.envs.adapters import action_space, observation_space, unflatten_obs
from world_model.api import Context
from world_model.env import BatchedEnv, ChunkStep, Obs


class ChunkPolicy(BasePolicy):
    """What PPO asks of a policy. `n` rows everywhere; a chain is whatever the likelihood needs of a decision."""

    chunk_size: int
    n_action_steps: int

    def __init__(self, env: BatchedEnv) -> None:
        super().__init__(observation_space(env), action_space(env))
        self.spec, self.n_context_frames = env.spec, env.n_context_frames

    @abstractmethod
    def encode(self, obs: Obs, generator: torch.Generator | None = None) -> Context:
        """Encode an observation once; the rest of the policy reads the result.

        With a `generator`, as PPO does while it learns, the noise that the policy is trained with is added first.
        """

    @abstractmethod
    def sample(self, context: Context, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Explore: actions (n, n_action_steps, action_dim), chain (n, K + 1, ...), its log-likelihood."""

    @abstractmethod
    def decide(self, context: Context, seed: Tensor, counter: Tensor) -> Tensor:
        """Act without exploring (n, n_action_steps, action_dim); any noise depends on (seed, counter) (n,) alone."""

    @abstractmethod
    def chain_means(self, context: Context, chain: Tensor) -> Tensor:
        """Means of the chain's steps (n, K, ...) under the present weights."""

    @abstractmethod
    def chain_log_prob(self, chain: Tensor, means: Tensor) -> Tensor:
        """Log-likelihood of each executed action (n, n_action_steps) given those before it, in float32.

        Summed over the steps of the chain and the dimensions of the action. The rest of the chunk is left out, as in
        DPPO (2409.00588): its noise is not what an advantage comes from.
        """

    @abstractmethod
    def reference_kl(self, means: Tensor, reference_means: Tensor) -> Tensor:
        """Sum over chain steps of the Gaussian KL to the reference policy (n,)."""

    @abstractmethod
    def values_of_features(self, features: Tensor) -> Tensor:
        """The critic's estimate (n,) from the features of encoded observations."""

    def values(self, context: Context) -> Tensor:
        """The critic's estimate (n,)."""
        return self.values_of_features(context.features)

    def values_after(self, step: ChunkStep, following: Context) -> Tensor:
        """Return the critic's estimate (n,) of where a step led: of the end of an episode, else of what comes next."""
        values, ended = self.values(following), step.terminated | step.truncated
        if ended.any():
            values[ended] = self.values(self.encode({name: of[ended] for name, of in step.final_obs.items()}))
        return values

    @abstractmethod
    def reference_means(self, context: Context, chain: Tensor) -> Tensor:
        """`chain_means` of the policy at the last `set_reference`, or at the start."""

    def set_reference(self) -> None:
        """Make the policy of now the one that distances are measured from."""

    @abstractmethod
    def actor_parameters(self) -> list[nn.Parameter]:
        """Parameters that the policy gradient trains."""

    @abstractmethod
    def critic_parameters(self) -> list[nn.Parameter]:
        """Parameters of the critic."""

    def entropy(self) -> Tensor:
        """Entropy of a decision, up to a constant."""
        return torch.zeros((), device=self.device)

    def _predict(self, observation: Tensor | dict[str, Tensor], deterministic: bool = False) -> Tensor:
        assert isinstance(observation, Tensor)  # observations of a `VecEnv` of ours are flat
        context = self.encode(unflatten_obs(observation, self.spec, self.n_context_frames))
        rows = torch.arange(len(observation), device=self.device)
        if deterministic:
            return self.decide(context, rows, torch.zeros_like(rows))
        seed = int(torch.randint(2**62, ()))  # from the generator that SB3 seeds, which is on the CPU
        return self.sample(context, torch.Generator(self.device).manual_seed(seed))[0]

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return one action a row for a single-step environment; the rest of a chunk waits in `state` (SB3's word)."""
        flat = np.atleast_2d(np.asarray(observation, dtype=np.float32))
        n, k = len(flat), self.n_action_steps
        if state is None:
            state = np.zeros((n, k, self.spec.action_dim), np.float32), np.full(n, k)
        queue, used = (part.copy() for part in state)
        if episode_start is not None:
            used[np.atleast_1d(episode_start).astype(bool)] = k
        empty = used >= k
        if empty.any():
            with torch.no_grad():
                chunk = self._predict(torch.as_tensor(flat[empty], device=self.device), deterministic)
            queue[empty], used[empty] = chunk.cpu().numpy(), 0
        action = queue[np.arange(n), used]
        return (action[0] if np.asarray(observation).ndim == 1 else action), (queue, used + 1)


def policy_state(policy: ChunkPolicy) -> dict[str, Any]:
    """Return a copy of the trained weights, for a rollback."""
    return {name: value.detach().clone() for name, value in policy.named_parameters() if value.requires_grad}


def load_policy_state(policy: ChunkPolicy, state: dict[str, Tensor]) -> None:
    """Put back what `policy_state` gave."""
    parameters = dict(policy.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)
