"""Real-time chunking: plan the next chunk while the current one runs, and blend the two (Black et al., 2506.07339)."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np

from rl.deploy.frames import Frame

Array = np.ndarray
Decide = Callable[[Frame, Array], Array]
"""(features (n_context_frames, *shape), held actions (n, action_dim)) -> chunk (chunk_size, action_dim)."""

WINDOW = 20
"""Number of latest plans; the longest latency among them is the expected latency of the next plan."""

BLEND = 2
"""Minimum number of steps over which two plans are blended; after the old plan's end, its last action is repeated."""


@dataclass
class Plan:
    """A chunk of actions for the steps from `start` on."""

    start: int
    actions: Array  # (chunk_size, action_dim)

    @property
    def end(self) -> int:
        """The step after its last action."""
        return self.start + len(self.actions)


class Planner:
    """Returns the action of each control step, and plans the next chunk early enough.

    Planning starts from the observation of one step and finishes some steps later; the old plan's actions are executed
    meanwhile. They are fixed ("held") at the start of the new plan, for as many steps as recent plans took, so that
    the new plan continues from them. Over the rest of the old plan, the two are blended. The new plan is entered at
    the step at which it really arrives. A chunk must be at least twice as long as planning takes.

    Args:
        decide: computes a chunk; it runs in `executor`.
        n_action_steps: steps of a plan after which the next one is started; fewer if planning takes long.
        period_s: seconds of a control step.
        executor: an executor with one worker.
        clock: returns the time in seconds.
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

    def begin(self, obs: Frame) -> None:
        """Plan the first chunk from features (n_context_frames, *shape), while the robot stands still."""
        self._next = None
        first = self.decide(obs, np.zeros((0, 0)))
        # Measure the latency on a second call; the first one may be slow because of its initialisation.
        _, latency = self._timed(obs, first[:1])
        self.latencies.append(latency)
        self.plan = Plan(0, first)

    def step(self, k: int, obs: Frame) -> Array | None:
        """Return the action (action_dim,) of step `k`; None if no plan covers it in time.

        `obs` is the newest observation, from which the next plan may start.
        """
        if self._next is not None and self._next[1].done():
            self._splice(k)
        # Start the next plan. It holds the actions that will be executed while it is computed.
        if self._next is None and k - self.plan.start >= self._patience():
            held = self.plan.actions[k - self.plan.start :][: self.n_held]
            self._next = k, self.executor.submit(self._timed, dict(obs), held.copy())
        return self.plan.actions[k - self.plan.start] if k < self.plan.end else None

    def forget(self, k: int) -> None:
        """Drop the plan, and the one that is being computed: at step `k` they are from images that are too old.

        The next step begins a new plan.
        """
        if self._next is not None:
            self._next[1].cancel()  # if it still waits for the worker
        self._next, self.plan = None, Plan(k, self.plan.actions[:0])

    def is_late(self, k: int) -> bool:
        """Return whether a missing plan at step `k` is late: the first plan after `forget` takes as long as others."""
        # Twice as long at most, since the worker may first have to finish the plan that was dropped.
        return len(self.plan.actions) > 0 or k - self.plan.start > 2 * self.n_held

    @property
    def n_held(self) -> int:
        """Number of steps that the next plan is expected to take."""
        return math.ceil(max(self.latencies, default=0.0) / self.period_s - 1e-6)

    def _patience(self) -> int:
        """Return the number of steps of a plan after which the next one must be started."""
        return max(1, min(self.n_action_steps, len(self.plan.actions) - self.n_held))

    def _timed(self, obs: Frame, held: Array) -> tuple[Array, float]:
        begun = self.clock()
        actions = self.decide(obs, held)
        return actions, self.clock() - begun

    def _splice(self, k: int) -> None:
        """Switch to the finished plan at step `k`, blended with the rest of the old plan."""
        assert self._next is not None
        start, future = self._next
        actions, latency = future.result()
        self.latencies.append(latency)
        old, new, self._next = self.plan, Plan(start, actions.copy()), None
        # Linear blending from step k on, which keeps the commands continuous.
        left = max(old.end - k, BLEND) if len(old.actions) else 0
        for i in range(min(left, new.end - k)):
            share = (left - i) / (left + 1)  # weight of the old plan, decreasing to 0
            before = old.actions[min(k + i - old.start, len(old.actions) - 1)]  # after its end, its last action
            new.actions[k + i - start] = share * before + (1 - share) * new.actions[k + i - start]
        self.plan = new
