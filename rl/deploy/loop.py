"""The control loop: a command at a fixed rate, from plans made beside it, through the guard and the one gate."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from rl.deploy.calls import Calls
from rl.deploy.planner import Planner
from rl.deploy.safety import Gate, Guard, NoRoom, Refused
from rl.robots.api import Interface
from rl.robots.errors import Stop
from world_model.data.episodes import Episode

Array = np.ndarray
T = TypeVar("T")

Judge = Callable[[Array, Mapping[str, Any]], bool]
"""(frame (state_dim,), the whole observation) -> whether the task is solved."""

SPIN_S = 0.001
"""The last of a period is waited for without sleeping, which is not that exact."""

PERIODS = 2
"""Periods without a command after which the watchdog stops the robot."""

LEAD = 0.1
"""Share of a period by which an observation comes before its command is due, so that the command can be punctual."""

UNHURRIED_S = 60.0
"""The same for a robot that waits for its commands."""

FIRST_S = 10.0
"""How long the first observation of an episode may take, before anything was sent."""


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
    sent: list[Array] = field(default_factory=list)  # (action_dim,), as the robot says that it took it
    success: list[bool] = field(default_factory=list)
    periods: list[float] = field(default_factory=list)  # seconds from one command to the next
    n_late: int = 0  # commands for which there was no plan in time
    reason: str = ""  # why it ended
    ended: bool = False  # by itself, whatever came after that
    stopped: bool = False  # there was a stop, or the robot did not stand still at the end: no other may begin
    failed: bool = False  # by a stop for what the policy did

    def to_episode(self, task: str, source: str, seed: int) -> Episode | None:
        """As an episode of a store; None where nothing was executed."""
        if not self.sent or len(self.frames) != len(self.sent) + 1:
            return None
        state, action = (torch.tensor(np.stack(rows), dtype=torch.float32) for rows in (self.frames, self.sent))
        return Episode(state, action, torch.tensor(self.success), task, source, seed)


def robot_says(frame: Array, observation: Mapping[str, Any]) -> bool:
    """Whether the robot itself reports a success; one that knows nothing of it never does.

    Raises:
        Stop: what it reports is neither true nor false.
    """
    success = observation.get("success", False)
    if not isinstance(success, bool | np.bool_):  # the text "False" would be a success
        raise Stop(f"the observation has success={repr(success)[:60]}, expected True or False")
    return bool(success)


class Pace:
    """The rate at which commands are sent, and the periods that came of it.

    Args:
        hz: commands a second.
        real_time: else nobody waits for the time.
    """

    def __init__(self, hz: float, real_time: bool) -> None:
        self.hz, self.real_time = hz, real_time
        self.periods: list[float] = []  # seconds from one command to the next
        self._due, self._sent = time.monotonic(), np.nan

    def wait_to_send(self) -> None:
        """Wait until the next command is due."""
        if self.real_time:
            _wait(self._due)

    def wait_to_observe(self) -> None:
        """Note that a command was sent, and wait until it is time to see what came of it."""
        now = time.monotonic()
        if self._sent == self._sent:  # not the first one
            self.periods.append(now - self._sent)
        self._sent, self._due = now, self._due + 1 / self.hz
        if self.real_time:
            _wait(self._due - LEAD / self.hz)


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
    reset: Callable[[], None] = lambda: None  # makes the robot ready for the episode
    calls: Calls = field(default_factory=Calls)  # by which the robot is talked to

    def run(self) -> Lived:
        """Run the episode."""
        lived = Lived()
        patience = PERIODS / self.hz if self.real_time else UNHURRIED_S
        executor: Executor = ThreadPoolExecutor(1) if self.real_time else Immediate()
        gate = Gate(
            self.send or self.interface.send,
            self.guard.still,
            patience,
            self.watch,
            max_change=self.guard.max_change,
            period_s=1 / self.hz if self.real_time else 0.0,
        )
        said = ""
        with executor:
            try:
                with gate:
                    self._call("reset", self.reset, gate)
                    with promptly() if self.real_time else nullcontext():
                        self._live(lived, gate, executor)
                    gate.shut(lived.reason)
            except (Stop, ConnectionError) as stop:  # a robot that is gone is one more reason
                said = str(stop)
                lived.failed = isinstance(stop, Refused) and bool(lived.sent or not isinstance(stop, NoRoom))
        self._conclude(lived, gate, said)
        return lived

    def _conclude(self, lived: Lived, gate: Gate, said: str) -> None:
        """Say why it ended, where there was a stop, which `said` why, or the robot did not stand still at the end."""
        why = said if said.startswith(f"{gate.reason}; ") else str(gate.reason)  # which was there before it
        lived.stopped = why != lived.reason
        lived.failed = lived.failed and why == said and not lived.ended
        lived.reason = f"{lived.reason}; {why}" if lived.ended and not why.startswith(lived.reason) else why

    def _clock(self) -> Callable[[], float]:
        """Seconds, as the planner counts them: without real time a plan takes one period, as it does with it."""
        return time.monotonic if self.real_time else partial(next, itertools.count(step=1 / self.hz))

    def _live(self, lived: Lived, gate: Gate, executor: Executor) -> None:
        planner = Planner(self.decide, self.n_action_steps, 1 / self.hz, executor, self._clock())
        frame, _ = self._observe(gate, FIRST_S)
        lived.frames.append(frame)
        context = np.repeat(frame[None], self.n_context_frames, axis=0)
        planner.begin(context)
        late, pace = 0, Pace(self.hz, self.real_time)
        lived.periods = pace.periods
        for k in range(self.max_steps):
            action = planner.step(k, context)
            late = 0 if action is not None else late + 1
            lived.n_late += action is None
            if late > self.max_late:
                raise Stop(f"there was no plan for {late} commands in a row")
            taken = self._command(self.guard.hold(context[-1]) if action is None else action, context[-1], gate, pace)
            frame, success = self._observe(gate)
            lived.frames.append(frame)
            lived.sent.append(taken)
            lived.success.append(success)
            context = np.concatenate([context[1:], frame[None]])
            if success:
                break
        lived.ended, lived.reason = True, "success" if success else f"{self.max_steps} steps"

    def _command(self, action: Array, frame: Array, gate: Gate, pace: Pace) -> Array:
        """Send what the guard lets through of `action`; return what the robot took, when it is time to observe."""
        command = self.guard.command(action, frame)
        pace.wait_to_send()
        answer = self._call("send_action", partial(gate.send, command), gate)
        taken = self.guard.answer(answer, command, frame)
        pace.wait_to_observe()
        return taken

    def _observe(self, gate: Gate, within_s: float | None = None) -> tuple[Array, bool]:
        """Return the newest frame (state_dim,), and whether it is a success."""
        values, stamp, observation = self._call("get_observation", self.interface.observe, gate, within_s)
        frame = self.guard.observe(values, stamp, time.monotonic())
        return frame, self.judge(frame, observation)

    def _call(self, name: str, call: Callable[[], T], gate: Gate, within_s: float | None = None) -> T:
        return self.calls(name, call, lambda: gate.reason or self.watch(), within_s)


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
