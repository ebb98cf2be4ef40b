"""Policies that decide on a whole chunk of actions at once, with a likelihood for what they decided.

`FlowPolicy` denoises a chunk: its likelihood is that of all noisy steps of the stored chain (DPPO, 2409.00588;
ReinFlow, 2505.22094). The plain `GaussianPolicy` next door goes through the same PPO.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from rewards.errors import UserError
from world_model.env import BatchedEnv, ChunkStep, Obs
from world_model.flow import gaussian_log_prob, noise_level, seeded_noise, step_mean
from world_model.wam import modes
from world_model.wam.model import Context, WorldActionModel


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


class FlowPolicy(ChunkPolicy):
    """The action side of a world-action model.

    Args:
        model: trained in place; only its action decoder and critic have gradients.
        n_denoising_steps: steps K of the chain, all of them noisy when exploring.
        noise_std: deviation of the noise added after each step, in units of the normalised action.
        noise_correlation: of the noise of neighbouring actions of a chunk, in [0, 1). White noise averages out within a
            chunk; correlated noise moves the hand elsewhere, which is what there is to learn from (cf. 2302.12065).
        n_action_steps: how much of a chunk is executed; None: all of it.

    Raises:
        UserError: it does not fit the chunks of the model.
    """

    def __init__(
        self,
        model: WorldActionModel,
        env: BatchedEnv,
        n_denoising_steps: int = 2,
        noise_std: float = 0.2,
        n_action_steps: int | None = None,
        noise_correlation: float = 0.8,
    ) -> None:
        super().__init__(env)
        self.model = model
        self.n_denoising_steps, self.noise_std = n_denoising_steps, noise_std
        self.chunk_size = size = model.config.chunk_size
        self.n_action_steps = n = n_action_steps or size
        if n > size:
            raise UserError(f"n_action_steps={n} exceeds the chunk of {size} actions")
        if n < size and model.pictures is not None:
            raise UserError(f"n_action_steps={n}: a model that sees gets a picture after each whole chunk; use {size}")
        model.requires_grad_(False)
        model.action.requires_grad_(True)
        model.value.requires_grad_(True)
        self.reference = copy.deepcopy(model.action).requires_grad_(False)
        lag = torch.arange(self.chunk_size)
        covariance = torch.tensor(noise_correlation) ** (lag[:, None] - lag).abs()
        self.color: Tensor  # Cholesky factor of the correlation between the actions of a chunk
        self.register_buffer("color", torch.linalg.cholesky(covariance.double()).float())
        self.whiten: Tensor
        self.register_buffer("whiten", torch.linalg.inv(self.color.double()).float())
        self.to(model.device)

    def encode(self, obs: Obs, generator: torch.Generator | None = None) -> Context:
        """Encode without a graph: the encoder is frozen. The noise is `context_noise` of the model."""
        with torch.no_grad():
            state = obs["state"] if generator is None else self.model.noisy(obs["state"], generator)
            return self.model.encode(state, obs["task"])

    def sample(self, context: Context, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Denoise with noise after every step. The executed action is clamped, the chain never."""
        x = modes.action_noise(self.model, len(context.frames), generator)
        chain, means = [x], []
        for i in range(self.n_denoising_steps):
            t = x.new_full((len(x),), noise_level(i, self.n_denoising_steps))
            mean = step_mean(x, self.model.predict_action(context, x, t), i, self.n_denoising_steps)
            white = torch.randn(mean.shape, generator=generator, device=mean.device)
            x = mean + self.noise_std * self._mix(self.color, white)
            chain.append(x)
            means.append(mean)
        stacked = torch.stack(chain, dim=1)
        return self._executable(x), stacked, self.chain_log_prob(stacked, torch.stack(means, dim=1))

    def decide(self, context: Context, seed: Tensor, counter: Tensor) -> Tensor:
        """Integrate the ODE from noise seeded row by row."""
        noise = seeded_noise(seed, counter, (self.model.action_codec.n_tokens, self.model.action_codec.code_dim))
        return modes.policy(self.model, context, noise, self.n_denoising_steps)[:, : self.n_action_steps]

    def chain_means(self, context: Context, chain: Tensor) -> Tensor:
        """Each step from where the stored chain was. Shape: (n, K, n_tokens, code_dim)."""
        return self._means(self.model.action, context, chain)

    def reference_means(self, context: Context, chain: Tensor) -> Tensor:
        """The same under the weights of the reference."""
        with torch.no_grad():
            return self._means(self.reference, context, chain)

    def set_reference(self) -> None:
        """Copy the action decoder."""
        self.reference.load_state_dict(self.model.action.state_dict())

    def chain_log_prob(self, chain: Tensor, means: Tensor) -> Tensor:
        """The starting noise does not depend on the weights and is left out."""
        n, steps = means.shape[:2]
        shape = (n, steps, self.chunk_size, self.spec.action_dim)
        white, mean = (self._mix(self.whiten, part).view(shape).transpose(1, 2) for part in (chain[:, 1:], means))
        volume = steps * self.spec.action_dim * self.color.diagonal().log()
        each = gaussian_log_prob(white.flatten(0, 1), mean.flatten(0, 1), self.noise_std)
        return (each.view(n, self.chunk_size) - volume)[:, : self.n_action_steps]

    def reference_kl(self, means: Tensor, reference_means: Tensor) -> Tensor:
        """Sum over steps of ||mean - reference mean||^2 / (2 std^2), in whitened units."""
        return self._mix(self.whiten, means - reference_means).square().flatten(1).sum(1) / (2 * self.noise_std**2)

    def values_of_features(self, features: Tensor) -> Tensor:
        """The value read-out."""
        return self.model.value(features)

    def actor_parameters(self) -> list[nn.Parameter]:
        """The action decoder."""
        return list(self.model.action_parameters())

    def critic_parameters(self) -> list[nn.Parameter]:
        """The value read-out."""
        return list(self.model.value.parameters())

    def _means(self, decoder: nn.Module, context: Context, chain: Tensor) -> Tensor:
        steps, means = chain.shape[1] - 1, []
        for i in range(steps):
            x = chain[:, i].contiguous()  # as it was sampled: a strided one is multiplied in another order
            estimate = decoder(x, x.new_full((len(x),), noise_level(i, steps)), context)
            means.append(step_mean(x, estimate, i, steps))
        return torch.stack(means, dim=1)

    def _mix(self, matrix: Tensor, codes: Tensor) -> Tensor:
        """Apply a (chunk_size, chunk_size) matrix along the actions of codes (..., n_tokens, code_dim)."""
        return (matrix @ codes.reshape(*codes.shape[:-2], self.chunk_size, -1)).view_as(codes)

    def _executable(self, codes: Tensor) -> Tensor:
        actions = self.model.action_codec.decode(codes).clamp(self.model.action_low, self.model.action_high)
        return actions[:, : self.n_action_steps]


def policy_state(policy: ChunkPolicy) -> dict[str, Any]:
    """Return a copy of the trained weights, for a rollback."""
    return {name: value.detach().clone() for name, value in policy.named_parameters() if value.requires_grad}


def load_policy_state(policy: ChunkPolicy, state: dict[str, Tensor]) -> None:
    """Put back what `policy_state` gave."""
    parameters = dict(policy.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)
