"""Chunks planned while earlier ones run, spliced without a seam (real-time chunking; Black et al., 2506.07339)."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Decide = Callable[[Array, Array], Array]
"""(frames (n_context_frames, state_dim), held actions (n, action_dim)) -> chunk (chunk_size, action_dim)."""

WINDOW = 20
"""Latest plans whose longest latency is the one that the next plan is prepared for."""

BLEND = 2
"""Steps at least over which a new plan takes over; where the old one is at its end, its last action stands for it."""


@dataclass
class Plan:
    """A chunk of actions for the steps from `start` on."""

    start: int
    actions: Array  # (chunk_size, action_dim)

    @property
    def end(self) -> int:
        """First step that it has no action for."""
        return self.start + len(self.actions)


class Planner:
    """The action of each control step, from chunks of which the next is planned in time.

    A plan is begun from the frames of a step and is there some steps later. What the old plan does meanwhile is held
    fixed in the new one, for as many steps as plans have lately taken, so the new one goes on from it; over the rest
    of the old plan the two are blended. What was really consumed decides where the new plan is entered. A chunk has to
    be at least twice as long as a plan takes.

    Args:
        decide: computes a chunk; it runs in `executor`.
        n_action_steps: after so many steps of a plan the next one is begun, or earlier if plans take long.
        period_s: of a control step.
        executor: of one worker.
        clock: seconds.
    """

    def __init__(
        self,
        decide: Decide,
        n_action_steps: int,
        period_s: float,
        executor: Executor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.decide, self.n_action_steps, self.period_s = decide, n_action_steps, period_s
        self.executor, self.clock = executor, clock
        self.latencies: deque[float] = deque(maxlen=WINDOW)
        self.plan = Plan(0, np.zeros((0, 0)))
        self._next: tuple[int, Future[tuple[Array, float]]] | None = None

    def begin(self, frames: Array) -> None:
        """Plan the first chunk, while the robot stands still."""
        self._next = None
        first = self.decide(frames, np.zeros((0, 0)))
        _, latency = self._timed(frames, first[:1])  # what is slow the first time has been so by now
        self.latencies.append(latency)
        self.plan = Plan(0, first)

    def step(self, k: int, frames: Array) -> Array | None:
        """Return the action of step `k` (action_dim,), after `frames` were seen; None: the plan for it is late."""
        if self._next is not None and self._next[1].done():
            self._splice(k)
        if self._next is None and k - self.plan.start >= self._patience():
            held = self.plan.actions[k - self.plan.start :][: self.n_held]
            self._next = k, self.executor.submit(self._timed, frames.copy(), held.copy())
        return self.plan.actions[k - self.plan.start] if k < self.plan.end else None

    @property
    def n_held(self) -> int:
        """Steps that the next plan is expected to take."""
        return math.ceil(max(self.latencies, default=0.0) / self.period_s - 1e-6)

    def _patience(self) -> int:
        """Steps of a plan after which the next one has to be begun."""
        return max(1, min(self.n_action_steps, len(self.plan.actions) - self.n_held))

    def _timed(self, frames: Array, held: Array) -> tuple[Array, float]:
        begun = self.clock()
        actions = self.decide(frames, held)
        return actions, self.clock() - begun

    def _splice(self, k: int) -> None:
        """Enter the plan that is there at step `k`, blended with what is left of the old one."""
        assert self._next is not None
        start, future = self._next
        actions, latency = future.result()
        self.latencies.append(latency)
        old, new, self._next = self.plan, Plan(start, actions.copy()), None
        left = max(old.end - k, BLEND)
        for i in range(min(left, new.end - k)):
            share = (left - i) / (left + 1)  # of the old plan, down to nothing
            before = old.actions[min(k + i - old.start, len(old.actions) - 1)]
            new.actions[k + i - start] = share * before + (1 - share) * new.actions[k + i - start]
        self.plan = new
