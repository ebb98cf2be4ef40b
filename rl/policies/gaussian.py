"""A simple policy: an MLP with Gaussian actions, whose chain has a single step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rewards.errors import UserError
from rl.policies.api import Denoiser
from rl.policies.chain import ChainPolicy
from rl.policies.exportable import Graph
from world_model.checkpoint import checked_weights
from world_model.data.episodes import Episode
from world_model.data.windows import Windows
from world_model.env import Obs
from world_model.spec import STATE, Spec


class GaussianMLP(Denoiser):
    """An MLP with a learned standard deviation that does not depend on the state, for environments without images.

    Its chain has one step, from zeros to a Gaussian chunk in units of half the range of an action.

    Args:
        spec: sets the sizes.
        n_context_frames: frames of an observation.
        chunk_size: actions per decision.
        width: units of the hidden layers.
        log_std: initial log of the standard deviation, in units of half the range of an action.
    """

    starts_at_zero = True
    n_denoising_steps = 1
    middle: Tensor
    reach: Tensor
    critic: nn.Module

    def __init__(
        self, spec: Spec, n_context_frames: int, chunk_size: int = 1, width: int = 64, log_std: float = -0.5
    ) -> None:
        super().__init__()
        self.spec, self.n_context_frames = spec, n_context_frames
        self.reads = {STATE: spec.features[STATE]}
        self.horizon, self.chain_dim = chunk_size, spec.action_dim
        self.n_features = n_context_frames * spec.state_dim + len(spec.tasks)
        out = chunk_size * spec.action_dim
        self.actor = _mlp(self.n_features, width, out)
        self.critic = _mlp(self.n_features, width, 1)
        # A small last layer makes the untrained policy explore around the middle of the action range.
        for parameter in self.actor[-1].parameters():
            nn.init.normal_(parameter, std=0.01)
        self.log_std = nn.Parameter(torch.full((out,), log_std))
        low, high = torch.tensor(spec.action_low), torch.tensor(spec.action_high)
        self.register_buffer("middle", (high + low) / 2, persistent=False)
        self.register_buffer("reach", (high - low) / 2, persistent=False)

    def encode(self, obs: Obs, generator: torch.Generator | None = None) -> Tensor:
        """Flatten the frames and append the task as one-hot; `generator` is not used: there is no training noise."""
        task = torch.nn.functional.one_hot(obs["task"], len(self.spec.tasks)).float()
        return torch.cat([obs["state"].flatten(1), task], dim=-1)

    def features(self, encoded: Tensor) -> Tensor:
        """Return the encoded observation itself."""
        return encoded

    def step(self, prepared: Tensor, x: Tensor, i: int, n_steps: int) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of the only step; `x` does not matter."""
        return self.actor(prepared).view_as(x), self.log_std.exp().view(x.shape[1:])

    def to_actions(self, encoded: Tensor, x: Tensor) -> Tensor:
        """Scale the outputs to environment units."""
        return self.middle + self.reach * x

    def imitation_loss(self, encoded: Tensor, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean negative log-likelihood of an action dimension, up to a constant."""
        z = (self.actor(encoded) - ((actions - self.middle) / self.reach).flatten(1)) / self.log_std.exp()
        return (0.5 * z.square() + self.log_std).mean()

    def action_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the actor MLP and the log standard deviation."""
        return [*self.actor.parameters(), self.log_std]


class Observed(Protocol):
    """What a new policy needs to know of an environment, which every `BatchedEnv` has."""

    @property
    def spec(self) -> Spec:
        """Features, action bounds and tasks."""

    @property
    def n_context_frames(self) -> int:
        """Frames in an observation."""


class GaussianPolicy(ChainPolicy):
    """A new Gaussian MLP as a policy, sized by an environment; see `GaussianMLP` for the other arguments."""

    denoiser: GaussianMLP

    def __init__(self, env: Observed, chunk_size: int = 1, width: int = 64, log_std: float = -0.5) -> None:
        network = GaussianMLP(env.spec, env.n_context_frames, chunk_size, width, log_std)
        # One step, and no least deviation: the network learns its own.
        super().__init__(network, env.spec, n_denoising_steps=1, noise_std=0.0)


class GaussianGraph(Graph):
    """Graph of a Gaussian policy: state and task to mean actions, as in evaluation."""

    def __init__(self, policy: GaussianPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, state: Tensor, task: Tensor) -> Tensor:
        """Return actions (n, chunk_size, action_dim) for state (n, n_context_frames, state_dim) and task (n,)."""
        policy, network = self.policy, self.policy.denoiser
        encoded = network.encode({"state": state, "task": task})
        mean = network.actor(encoded).view(-1, policy.chunk_size, policy.spec.action_dim)
        return network.to_actions(encoded, mean).clamp(policy.low, policy.high)

    def random_inputs(self, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw `n` inputs with standard normal states, because this policy has no statistics of real states."""
        shape = (n, self.policy.n_context_frames, self.policy.spec.state_dim)
        task = torch.randint(len(self.policy.spec.tasks), (n,), generator=generator)
        return torch.randn(shape, generator=generator), task

    def recorded_inputs(self, episodes: list[Episode], n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw `n` inputs from recorded episodes."""
        tasks, size = self.policy.spec.tasks, self.policy.chunk_size
        windows = Windows(episodes, tasks=tasks, n_context_frames=self.policy.n_context_frames, chunk_size=size)
        batch = windows.sample(n, generator)
        return batch.context["state"], batch.task


def load_gaussian(checkpoint: str | Path, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> GaussianPolicy:
    """Build a Gaussian policy from the weights and the spec of a checkpoint.

    The checkpoint has no architecture config, so the sizes are derived from the shapes of the weights.

    Raises:
        UserError: config and weights do not describe a Gaussian policy.
    """
    tensors = checked_weights(checkpoint, tensors)
    try:
        spec = Spec.from_dict(config["spec"])
        width, n_inputs = tensors["actor.0.weight"].shape
        frames = (n_inputs - len(spec.tasks)) // spec.state_dim
        # The constructor needs an environment, but only for its sizes.
        env = _Observed(spec, n_context_frames=frames)
        policy = GaussianPolicy(env, chunk_size=len(tensors["log_std"]) // spec.action_dim, width=width)
        missing, unexpected = policy.denoiser.load_state_dict(dict(tensors), strict=False)
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError, IndexError) as error:
        raise UserError(f"{checkpoint}: its config and weights do not describe a Gaussian policy: {error!r}") from error
    if wrong := [*unexpected, *missing]:
        raise UserError(f"{checkpoint}: tensor {min(wrong)!r} is missing or unexpected in a Gaussian policy")
    return policy


def _mlp(dim: int, width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out))


@dataclass(frozen=True)
class _Observed:
    """Spec and context length, where there is no environment to take them from; see `Observed`."""

    spec: Spec
    n_context_frames: int
