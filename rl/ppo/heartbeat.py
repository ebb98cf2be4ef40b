"""Find a process of a group that was killed, stopped or lost with its machine, although it cannot say so itself.

Each process counts up once a second in the store of the group, and watches the count of the next process. If that one
stands still for `PATIENCE` seconds, the process that watches it ends the run with one line. It does so from a thread of
its own, because its main thread may be waiting for the missing process.

The store also has the number of exchanges that each process has begun, so that one which lives, but does not come to
the next exchange, can be named.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from torch.distributed import Store

BEAT = 1.0
"""Seconds between two counts."""

PATIENCE = 20.0
"""Seconds without a count after which a process is missing. A loaded machine may delay one by a few seconds."""

GLANCE = 4.0
"""Seconds without a count after which it is missing once the group is broken anyway."""

ENDED = 2**40
"""Added to the count of a process that has left the group."""

FAILED = 2
"""Exit code after a fault, that of an error that one line explains."""


class Heartbeat:
    """The counts of all processes of a group.

    Args:
        store: of the group.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        # A clone has a connection of its own, so this thread never waits for another user of the store.
        self.store: Store = store.clone()  # type: ignore[attr-defined] # torch's stubs lack it
        self.rank, self.world_size = rank, world_size
        self.n_exchanges = 0  # that this process has begun; the group counts them
        self._published = 0
        self._ended = threading.Event()
        self.store.add(_key(rank), 1)
        threading.Thread(target=self._watch, name="heartbeat", daemon=True).start()

    def end(self) -> None:
        """Stop, so that the others do not miss this process."""
        self._ended.set()
        try:
            self.store.add(_key(self.rank), ENDED)
        except RuntimeError:  # the store has ended with its machine
            return

    def is_first_to_end(self) -> bool:
        """Return whether this process is the first of the group that ends with an error."""
        try:
            return self.store.add("ended", 1) == 1
        except RuntimeError:
            return True

    def missing(self) -> str:
        """Look for processes whose count stands still for a few seconds; return a line that names them, or ""."""
        try:
            before = self._counts()
            time.sleep(GLANCE)
            now = self._counts()
        except RuntimeError:
            return "the machine of process 0 does not answer any more"
        lost = [rank for rank in range(self.world_size) if rank != self.rank and before[rank] == now[rank] < ENDED]
        return _line(lost) if lost else ""

    def late(self) -> str:
        """Return a line that names the processes which have begun fewer exchanges than this one, or ""."""
        try:
            begun = [self.store.add(_exchanges(rank), 0) for rank in range(self.world_size)]
        except RuntimeError:
            return ""
        lost = [rank for rank in range(self.world_size) if rank != self.rank and begun[rank] < self.n_exchanges]
        return f"process {', '.join(map(str, lost))} did not come to an exchange in time; it may hang" if lost else ""

    def _counts(self) -> list[int]:
        return [self.store.add(_key(rank), 0) for rank in range(self.world_size)]

    def _watch(self) -> None:
        """Count up, and end the process if the next one stands still."""
        watched, newest, since = (self.rank + 1) % self.world_size, 0, time.monotonic()
        while not self._ended.wait(BEAT):
            try:
                self.store.add(_key(self.rank), 1)
                begun = self.n_exchanges
                self.store.add(_exchanges(self.rank), begun - self._published)
                self._published = begun
                count = self.store.add(_key(watched), 0)
            except RuntimeError:
                return  # the main thread finds the same at its next exchange
            now = time.monotonic()
            # A count of 0: that process has not begun yet; another limit holds for this.
            if count != newest or count == 0 or count >= ENDED:
                newest, since = count, now
            elif now - since > PATIENCE and not self._ended.is_set():
                self._give_up(watched)

    def _give_up(self, lost: int) -> None:
        if self.is_first_to_end():
            os.write(2, f"wamtune: {_line([lost])}\n".encode())
        sys.stderr.flush()
        os._exit(FAILED)


def _key(rank: int) -> str:
    return f"heartbeat/{rank}"


def _exchanges(rank: int) -> str:
    return f"exchanges/{rank}"


def _line(lost: list[int]) -> str:
    names = "process" if len(lost) == 1 else "processes"
    what = "does not answer any more: it was" if len(lost) == 1 else "do not answer any more: they were"
    return (
        f"{names} {', '.join(map(str, lost))} {what} killed or stopped, or ran out of memory; with the run folder in "
        "place of the preset, the same command goes on from the last saved state"
    )
