"""What is exported of a policy, as modules that torch can trace, and inputs to compare them on."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rewards.errors import UserError
from world_model.data.episodes import Episode
from world_model.data.windows import Windows
from world_model.wam import modes
from world_model.wam.codec import VectorCodec
from world_model.wam.model import WorldActionModel

if TYPE_CHECKING:
    from rl.policies.gaussian import GaussianPolicy


class FlowGraph(nn.Module):
    """What is exported of a world-action model: all that a chunk depends on, to the chunk of `modes.policy`."""

    def __init__(self, model: WorldActionModel, n_denoising_steps: int) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.n_denoising_steps = n_denoising_steps
        codec = self.model.codec
        if not isinstance(codec, VectorCodec):
            raise UserError(
                "export: a policy that sees pictures cannot be exported yet; choose one that acts on a state"
            )
        self.codec = codec
        for statistics in (codec.state, codec.change, self.model.action_codec.action):
            statistics.check_fitted()
            # A graph cannot branch on a tensor, so this was asked for the last time.
            statistics.check_fitted = lambda: None  # type: ignore[method-assign]

    def forward(self, state: Tensor, task: Tensor, noise: Tensor, held: Tensor, n_held: Tensor) -> Tensor:
        """Decode chunks (n, chunk_size, action_dim).

        Args:
            state: (n, n_context_frames, state_dim).
            task: (n,).
            noise: (n, n_tokens, code_dim).
            held: (n, chunk_size, action_dim), of which only the first `n_held` count.
            n_held: (n,).
        """
        context = self.model.encode(state, task)
        return modes.policy(self.model, context, noise, self.n_denoising_steps, (held, n_held))

    def random_inputs(self, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw `n` inputs as they may come: states like those of the training, moving as fast, and normal noise."""
        codec, config, spec = self.codec, self.model.config, self.model.spec
        moved = codec.change.std[0] * torch.randn(n, config.n_context_frames, spec.state_dim, generator=generator)
        moved[:, 0] = codec.state.invert(torch.randn(n, spec.state_dim, generator=generator))
        task = torch.randint(len(spec.tasks), (n,), generator=generator)
        actions = 2 * torch.rand(n, config.chunk_size, spec.action_dim, generator=generator) - 1
        held = ((1 - actions) * self.model.action_low + (1 + actions) * self.model.action_high) / 2
        return moved.cumsum(1), task, *self._drawn(held, generator)

    def recorded_inputs(self, episodes: list[Episode], n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw `n` inputs from recorded episodes, with normal noise; what is held are actions as executed."""
        batch = self.model.windows(episodes).sample(n, generator)
        return batch.context, batch.task, *self._drawn(batch.actions, generator)

    def _drawn(self, held: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        n_held = torch.randint(self.model.config.chunk_size + 1, (len(held),), generator=generator)
        return modes.action_noise(self.model, len(held), generator), held, n_held


class GaussianGraph(nn.Module):
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
