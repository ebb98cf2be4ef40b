"""The control loop: a command at a fixed rate, from plans made beside it, through the guard and the one gate."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from rl.deploy.planner import Planner
from rl.deploy.robots import Interface
from rl.deploy.safety import Gate, Guard, NoRoom, Refused, Stop
from world_model.episodes import Episode

Array = np.ndarray

Judge = Callable[[Array, dict[str, Any]], bool]
"""(frame (state_dim,), the whole observation) -> whether the task is solved."""

SPIN_S = 0.001
"""The last of a period is waited for without sleeping, which is not that exact."""

PERIODS = 2
"""Periods without a command after which the watchdog stops the robot."""

LEAD = 0.1
"""Share of a period by which an observation comes before its command is due, so that the command can be punctual."""

UNHURRIED_S = 60.0
"""The same for a robot that waits for its commands."""


class Immediate(Executor):
    """Does at once what it is given, for a robot that waits meanwhile."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Return what is done already."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@dataclass
class Lived:
    """What happened in one episode on a robot."""

    frames: list[Array] = field(default_factory=list)  # (state_dim,), the first one and one after each command
    sent: list[Array] = field(default_factory=list)  # (action_dim,), as the robot took it
    success: list[bool] = field(default_factory=list)
    periods: list[float] = field(default_factory=list)  # seconds from one command to the next
    n_late: int = 0  # commands for which there was no plan in time
    reason: str = ""  # why it ended
    stopped: bool = False  # by a stop, and not by itself
    failed: bool = False  # by a stop for what the policy did

    def to_episode(self, task: str, source: str, seed: int) -> Episode | None:
        """As an episode of a store; None where nothing was executed."""
        if not self.sent or len(self.frames) != len(self.sent) + 1:
            return None
        state, action = (torch.tensor(np.stack(rows), dtype=torch.float32) for rows in (self.frames, self.sent))
        return Episode(state, action, torch.tensor(self.success), task, source, seed)


def robot_says(frame: Array, observation: dict[str, Any]) -> bool:
    """Whether the robot itself reports a success; one that knows nothing of it never does."""
    return bool(observation.get("success", False))


@dataclass
class Loop:
    """The loop of one episode, which ends at `max_steps`, at a success, or by a stop, whose reason it has."""

    interface: Interface  # the robot, as the policy sees it
    guard: Guard  # what a command must keep
    decide: Callable[[Array, Array], Array]  # computes a chunk; called beside the loop
    n_context_frames: int  # of the policy
    n_action_steps: int  # of a chunk, after which the next one is begun
    hz: float  # commands a second
    max_steps: int  # commands
    watch: Callable[[], str | None] = lambda: None  # asked many times a second for a reason to stop
    max_late: int = 5  # commands in a row without a plan, for which the robot is made to stand still, before the stop
    send: Callable[[Array], Array | None] | None = None  # takes the commands in place of the robot, for a dry run
    judge: Judge = robot_says  # whether a frame is a success
    real_time: bool = True  # else the robot waits for its commands, and so does nobody else

    def run(self) -> Lived:
        """Run the episode."""
        lived = Lived()
        patience = PERIODS / self.hz if self.real_time else UNHURRIED_S
        executor: Executor = ThreadPoolExecutor(1) if self.real_time else Immediate()
        with promptly() if self.real_time else nullcontext(), executor:
            planner = Planner(self.decide, self.n_action_steps, 1 / self.hz, executor, self._clock())
            gate = Gate(self.send or self.interface.send, self.guard.still, patience, self.watch)
            try:
                frame, _ = self._observe(lived)
                context = np.repeat(frame[None], self.n_context_frames, axis=0)
                planner.begin(context)
                with gate:
                    self._live(lived, planner, gate, context)
                    gate.shut(lived.reason)
            except (Stop, ConnectionError) as stop:  # a robot that is gone is one more reason
                lived.reason, lived.stopped = str(stop), True
                lived.failed = isinstance(stop, Refused) and bool(lived.sent or not isinstance(stop, NoRoom))
            if gate.reason not in (None, lived.reason):  # it was shut before, or the robot did not stand still
                lived.reason, lived.stopped, lived.failed = str(gate.reason), True, False
        return lived

    def _clock(self) -> Callable[[], float]:
        """Seconds, as the planner counts them: without real time a plan takes one period, as it does with it."""
        return time.monotonic if self.real_time else partial(next, itertools.count(step=1 / self.hz))

    def _live(self, lived: Lived, planner: Planner, gate: Gate, context: Array) -> None:
        late, due, before = 0, time.monotonic(), None
        for k in range(self.max_steps):
            action = planner.step(k, context)
            late = 0 if action is not None else late + 1
            lived.n_late += action is None
            if late > self.max_late:
                raise Stop(f"there was no plan for {late} commands in a row")
            command = self.guard.command(self.guard.hold(context[-1]) if action is None else action, context[-1])
            if self.real_time:
                _wait(due)
            taken = gate.send(command)
            now = time.monotonic()
            if before is not None:
                lived.periods.append(now - before)
            before, due = now, due + 1 / self.hz
            if self.real_time:
                _wait(due - LEAD / self.hz)
            frame, success = self._observe(lived)
            lived.sent.append(taken)
            lived.success.append(success)
            context = np.concatenate([context[1:], frame[None]])
            if success:
                lived.reason = "success"
                return
        lived.reason = f"{self.max_steps} steps"

    def _observe(self, lived: Lived) -> tuple[Array, bool]:
        values, stamp, observation = self.interface.observe()
        frame = self.guard.observe(values, stamp, time.monotonic())
        lived.frames.append(frame)
        return frame, self.judge(frame, observation)


@contextmanager
def promptly() -> Iterator[None]:
    """Let nothing of this process make the loop wait for long, and ask the system for the right of way.

    By default a thread may keep the interpreter for 5 ms from one that is due, and collecting garbage takes as long.
    """
    before, collects = sys.getswitchinterval(), gc.isenabled()
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    sys.setswitchinterval(2e-4)
    gc.disable()
    with suppress(PermissionError):  # without the right to it, it goes on as it is
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        if collects:
            gc.enable()
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, priority)


def _wait(due: float) -> None:
    if (left := due - time.monotonic() - SPIN_S) > 0:
        time.sleep(left)
    while time.monotonic() < due:
        pass
