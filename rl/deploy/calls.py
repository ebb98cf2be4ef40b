"""Call a robot in a separate thread, so that a stop takes effect even if a call never returns."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from rl.deploy.safety import GRACE_S
from rl.robots.errors import Stop

T = TypeVar("T")

SLICE_S = 0.02
"""Seconds between checks for a stop while a call runs."""


class Calls:
    """Makes calls one after another in a thread; gives up on a call that hangs after a stop.

    Python cannot end a running call. So a call that hangs stays in its thread, and later calls use a new thread. The
    threads are daemons, so they do not keep the process alive.
    """

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] | None = None

    def __call__(
        self, name: str, call: Callable[[], T], stopped: Callable[[], str | None], within_s: float | None = None
    ) -> T:
        """Return the result of `call()`, or raise its exception.

        Args:
            name: of the call, for messages.
            call: the call to make.
            stopped: returns the reason to stop, or None.
            within_s: time limit in seconds; None: no limit without a stop.

        Raises:
            Stop: the call did not return within `within_s`, or not within `GRACE_S` after a stop. The grace period lets
                a call that is almost done leave the robot in order.
        """
        done, future = threading.Event(), self._submit(call)
        future.add_done_callback(lambda _: done.set())
        begun, given_up = time.monotonic(), ""
        last = None if within_s is None else begun + within_s  # deadline
        while not done.wait(SLICE_S):
            now = time.monotonic()
            if not given_up and (reason := stopped()) is not None:
                given_up, last = reason, now + GRACE_S
            if last is not None and now > last:
                self.close()
                raise Stop(f"{given_up}; {name} hangs" if given_up else f"{name} did not return within {within_s:g} s")
        return future.result()

    def close(self) -> None:
        """Let the thread end as soon as its current call returns."""
        if self._waiting is not None:
            self._waiting.put(None)
            self._waiting = None

    def _submit(self, call: Callable[[], T]) -> Future[T]:
        if self._waiting is None:
            self._waiting = queue.SimpleQueue()
            threading.Thread(target=_work, args=(self._waiting,), daemon=True).start()
        future: Future[T] = Future()
        self._waiting.put((future, call))
        return future


def _work(waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]) -> None:
    while (task := waiting.get()) is not None:
        future, call = task
        try:
            future.set_result(call())
        except BaseException as error:  # the caller of `future.result()` raises it
            future.set_exception(error)
        del task, future, call  # free the result and the arguments before waiting for the next call
