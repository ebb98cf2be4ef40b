"""Policies that decide on a whole chunk of actions at once, with a likelihood for what they decided."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from world_model.api import Context
from world_model.env import BatchedEnv, ChunkStep, Obs


class ChunkPolicy(nn.Module, ABC):
    """What PPO asks of a policy. `n` rows everywhere; a chain is whatever the likelihood needs of a decision."""

    chunk_size: int
    n_action_steps: int

    def __init__(self, env: BatchedEnv) -> None:
        super().__init__()
        self.spec, self.n_context_frames = env.spec, env.n_context_frames

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

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


def policy_state(policy: ChunkPolicy) -> dict[str, Any]:
    """Return a copy of the trained weights, for a rollback."""
    return {name: value.detach().clone() for name, value in policy.named_parameters() if value.requires_grad}


def load_policy_state(policy: ChunkPolicy, state: dict[str, Tensor]) -> None:
    """Put back what `policy_state` gave."""
    parameters = dict(policy.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)
