"""What an export asks of a policy: a graph that torch can trace, and what its contract says."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rewards.errors import UserError
from world_model.data.episodes import Episode
from world_model.spec import Spec


class Graph(nn.Module):
    """Everything between an observation and a chunk of actions (n, chunk_size, action_dim), as a module to trace."""

    @abstractmethod
    def random_inputs(self, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw `n` inputs as they may come."""

    @abstractmethod
    def recorded_inputs(self, episodes: list[Episode], n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw `n` inputs from recorded episodes."""


@dataclass(frozen=True)
class Exportable:
    """The policy of a checkpoint, ready to be exported, and what its contract says."""

    checkpoint: str  # name or folder, as it was given
    stage: str
    spec: Spec
    graph: Graph
    n_context_frames: int
    chunk_size: int
    n_action_steps: int
    n_denoising_steps: int = 0  # nothing is denoised
    noise_shape: tuple[int, int] | None = None  # (n_tokens, code_dim); None: the policy takes no noise

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the graph's inputs, in order."""
        return ("state", "task") if self.noise_shape is None else ("state", "task", "noise", "held", "n_held")

    @property
    def is_flow(self) -> bool:
        """Whether it takes noise, and actions to go on from."""
        return self.noise_shape is not None


def checked_count(name: str, value: int, most: int | None = None) -> int:
    """Return `value` if it lies between 1 and `most`.

    Raises:
        UserError: it does not.
    """
    if value < 1 or (most is not None and value > most):
        expected = "at least 1" if most is None else f"1 to {most}, the actions of a chunk"
        raise UserError(f"{name}={value}: expected {expected}")
    return value
