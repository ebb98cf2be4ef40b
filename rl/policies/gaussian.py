"""A simple policy: an MLP with Gaussian actions, whose chain has a single step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards.errors import UserError
from rl.policies.api import ChunkPolicy, Observed
from rl.policies.exportable import Graph
from world_model.api import Context
from world_model.checkpoint import checked_weights
from world_model.data.episodes import Episode
from world_model.data.windows import Windows
from world_model.env import Obs
from world_model.spec import Spec


class GaussianPolicy(ChunkPolicy):
    """An MLP with a learned standard deviation that does not depend on the state, for environments without images.

    Args:
        env: environment whose spec and context frames set the sizes.
        chunk_size: actions per decision.
        width: units of the hidden layers.
        log_std: initial log of the standard deviation, in units of half the range of an action.
    """

    middle: Tensor
    reach: Tensor

    def __init__(self, env: Observed, chunk_size: int = 1, width: int = 64, log_std: float = -0.5) -> None:
        super().__init__(env)
        self.chunk_size = self.n_action_steps = chunk_size
        dim, out = env.n_context_frames * env.spec.state_dim + len(env.spec.tasks), chunk_size * env.spec.action_dim
        self.actor, self.critic = _mlp(dim, width, out), _mlp(dim, width, 1)
        # A small last layer makes the untrained policy explore around the middle of the action range.
        for parameter in self.actor[-1].parameters():
            nn.init.normal_(parameter, std=0.01)
        self.log_std = nn.Parameter(torch.full((out,), log_std))
        low, high = (torch.tensor(bounds).repeat(chunk_size) for bounds in (env.spec.action_low, env.spec.action_high))
        self.register_buffer("middle", (high + low) / 2)
        self.register_buffer("reach", (high - low) / 2)

    def encode(self, obs: Obs, generator: torch.Generator | None = None) -> Context:
        """Flatten the frames and append the task as one-hot; `generator` is not used: there is no training noise."""
        task = torch.nn.functional.one_hot(obs["task"], len(self.spec.tasks)).float()
        return Context(obs["state"], [], torch.cat([obs["state"].flatten(1), task], dim=-1))

    def sample(self, context: Context, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw one Gaussian action chunk."""
        mean = self.actor(context.features)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        # The chain is the mean (the start of the only step) and the drawn actions, both before scaling and clamping.
        chain = torch.stack([mean, mean + self.log_std.exp() * noise], dim=1).detach()
        return self._executable(chain[:, 1]), chain, self.chain_log_prob(chain, mean.unsqueeze(1))

    def decide(self, context: Context, seed: Tensor, counter: Tensor) -> Tensor:
        """Return the mean actions."""
        return self._executable(self.actor(context.features))

    def chain_means(self, context: Context, chain: Tensor) -> Tensor:
        """Return the mean under the current weights. Shape: (n, 1, chunk_size * action_dim)."""
        return self.actor(context.features).unsqueeze(1)

    def reference_means(self, context: Context, chain: Tensor) -> Tensor:
        """Return the mean with which the chain was drawn, because this policy has no pretrained start policy."""
        return chain[:, :1]

    def chain_log_prob(self, chain: Tensor, means: Tensor) -> Tensor:
        """Return the log-density of the drawn actions. Shape: (n, chunk_size)."""
        # Sum over the dimensions of each action, so that every action of the chunk has its own likelihood.
        z = (chain[:, 1] - means[:, 0]) / self.log_std.exp()
        each = -0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        return each.view(len(z), self.chunk_size, -1).sum(-1)

    def reference_kl(self, means: Tensor, reference_means: Tensor) -> Tensor:
        """Return the KL to the policy that drew the chain, for equal standard deviations. Shape: (n,)."""
        return ((means - reference_means) / self.log_std.exp()).square().flatten(1).sum(1) / 2

    def values_of_features(self, features: Tensor) -> Tensor:
        """Return the value of the critic MLP (n,)."""
        return self.critic(features).squeeze(-1)

    def entropy(self) -> Tensor:
        """Return the sum of the log standard deviations: the entropy up to a constant."""
        return self.log_std.sum()

    def actor_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the actor MLP and the log standard deviation."""
        return [*self.actor.parameters(), self.log_std]

    def critic_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the critic MLP."""
        return list(self.critic.parameters())

    def _executable(self, raw: Tensor) -> Tensor:
        """Convert outputs (n, chunk_size * action_dim) to actions in environment units, within the bounds."""
        actions = self.middle + self.reach * raw.clamp(-1, 1)
        return actions.view(len(raw), self.chunk_size, self.spec.action_dim)


class GaussianGraph(Graph):
    """Graph of a Gaussian policy: state and task to mean actions, as in evaluation."""

    def __init__(self, policy: GaussianPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, state: Tensor, task: Tensor) -> Tensor:
        """Return actions (n, chunk_size, action_dim) for state (n, n_context_frames, state_dim) and task (n,)."""
        context = self.policy.encode({"state": state, "task": task})
        return self.policy.decide(context, seed=task, counter=task)  # seed and counter are not used

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
        missing, unexpected = policy.load_state_dict(dict(tensors), strict=False)
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError, IndexError) as error:
        raise UserError(f"{checkpoint}: its config and weights do not describe a Gaussian policy: {error!r}") from error
    if wrong := [*unexpected, *(set(missing) - {"middle", "reach"})]:  # these two are computed from the spec
        raise UserError(f"{checkpoint}: tensor {min(wrong)!r} is missing or unexpected in a Gaussian policy")
    return policy


def _mlp(dim: int, width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out))


@dataclass(frozen=True)
class _Observed:
    """Spec and context length, where there is no environment to take them from; see `Observed`."""

    spec: Spec
    n_context_frames: int
