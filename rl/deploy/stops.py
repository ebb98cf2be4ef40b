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

KEYS = "q, or anything but s, and enter"

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Taken as a stop. SIGHUP comes where a terminal or a connection is gone."""


class Stops:
    """Knows whether anybody wants the robot to stop; `__call__` returns why, or None.

    Args:
        file: its existence is a stop.
        keys: whether a line on standard input is one.
    """

    def __init__(self, file: Path, keys: bool) -> None:
        self.file, self.keys = file, keys
        self.reason: str | None = None
        self.solved = False  # somebody typed s: the task is solved

    def __call__(self) -> str | None:
        """Return the reason to stop, the first one for ever."""
        if self.reason is None and self.file.exists():
            self.reason = f"the file {self.file} is there"
        if self.reason is None and self.keys and select.select([sys.stdin], [], [], 0)[0]:
            typed = sys.stdin.readline()
            self.solved = self.solved or typed.strip() == "s"
            self.reason = "a key" if typed and typed.strip() != "s" else None
        return self.reason

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Take `SIGNALS` as a stop, in place of the end or the exception that may come anywhere in the loop."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._heard) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or f"the signal {signal.Signals(number).name}"
