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

KEYS = "q, or anything but s and f, and enter"

ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that ask a program to end. SIGHUP comes when a terminal or a remote connection is closed."""

OTHERS = tuple(
    getattr(signal, name)
    for name in "SIGUSR1 SIGUSR2 SIGALRM SIGVTALRM SIGPROF SIGPOLL SIGPWR SIGSTKFLT SIGXCPU SIGTSTP".split()
    if hasattr(signal, name)
)
"""Signals that by default end or suspend the process, while the robot would keep moving."""

SIGNALS = (*ASKED, *OTHERS)
"""Signals that are a stop; those of `OTHERS` only if the program has no handler of its own for them."""


def has_terminal() -> bool:
    """Return whether standard input is a terminal, so that a user can type; False if it is closed."""
    try:
        return sys.stdin.isatty()
    except (AttributeError, ValueError):  # AttributeError: None, closed before the start; ValueError: closed later
        return False


class Stops:
    """Collects requests to stop the robot; `__call__` returns the reason, or None. Any thread may call it.

    Args:
        file: the robot stops when this file exists.
        keys: whether a line on standard input, or its end, is a stop too.
        takes_over: whether a typed t is no stop, but takes over from the policy and gives back.
    """

    def __init__(self, file: Path, keys: bool, takes_over: bool = False) -> None:
        self.file, self.keys, self.takes_over = file, keys, takes_over
        self.person_drives = False  # the user typed t, and has not typed it again
        self.reason: str | None = None
        self.solved = False  # the user typed s: the task is solved
        self.failed = False  # the user typed f: it will not be solved any more
        self._reading, self._typed = threading.Lock(), b""  # `_typed`: the part of a line typed so far

    def __call__(self) -> str | None:
        """Return the reason to stop, or None; the first reason is kept. It never blocks."""
        if self.reason is None and self.file.exists():
            self.reason = f"the file {self.file} is there"
        if self.reason is None and self.keys and self._reading.acquire(blocking=False):
            try:  # one thread at a time: if two threads saw the same line, the second would block until the next one
                self._read()
            finally:
                self._reading.release()
        return self.reason

    def _read(self) -> None:
        # `os.read` instead of `readline`, which would block until the line is complete.
        if not select.select([sys.stdin], [], [], 0)[0]:
            return
        typed = os.read(sys.stdin.fileno(), 4096)
        *lines, self._typed = (self._typed + typed).split(b"\n")
        words = [line.strip() for line in lines]
        self.solved = self.solved or b"s" in words
        self.failed = self.failed or b"f" in words
        if self.takes_over and words.count(b"t") % 2:
            self.person_drives = not self.person_drives
        if set(words) - {b"s", b"f", *([b"t"] if self.takes_over else [])}:
            self.reason = "a key"
        elif not typed:
            self.reason = "the end of standard input"

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within this context, make `SIGNALS` a stop instead of ending the process or raising in the loop."""
        if threading.current_thread() is not threading.main_thread():  # Python sets handlers only in the main thread
            yield
            return
        free = [number for number in OTHERS if signal.getsignal(number) == signal.SIG_DFL]
        before = {number: signal.signal(number, self._on_signal) for number in (*ASKED, *free)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or f"the signal {signal.Signals(number).name}"
