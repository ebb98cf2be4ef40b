"""Calls to a robot, made beside the loop, so that a stop wins over a call that never returns."""

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
"""While a call is under way, stops are looked for this often."""


class Calls:
    """Makes calls one after another in a thread of its own, and gives up on one that hangs once a stop is wanted.

    Nothing in Python can end a call. One that hangs is left behind in its thread, a daemon, which does not keep the
    process from ending; later calls are made in another thread.
    """

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] | None = None

    def __call__(
        self, name: str, call: Callable[[], T], stopped: Callable[[], str | None], within_s: float | None = None
    ) -> T:
        """Return what `call()` returns, or raise what it raises.

        Args:
            name: of the call, for people.
            call: what to do.
            stopped: returns why the call is not waited for any longer, or None.
            within_s: seconds after which that is reason enough.

        Raises:
            Stop: the call was given up. After a stop it has `GRACE_S` to return, so that the robot is left in order.
        """
        done, future = threading.Event(), self._submit(call)
        future.add_done_callback(lambda _: done.set())
        begun, given_up = time.monotonic(), ""
        last = None if within_s is None else begun + within_s  # when it is given up
        while not done.wait(SLICE_S):
            now = time.monotonic()
            if not given_up and (reason := stopped()) is not None:
                given_up, last = reason, now + GRACE_S
            if last is not None and now > last:
                self.close()
                raise Stop(f"{given_up}; {name} hangs" if given_up else f"{name} did not return within {within_s:g} s")
        return future.result()

    def close(self) -> None:
        """End the thread as soon as its call returns."""
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
        except BaseException as error:  # whatever it is, it is raised where it was asked for
            future.set_exception(error)
        del task, future, call  # nothing is kept while it waits
