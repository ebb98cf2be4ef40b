"""Watch a session live in Rerun: images, state and commands. Needs the extra `rerun`.

The control loop only puts steps into a queue; a thread of its own logs them, and leaves steps out if it is too slow.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewards.errors import UserError
from world_model.extras import import_extra

Array = np.ndarray

SPAWN = "spawn"
"""Value of `rerun` that opens Rerun's viewer on this computer."""

WAITING = 4
"""Steps that wait to be logged; further ones are left out."""

CLOSE_S = 5.0
"""Seconds that the last steps may take at the end of a session, before the robot is disconnected."""

URL = ("rerun+http://", "rerun+https://")


class Viewer:
    """Sends the steps of a session to Rerun.

    Args:
        where: `spawn`, a file NAME.rrd, or the url of a viewer that runs, such as rerun+http://localhost:9876/proxy.
        state, action: names of the numbers.

    Raises:
        UserError: rerun-sdk is missing, or `where` is none of these.
    """

    def __init__(self, where: str, state: Sequence[str], action: Sequence[str]) -> None:
        self._names = [*(f"state/{name}" for name in state), *(f"action/{name}" for name in action)]
        self._rerun = import_extra("rerun", "rerun", "rerun needs rerun-sdk")
        self._stream = self._rerun.RecordingStream("wamtune")
        _opener(self._stream, where)()
        self._steps: queue.Queue[tuple[int, dict[str, Array], list[float]] | None] = queue.Queue(WAITING)
        self.n_left_out = 0
        self._n = 0
        self._thread = threading.Thread(target=self._log_all, daemon=True)
        self._thread.start()

    def show(self, images: Mapping[str, Array], state: Array, action: Array) -> None:
        """Show a step: images by camera, state (state_dim,) and the command before it (action_dim,); never waits."""
        self._n += 1
        try:
            self._steps.put_nowait((self._n, dict(images), [*state.tolist(), *action.tolist()]))
        except queue.Full:
            self.n_left_out += 1

    def close(self) -> None:
        """Log the steps that wait, and end; after `CLOSE_S` give up on them, so that the robot can be disconnected."""
        # Not a put that blocks: if Rerun failed, the thread has ended, and nobody empties the queue.
        end = time.monotonic() + CLOSE_S
        while self._thread.is_alive() and time.monotonic() < end:
            try:
                self._steps.put(None, timeout=0.1)
                break
            except queue.Full:
                continue
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            print(f"rerun: still busy after {CLOSE_S:g} s; the last steps are not shown", flush=True)
        else:
            self._stream.flush()

    def _log_all(self) -> None:
        try:
            self._log_steps()
        except Exception as error:  # whatever Rerun raises: the session goes on without it
            print(f"rerun: {type(error).__name__}: {' '.join(str(error).split())[:200]}; it shows no more", flush=True)

    def _log_steps(self) -> None:
        while (step := self._steps.get()) is not None:
            number, images, values = step
            self._stream.set_time("step", sequence=number)
            for camera, image in images.items():
                self._stream.log(f"cameras/{camera}", self._rerun.Image(image))
            for name, value in zip(self._names, values, strict=True):
                if value != value:  # NaN: there was no command yet
                    continue
                self._stream.log(name, self._rerun.Scalars(value))


def check_where(where: str) -> None:
    """Check the value of `rerun`, which may be empty.

    Raises:
        UserError: it is nothing that Rerun can show in.
    """
    if where and where != SPAWN and not where.endswith(".rrd") and not where.startswith(URL):
        raise UserError(
            f"rerun={where}: expected {SPAWN}, a file NAME.rrd, or the url of a viewer, such as "
            "rerun+http://localhost:9876/proxy"
        )


def _opener(stream: Any, where: str) -> Callable[[], Any]:
    check_where(where)
    if where == SPAWN:
        return lambda: stream.spawn()
    if where.endswith(".rrd"):
        Path(where).resolve().parent.mkdir(parents=True, exist_ok=True)
        return lambda: stream.save(where)
    return lambda: stream.connect_grpc(where)
