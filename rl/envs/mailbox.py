"""Numbers that one process writes and others read without waiting: a piece of shared memory with a time."""

from __future__ import annotations

import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Array = np.ndarray

HEADER = 16
"""Bytes before the values: a counter, which is odd while they are being written, and their time."""

MEMORY = Path("/dev/shm")
"""Where files are kept in memory, on Linux."""


@dataclass(frozen=True)
class Address:
    """Where a mailbox is, for another process."""

    path: str
    shape: tuple[int, ...]
    dtype: str


class Mailbox:
    """The newest array of one writer; a reader gets a whole one, never half of the next.

    Args:
        address: from `new_mailbox`.
    """

    def __init__(self, address: Address) -> None:
        shared = np.memmap(address.path, np.uint8, "r+")
        self._count, self._time = shared[:8].view(np.int64), shared[8:HEADER].view(np.float64)
        self._values = shared[HEADER:].view(address.dtype).reshape(address.shape)

    def write(self, values: Array, taken_s: float) -> None:
        """Replace the array; `taken_s` is when it was taken, in seconds of `time.monotonic`."""
        self._count += 1
        self._values[...] = values
        self._time[0] = taken_s
        self._count += 1

    def read(self) -> tuple[Array, float]:
        """Return a copy of the array, and when it was taken; -inf if nothing was written yet."""
        while True:
            before = int(self._count[0])
            values, taken_s = self._values.copy(), float(self._time[0])
            if before % 2 == 0 and before == int(self._count[0]):
                return values, taken_s if before else -math.inf
            time.sleep(1e-4)  # it is being written


def new_mailbox(shape: tuple[int, ...], dtype: str) -> Address:
    """Make an empty mailbox. Delete its file with `forget` once all processes have opened it."""
    handle, path = tempfile.mkstemp(prefix="wamtune-", dir=MEMORY if MEMORY.is_dir() else None)
    size = HEADER + int(np.prod(shape)) * np.dtype(dtype).itemsize
    os.ftruncate(handle, size)
    os.close(handle)
    return Address(path, shape, dtype)


def forget(address: Address) -> None:
    """Delete the file of a mailbox; processes that have opened it keep the memory until they end."""
    Path(address.path).unlink(missing_ok=True)
