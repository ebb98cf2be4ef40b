"""The plain policy: an MLP with Gaussian actions, whose chain has a single step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards.errors import UserError
from rl.policies.api import ChunkPolicy
from rl.policies.exportable import Graph
from world_model.api import Context
from world_model.checkpoint import checked_weights
from world_model.data.episodes import Episode
from world_model.data.windows import Windows
from world_model.env import Advance, BatchedEnv, Obs, Start
from world_model.spec import Spec


class GaussianPolicy(ChunkPolicy):
    """An MLP with a state-independent deviation, for any environment with vectors; actions in units of their bounds."""

    middle: Tensor
    reach: Tensor

    def __init__(self, env: BatchedEnv, chunk_size: int = 1, width: int = 64, log_std: float = -0.5) -> None:
        super().__init__(env)
        self.chunk_size = self.n_action_steps = chunk_size
        dim, out = env.n_context_frames * env.spec.state_dim + len(env.spec.tasks), chunk_size * env.spec.action_dim
        self.actor, self.critic = _mlp(dim, width, out), _mlp(dim, width, 1)
        # A small last layer: the first policy explores around the middle of the action range.
        for parameter in self.actor[-1].parameters():
            nn.init.normal_(parameter, std=0.01)
        self.log_std = nn.Parameter(torch.full((out,), log_std))
        low, high = env.action_low.repeat(chunk_size), env.action_high.repeat(chunk_size)
        self.register_buffer("middle", (high + low) / 2)
        self.register_buffer("reach", (high - low) / 2)

    def encode(self, obs: Obs, generator: torch.Generator | None = None) -> Context:
        """Flatten the frames and append the task as one-hot; this policy is trained without noise."""
        task = torch.nn.functional.one_hot(obs["task"], len(self.spec.tasks)).float()
        return Context(obs["state"], [], torch.cat([obs["state"].flatten(1), task], dim=-1))

    def sample(self, context: Context, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw one Gaussian action chunk."""
        mean = self.actor(context.features)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        chain = torch.stack([mean, mean + self.log_std.exp() * noise], dim=1).detach()
        return self._executable(chain[:, 1]), chain, self.chain_log_prob(chain, mean.unsqueeze(1))

    def decide(self, context: Context, seed: Tensor, counter: Tensor) -> Tensor:
        """Take the mean."""
        return self._executable(self.actor(context.features))

    def chain_means(self, context: Context, chain: Tensor) -> Tensor:
        """Shape: (n, 1, chunk_size * action_dim)."""
        return self.actor(context.features).unsqueeze(1)

    def reference_means(self, context: Context, chain: Tensor) -> Tensor:
        """There is no start policy to stay near: the means that acted."""
        return chain[:, :1]

    def chain_log_prob(self, chain: Tensor, means: Tensor) -> Tensor:
        """Density of the drawn action."""
        z = (chain[:, 1] - means[:, 0]) / self.log_std.exp()
        each = -0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        return each.view(len(z), self.chunk_size, -1).sum(-1)

    def reference_kl(self, means: Tensor, reference_means: Tensor) -> Tensor:
        """KL to the means that acted."""
        return ((means - reference_means) / self.log_std.exp()).square().flatten(1).sum(1) / 2

    def values_of_features(self, features: Tensor) -> Tensor:
        """The critic MLP."""
        return self.critic(features).squeeze(-1)

    def entropy(self) -> Tensor:
        """Up to a constant, the sum of log deviations."""
        return self.log_std.sum()

    def actor_parameters(self) -> list[nn.Parameter]:
        """MLP and deviation."""
        return [*self.actor.parameters(), self.log_std]

    def critic_parameters(self) -> list[nn.Parameter]:
        """The critic MLP."""
        return list(self.critic.parameters())

    def _executable(self, raw: Tensor) -> Tensor:
        actions = self.middle + self.reach * raw.clamp(-1, 1)
        return actions.view(len(raw), self.chunk_size, self.spec.action_dim)


class GaussianGraph(Graph):
    """What is exported of a Gaussian policy: state and task to the mean actions, which is how it is evaluated."""

    def __init__(self, policy: GaussianPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, state: Tensor, task: Tensor) -> Tensor:
        """(n, n_context_frames, state_dim), (n,) -> (n, chunk_size, action_dim)."""
        context = self.policy.encode({"state": state, "task": task})
        return self.policy.decide(context, task, task)

    def random_inputs(self, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw `n` inputs: normal states, for there are no statistics of better ones."""
        shape = (n, self.policy.n_context_frames, self.policy.spec.state_dim)
        task = torch.randint(len(self.policy.spec.tasks), (n,), generator=generator)
        return torch.randn(shape, generator=generator), task

    def recorded_inputs(self, episodes: list[Episode], n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw `n` inputs from recorded episodes."""
        tasks, size = self.policy.spec.tasks, self.policy.chunk_size
        batch = Windows(episodes, tasks, self.policy.n_context_frames, size).sample(n, generator)
        return batch.context, batch.task


def load_gaussian(checkpoint: str | Path, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> GaussianPolicy:
    """Build the policy that the sizes of its weights describe; `wamtune train` keeps weights and spec, no more."""
    tensors = checked_weights(checkpoint, tensors)
    try:
        spec = Spec.from_dict(config["spec"])
        width, n_inputs = tensors["actor.0.weight"].shape
        frames = (n_inputs - len(spec.tasks)) // spec.state_dim
        policy = GaussianPolicy(_Nowhere(spec, 1, frames, 1), len(tensors["log_std"]) // spec.action_dim, width)
        missing, unexpected = policy.load_state_dict(dict(tensors), strict=False)
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError, IndexError) as error:
        raise UserError(f"{checkpoint}: its config and weights do not describe a Gaussian policy: {error!r}") from error
    if wrong := [*unexpected, *(set(missing) - {"middle", "reach"})]:  # those two follow from the spec
        raise UserError(f"{checkpoint}: tensor {min(wrong)!r} is missing or unexpected in a Gaussian policy")
    return policy


def _mlp(dim: int, width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out))


class _Nowhere(BatchedEnv):
    """An environment that is nothing but its sizes."""

    place = "nowhere"

    def _restart(self, mask: Tensor) -> Start:
        raise NotImplementedError

    def _advance(self, actions: Tensor, limit: Tensor) -> Advance:
        raise NotImplementedError
