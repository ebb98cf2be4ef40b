"""What an export needs of a policy: a module that torch can trace, and the values for the contract."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rewards.errors import UserError
from world_model.data.episodes import Episode
from world_model.spec import Spec


class Graph(nn.Module):
    """The whole computation from an observation to a chunk of actions (n, chunk_size, action_dim), for tracing."""

    @abstractmethod
    def random_inputs(self, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw `n` plausible random inputs, in the order of `Exportable.input_names`."""

    @abstractmethod
    def recorded_inputs(self, episodes: list[Episode], n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw `n` inputs from recorded episodes, in the order of `Exportable.input_names`."""


@dataclass(frozen=True)
class Exportable:
    """The policy of a checkpoint as a traceable graph, with the values for its contract."""

    checkpoint: str  # name or folder, as the user gave it
    stage: str
    spec: Spec
    graph: Graph
    n_context_frames: int
    chunk_size: int
    n_action_steps: int
    n_denoising_steps: int = 0  # 0: the policy does not denoise
    noise_shape: tuple[int, int] | None = None  # (n_tokens, code_dim); None: the policy takes no noise

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the graph's inputs, in order; images come last."""
        chunk = () if self.noise_shape is None else ("noise", "held", "n_held")
        return ("state", "task", *chunk, *self.spec.images)

    @property
    def is_flow(self) -> bool:
        """Whether it is a flow policy, with inputs for noise and held actions."""
        return self.noise_shape is not None


def checked_count(name: str, value: int, most: int | None = None) -> int:
    """Return `value` if it is from 1 to `most` (None: no upper limit).

    Raises:
        UserError: it is out of range; the message names it by `name`.
    """
    if value < 1 or (most is not None and value > most):
        expected = "at least 1" if most is None else f"1 to {most}, the actions of a chunk"
        raise UserError(f"{name}={value}: expected {expected}")
    return value
