"""The interface of policies that output a chunk of actions and the likelihood of that chunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from world_model.api import Context
from world_model.env import ChunkStep, Obs
from world_model.spec import Spec


class Observed(Protocol):
    """What a policy needs to know of an environment, which every `BatchedEnv` has."""

    @property
    def spec(self) -> Spec:
        """Features, action bounds and tasks."""

    @property
    def n_context_frames(self) -> int:
        """Frames in an observation."""


class ChunkPolicy(nn.Module, ABC):
    """What PPO needs of a policy.

    `n` is the number of rows. The chain of a decision is everything from which its likelihood can be computed again:
    for a flow policy all `K + 1` noisy chunks of the denoising, for a Gaussian policy its mean and the drawn chunk.
    """

    chunk_size: int
    n_action_steps: int

    def __init__(self, env: Observed) -> None:
        super().__init__()
        self.spec, self.n_context_frames = env.spec, env.n_context_frames

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @abstractmethod
    def encode(self, obs: Obs, generator: torch.Generator | None = None) -> Context:
        """Encode observations of n rows once; all other methods use the result.

        With a `generator` the training noise of the policy is first added to the observations; PPO does so in training.
        """

    @abstractmethod
    def sample(self, context: Context, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw actions with exploration noise.

        Returns:
            Actions (n, n_action_steps, action_dim), chain (n, K + 1, ...) and log-likelihood (n, n_action_steps).
        """

    @abstractmethod
    def decide(self, context: Context, seed: Tensor, counter: Tensor) -> Tensor:
        """Return actions without exploration (n, n_action_steps, action_dim).

        The noise of a row depends only on its `seed` (n,) and `counter` (n,), so an evaluation can be repeated exactly.
        """

    @abstractmethod
    def chain_means(self, context: Context, chain: Tensor) -> Tensor:
        """Return the mean of each step of a chain (n, K, ...) under the current weights."""

    @abstractmethod
    def chain_log_prob(self, chain: Tensor, means: Tensor) -> Tensor:
        """Return the log-likelihood of each executed action given those before it, in float32.

        It is summed over the steps of the chain and the dimensions of the action. Actions that are not executed are
        left out, as in DPPO (2409.00588), because their noise has no effect on the advantage. Shape:
        (n, n_action_steps).
        """

    @abstractmethod
    def reference_kl(self, means: Tensor, reference_means: Tensor) -> Tensor:
        """Return the Gaussian KL to the reference policy (n,), summed over the steps of the chain."""

    @abstractmethod
    def values_of_features(self, features: Tensor) -> Tensor:
        """Return the critic's value (n,) of features (n, n_features) of encoded observations."""

    def values(self, context: Context) -> Tensor:
        """Return the critic's value (n,) of encoded observations."""
        return self.values_of_features(context.features)

    def values_after(self, step: ChunkStep, following: Context) -> Tensor:
        """Return the critic's value (n,) of the state after a step, for bootstrapping.

        `following` is the encoded `step.obs`. Where an episode ended, this is already the next episode, so the value of
        `step.final_obs` is used there.
        """
        values, ended = self.values(following), step.terminated | step.truncated
        if ended.any():
            values[ended] = self.values(self.encode({name: of[ended] for name, of in step.final_obs.items()}))
        return values

    @abstractmethod
    def reference_means(self, context: Context, chain: Tensor) -> Tensor:
        """Return `chain_means` of the reference: the policy at the last `set_reference`, or at the start."""

    def set_reference(self) -> None:
        """Make the current weights the reference policy of `reference_kl`."""

    @abstractmethod
    def actor_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the policy gradient trains."""

    @abstractmethod
    def critic_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the critic."""

    def entropy(self) -> Tensor:
        """Return the entropy of a decision up to a constant, a scalar; 0 for a fixed exploration noise."""
        return torch.zeros((), device=self.device)


def policy_state(policy: ChunkPolicy) -> dict[str, Any]:
    """Return a copy of the trained weights, for a rollback."""
    return {name: value.detach().clone() for name, value in policy.named_parameters() if value.requires_grad}


def load_policy_state(policy: ChunkPolicy, state: dict[str, Tensor]) -> None:
    """Restore weights from `policy_state`, in place."""
    parameters = dict(policy.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)
