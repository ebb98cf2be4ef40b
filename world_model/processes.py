"""What a training loop needs to know of the other processes that train the same model; by default there are none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


def _nothing(parameters: Sequence[nn.Parameter]) -> None:
    """Leave gradients as they are: those of one process are their own average."""


@dataclass(frozen=True)
class Share:
    """The share of one process in every optimizer step of a training."""

    n_processes: int = 1
    average_gradients: Callable[[Sequence[nn.Parameter]], Any] = _nothing  # over all processes, in place

    def of(self, batch_size: int) -> int:
        """Return how many rows of a batch this process computes, rounded up."""
        return -(-batch_size // self.n_processes)


ALONE = Share()
"""The share of a process that trains alone: everything."""
