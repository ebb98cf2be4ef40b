"""Ways to stop a robot from outside the loop: a key, a file, a signal."""

from __future__ import annotations

import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

KEYS = "q or space, then enter"


class Stops:
    """Knows whether anybody wants the robot to stop; `__call__` returns why, or None.

    Args:
        file: its existence is a stop.
        keys: whether a line on standard input is one.
    """

    def __init__(self, file: Path, keys: bool) -> None:
        self.file, self.keys = file, keys
        self.reason: str | None = None

    def __call__(self) -> str | None:
        """Return the reason to stop, the first one for ever."""
        if self.reason is None and self.file.exists():
            self.reason = f"the file {self.file} is there"
        if self.reason is None and self.keys and select.select([sys.stdin], [], [], 0)[0] and sys.stdin.readline():
            self.reason = "a key"
        return self.reason

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as a stop, in place of the exception that may come anywhere in the loop."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or f"the signal {signal.Signals(number).name}"
