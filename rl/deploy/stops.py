"""Ways to stop a robot from outside the loop: a key, a file, a signal."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

KEYS = "q, or anything but s, and enter"

ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that ask a program to end. SIGHUP comes where a terminal or a connection is gone."""

OTHERS = tuple(
    getattr(signal, name)
    for name in "SIGUSR1 SIGUSR2 SIGALRM SIGVTALRM SIGPROF SIGPOLL SIGPWR SIGSTKFLT SIGXCPU SIGTSTP".split()
    if hasattr(signal, name)
)
"""Signals that by default end or suspend the process, while the robot moves on."""

SIGNALS = (*ASKED, *OTHERS)
"""Taken as a stop, but of `OTHERS` those alone that nobody has another use for."""


def has_terminal() -> bool:
    """Whether somebody can type here; nobody can where standard input is closed."""
    try:
        return sys.stdin.isatty()
    except (AttributeError, ValueError):  # closed before the start, when it is None, or since
        return False


class Stops:
    """Knows whether anybody wants the robot to stop; `__call__` returns why, or None. Any thread may ask.

    Args:
        file: its existence is a stop.
        keys: whether a line on standard input is one, and the end of standard input.
    """

    def __init__(self, file: Path, keys: bool) -> None:
        self.file, self.keys = file, keys
        self.reason: str | None = None
        self.solved = False  # somebody typed s: the task is solved
        self._reading, self._typed = threading.Lock(), b""  # what was typed of a line

    def __call__(self) -> str | None:
        """Return the reason to stop, the first one for ever; never waits."""
        if self.reason is None and self.file.exists():
            self.reason = f"the file {self.file} is there"
        if self.reason is None and self.keys and self._reading.acquire(blocking=False):
            try:  # one thread at a time: of two that see one line, the second would wait for the next
                self._read()
            finally:
                self._reading.release()
        return self.reason

    def _read(self) -> None:
        # Not readline, which waits for the rest of a line.
        if not select.select([sys.stdin], [], [], 0)[0]:
            return
        typed = os.read(sys.stdin.fileno(), 4096)
        *lines, self._typed = (self._typed + typed).split(b"\n")
        self.solved = self.solved or any(line.strip() == b"s" for line in lines)
        if any(line.strip() != b"s" for line in lines):
            self.reason = "a key"
        elif not typed:
            self.reason = "the end of standard input"

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Take `SIGNALS` as a stop, in place of the end or the exception that may come anywhere in the loop."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        free = [number for number in OTHERS if signal.getsignal(number) == signal.SIG_DFL]
        before = {number: signal.signal(number, self._heard) for number in (*ASKED, *free)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or f"the signal {signal.Signals(number).name}"
