"""Sums of many numbers over all processes, in memory that stays from call to call.

`SharedSums` is for processes of one machine: each writes its numbers into memory that all of them see, and reads those
of the others there. `ReducedSums` is `torch.distributed.all_reduce`, for everything else.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, distributed

MOST_NUMBERS = 2**26
"""Longest row in shared memory. Each process adds three such rows to the memory that is used."""


class Processes(Protocol):
    """What is needed of the group of all processes, see `rl.ppo.distributed.Group`."""

    rank: int
    world_size: int
    n_local: int  # of this machine

    @property
    def is_first(self) -> bool:
        """Whether this is process 0."""

    def from_first(self, value: str) -> str:
        """Return the value that process 0 has."""

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set in any process."""


class Sums(ABC):
    """Sums of `n` numbers: each process fills `own`, all agree that they have, and then each calls `total`."""

    @property
    @abstractmethod
    def own(self) -> Tensor:
        """The numbers of this process, to be filled before each call of `total` (n,)."""

    @abstractmethod
    def total(self) -> Tensor:
        """Return the sum over all processes, the same to the bit in each (n,); the next sum may overwrite it."""


class ReducedSums(Sums):
    """Sums by `torch.distributed.all_reduce`: between machines, on GPUs, and where no memory can be shared."""

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device) -> None:
        self._numbers = torch.empty(n, dtype=dtype, device=device)

    @property
    def own(self) -> Tensor:
        """The numbers of this process (n,)."""
        return self._numbers

    def total(self) -> Tensor:
        """Return the sum, which replaces the numbers of this process (n,)."""
        distributed.all_reduce(self._numbers)
        return self._numbers


class SharedSums(Sums):
    """Sums in memory that the processes of one machine share, added in the order of the processes.

    Args:
        rows: the shared memory, two rows of each process, used in turns: a slow process may still read the last sum
            while the others write the next one (2, processes, n).
        rank: of this process.
    """

    def __init__(self, rows: Tensor, rank: int) -> None:
        self._rows, self._rank, self._turn = rows, rank, 0
        self._total = torch.empty_like(rows[0, 0])

    @property
    def own(self) -> Tensor:
        """The row of this process for the next sum (n,)."""
        return self._rows[self._turn, self._rank]

    def total(self) -> Tensor:
        """Return the sum of the rows of all processes, in memory of this process (n,)."""
        first, second, *others = self._rows[self._turn]
        torch.add(first, second, out=self._total)
        for row in others:
            self._total += row
        self._turn = 1 - self._turn
        return self._total


def new_sums(group: Processes, n: int, dtype: torch.dtype, device: torch.device) -> Sums:
    """Return sums of `n` numbers over the processes of a group, which all call this at the same time."""
    if device.type == "cpu" and group.n_local == group.world_size and n <= MOST_NUMBERS:
        rows = _shared_rows(group, n, dtype)
        if rows is not None:
            return SharedSums(rows, group.rank)
    return ReducedSums(n, dtype, device)


def _shared_rows(group: Processes, n: int, dtype: torch.dtype) -> Tensor | None:
    """Return the rows of `SharedSums`; None if a process cannot see the memory of process 0.

    The memory is a file without a name in any folder, so it is gone when the processes have ended, however they end.
    """
    shape = 2, group.world_size, n
    file, rows = None, None
    if group.is_first and hasattr(os, "memfd_create"):  # Linux
        file = os.memfd_create("wamtune")
        os.ftruncate(file, torch.Size(shape).numel() * dtype.itemsize)
    path = group.from_first(f"/proc/{os.getpid()}/fd/{file}")
    try:
        rows = torch.from_file(path, shared=True, size=torch.Size(shape).numel(), dtype=dtype).view(shape)
    except RuntimeError:  # there is no such file here
        pass
    is_missing = group.any(rows is None)
    if file is not None:
        os.close(file)  # the memory stays
    return None if is_missing else rows
