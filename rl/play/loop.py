"""The clock of a play: take what the page sent, execute a chunk, show it."""

from __future__ import annotations

import time
from collections import deque

from rl.play.server import Hub
from rl.play.session import Session

LATELY = 12
"""Frames over which the shown rate is measured."""


def play(session: Session, hub: Hub, frames_per_s: float) -> None:
    """Run until it is interrupted: at most `frames_per_s` chunks a second, and none while nobody drives."""
    shown: deque[float] = deque(maxlen=LATELY)  # when the last frames were made, in seconds
    hub.show(session.frame(None))
    while True:
        # 1. While nobody drives, time stands still: wait for the person.
        if not session.is_driven:
            shown.clear()
            session.handle(hub.messages.get())
        # 2. Whatever else was pressed since the last chunk.
        while not hub.messages.empty():
            session.handle(hub.messages.get_nowait())
        # 3. One chunk in simulator and dream.
        begun = time.monotonic()
        if session.tick():
            shown.append(begun)
        hub.show(session.frame(_rate(shown) if session.is_driven else None))
        # 4. A late chunk is not caught up with.
        if session.is_driven:
            time.sleep(max(begun + 1 / frames_per_s - time.monotonic(), 0.0))


def _rate(times: deque[float]) -> float | None:
    """Return the frames a second of the last frames; None for less than two."""
    return round((len(times) - 1) / (times[-1] - times[0]), 1) if len(times) > 1 else None
