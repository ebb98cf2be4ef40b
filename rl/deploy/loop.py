"""The control loop: commands at a fixed rate, from plans computed in another thread, checked by guard and gate."""

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
from rl.deploy.frames import Frame, context_of, recorded
from rl.deploy.freshness import Freshness
from rl.deploy.planner import Decide, Planner
from rl.deploy.safety import Gate, Guard, NoRoom, Refused
from rl.deploy.takeover import Takeover
from rl.robots.api import Interface
from rl.robots.errors import Stop
from rl.robots.images import check_image
from world_model.data.episodes import PERSON, POLICY, Episode
from world_model.spec import STATE, Spec

Array = np.ndarray
T = TypeVar("T")

Judge = Callable[[Frame, Mapping[str, Any]], bool]
"""(frame, the robot's observation) -> whether the task is solved."""

SPIN_S = 0.001
"""Seconds at the end of a wait that are spent in a busy loop, since sleeping is less exact than that."""

PERIODS = 2
"""Periods without a command after which the watchdog stops the robot."""

LEAD = 0.1
"""Share of a period between an observation and its command, so that the command can be sent on time."""

UNHURRIED_S = 60.0
"""Seconds without a command after which the watchdog stops a robot that does not run in real time."""

FIRST_S = 10.0
"""Seconds that the first observation of an episode may take; no command has been sent by then."""


class Immediate(Executor):
    """An executor that runs each call at once in the calling thread, for a robot that waits for its commands."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the call; return a future that is already done."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@dataclass
class Lived:
    """The result of one episode on a robot."""

    frames: list[Frame] = field(default_factory=list)  # the first one and one after each command
    sent: list[Array] = field(default_factory=list)  # (action_dim,), as the robot reports it
    success: list[bool] = field(default_factory=list)  # after each command
    periods: list[float] = field(default_factory=list)  # seconds from one command to the next
    n_late: int = 0  # commands for which no plan was ready in time, or an image was too old
    control: list[int] = field(default_factory=list)  # who acted in each step, see `Episode.control`
    old_image: str = ""  # which image was too old, the last time; empty: none was
    views: list[Frame] = field(default_factory=list)  # with each frame, the images of all cameras, if they are recorded
    reason: str = ""  # why it ended
    ended: bool = False  # it reached success, failure or `max_steps`, even if a stop came after that
    stopped: bool = False  # a stop came, or the robot did not stand still at the end: start no other episode
    failed: bool = False  # it was stopped because of the policy's actions

    def to_episode(self, spec: Spec, task: str, source: str, seed: int) -> Episode | None:
        """Return it as an episode of a store with `spec`; None if no command was executed."""
        if not self.sent or len(self.frames) != len(self.sent) + 1:
            return None
        obs, every = recorded(self.frames, spec)
        action = torch.tensor(np.stack(self.sent), dtype=torch.float32)
        success, control = torch.tensor(self.success), torch.tensor(self.control, dtype=torch.uint8)
        return Episode(obs, action, success, task, source, seed, every=every, control=control)


def robot_says(frame: Frame, observation: Mapping[str, Any]) -> bool:
    """Return whether the robot's observation reports success; False if it has no key `success`.

    Raises:
        Stop: the value of `success` is not a boolean.
    """
    return _flag("success", observation)


def robot_fails(observation: Mapping[str, Any]) -> bool:
    """Return whether the robot's observation reports that the task will not be solved any more.

    Raises:
        Stop: the value of `failure` is not a boolean.
    """
    return _flag("failure", observation)


def _flag(name: str, observation: Mapping[str, Any]) -> bool:
    value = observation.get(name, False)
    if not isinstance(value, bool | np.bool_):  # `bool("False")` would be True
        raise Stop(f"the observation has {name}={repr(value)[:60]}, expected True or False")
    return bool(value)


class Pace:
    """Keeps the rate of commands and measures the actual periods.

    Args:
        hz: commands per second.
        real_time: False: do not wait.
    """

    def __init__(self, hz: float, real_time: bool) -> None:
        self.hz, self.real_time = hz, real_time
        self.periods: list[float] = []  # seconds from one command to the next
        self._due, self._sent = time.monotonic(), -np.inf

    def wait_to_send(self) -> None:
        """Wait until the next command is due, and note that it is sent now."""
        if self.real_time:
            # After a delay, commands come a little faster until they are on time again, so jitter does not lower the
            # mean rate. They never come in a burst: `max_change` limits each command, not how many a period has. This
            # counts from when the command before began, so a robot may take some time to receive one.
            _wait(max(self._due, self._sent + (1 - LEAD) / self.hz))
        now = time.monotonic()
        if np.isfinite(self._sent):  # there was a command before
            self.periods.append(now - self._sent)
        self._sent = now

    def wait_to_observe(self) -> None:
        """Wait until the next observation is due, after a command was sent."""
        # Of a longer delay, less than a period is made up for; the rest moves all later commands.
        self._due = max(self._due + 1 / self.hz, time.monotonic() + LEAD / self.hz)
        if self.real_time:
            _wait(self._due - LEAD / self.hz)


@dataclass(frozen=True)
class _Seen:
    """An observation after the checks."""

    frame: Frame
    success: bool
    old: str  # which of its images is too old to act on; empty: none
    observation: Mapping[str, Any]  # as the robot gave it


@dataclass
class Loop:
    """The control loop of one episode; it ends at `max_steps`, success or failure, if discarded, or by a stop."""

    interface: Interface  # converts between robot and policy
    guard: Guard  # keeps commands within the limits
    decide: Decide  # computes a chunk; called in another thread
    n_context_frames: int  # of the policy
    n_action_steps: int  # steps of a chunk after which the next plan is started
    hz: float  # commands per second
    max_steps: int  # commands of the episode
    watch: Callable[[], str | None] = lambda: None  # returns a reason to stop, or None; called many times a second
    max_late: int = 5  # late commands in a row; for these the robot stands still, one more is a stop
    send: Callable[[Array], Array | None] | None = None  # receives the commands instead of the robot, for a dry run
    judge: Judge = robot_says  # returns whether a frame is a success
    gives_up: Callable[[], bool] = lambda: False  # returns whether the user says that the episode failed
    real_time: bool = True  # False: the robot waits for each command, so the loop does not wait for the clock
    reset: Callable[[], None] = lambda: None  # prepares the robot for the episode
    calls: Calls = field(default_factory=Calls)  # makes the calls to the robot
    freshness: Freshness | None = None  # tells which images are too old; None: those of a robot that waits never are
    takeover: Takeover | None = None  # a person who may act in place of the policy; None: nobody
    show: Callable[[Lived], None] = lambda lived: None  # called for each frame; it must not wait
    records_cameras: bool = False  # keep the images of all cameras as the robot gives them
    trouble: Callable[[], str] = lambda: ""  # says why there is no plan, if it is known

    def run(self) -> Lived:
        """Run the episode; leave the robot standing still."""
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
        stop_reason = ""
        with executor:
            try:
                with gate:
                    self._call("reset", self.reset, gate)
                    with promptly() if self.real_time else nullcontext():
                        self._live(lived, gate, executor)
                    gate.shut(lived.reason)
            except (Stop, ConnectionError) as stop:  # a lost connection ends the episode like a stop
                stop_reason = str(stop)
                # Before the first command, `NoRoom` is about where the robot was placed, not about the policy.
                lived.failed = isinstance(stop, Refused) and bool(lived.sent or not isinstance(stop, NoRoom))
        self._conclude(lived, gate, stop_reason)
        return lived

    def _conclude(self, lived: Lived, gate: Gate, stop_reason: str) -> None:
        """Set `stopped`, `failed` and `reason` at the end of an episode.

        `stop_reason` is the message of the exception that ended the loop, if any. The gate may have been shut for
        another reason before, and its reason also tells if the robot did not stand still.
        """
        # The gate's reason came first, unless the exception repeats it with more detail.
        why = stop_reason if stop_reason.startswith(f"{gate.reason}; ") else str(gate.reason)
        lived.stopped = why != lived.reason
        lived.failed = lived.failed and why == stop_reason and not lived.ended
        lived.reason = f"{lived.reason}; {why}" if lived.ended and not why.startswith(lived.reason) else why

    def _clock(self) -> Callable[[], float]:
        """Return the planner's clock in seconds; without real time every plan is counted as one period."""
        return time.monotonic if self.real_time else partial(next, itertools.count(step=1 / self.hz))

    def _live(self, lived: Lived, gate: Gate, executor: Executor) -> None:
        planner = Planner(self.decide, self.n_action_steps, 1 / self.hz, executor, self._clock())
        seen = self._observe(lived, gate, FIRST_S)
        if seen.old:
            raise Stop(seen.old)
        self.show(lived)
        planner.begin(self._context(lived))
        held, late, pace = 0, 0, Pace(self.hz, self.real_time)
        lived.periods = pace.periods
        for k in range(self.max_steps):
            action, who = self._choose(k, lived, planner, seen, gate)
            # Commands in a row without a plan, and those of them for which it is late or an image too old.
            held, late = (0, 0) if action is not None else (held + 1, late + (bool(seen.old) or planner.is_late(k)))
            lived.n_late += action is None
            lived.old_image = seen.old or lived.old_image
            if late > self.max_late:
                why = seen.old or self.trouble()
                raise Stop(f"there was no plan for {held} commands in a row{why and f'; {why}'}")
            # Without a plan in time, hold the position.
            state = seen.frame[STATE]
            taken = self._command(self.guard.hold(state) if action is None else action, who, state, gate, pace)
            seen = self._observe(lived, gate)
            lived.sent.append(taken)
            # The person's device was asked before this command.
            solved = seen.success or (self.takeover is not None and self.takeover.success)
            lived.success.append(solved)
            self.show(lived)
            if self.takeover is not None and self.takeover.discards:
                lived.reason = "discarded by the person"
                return
            if solved or self._failed(seen):
                lived.ended, lived.reason = True, "success" if solved else "failure"
                return
        lived.ended, lived.reason = True, f"{self.max_steps} steps"

    def _failed(self, seen: _Seen) -> bool:
        """Whether the robot, the user or the person's device says that the task will not be solved any more."""
        ends = self.takeover is not None and self.takeover.ends
        return robot_fails(seen.observation) or self.gives_up() or ends

    def _choose(
        self, k: int, lived: Lived, planner: Planner, seen: _Seen, gate: Gate
    ) -> tuple[Array | list[Any] | None, int]:
        """Return the action (action_dim,) of step `k`, and who acts; None: there is no plan, and the robot holds."""
        wanted = None
        if self.takeover is not None:
            wanted = self._call("get_action", partial(self.takeover.wanted, seen.observation), gate)
        if seen.old or wanted is not None:  # the next plan begins once images are new, or the person gives back
            planner.forget(k)
        plan = None if seen.old or wanted is not None else planner.step(k, self._context(lived))
        if wanted is not None:
            lived.control.append(PERSON)
            return wanted, PERSON
        action, who = (plan, POLICY) if self.takeover is None else self.takeover.blended(plan)
        lived.control.append(who)
        return action, who

    def _context(self, lived: Lived) -> Frame:
        """Return the policy's observation of the newest frame."""
        return context_of(lived.frames, self.interface.spec, self.n_context_frames)

    def _command(self, action: Any, who: int, state: Array, gate: Gate, pace: Pace) -> Array:
        """Send `action` within the limits when it is due; return the action (action_dim,) that the robot reports.

        Returns when the next observation is due.

        Raises:
            Refused: the guard refuses the policy's action.
            Stop: it refuses the person's, or see `Guard.answer`.
        """
        try:
            command = self.guard.command(action, state)
        except Refused as refused:
            if who == PERSON:
                raise Stop(f"from the person: {refused}") from refused
            raise
        if who == PERSON and self.takeover is not None:
            self.takeover.drove(command)
        pace.wait_to_send()
        answer = self._call("send_action", partial(gate.send, command), gate)
        taken = self.guard.answer(answer, command, state)
        pace.wait_to_observe()
        return taken

    def _observe(self, lived: Lived, gate: Gate, within_s: float | None = None) -> _Seen:
        """Return what was observed after the guard's checks, and add its frame to `lived`."""
        values, images, stamp, observation = self._call("get_observation", self.interface.observe, gate, within_s)
        now = time.monotonic()
        frame = {STATE: self.guard.observe(values, stamp, now), **images}
        old = "" if self.freshness is None else self.freshness.complaint(observation, now)
        lived.frames.append(frame)
        if self.records_cameras:
            lived.views.append(self._views(lived, observation))
        return _Seen(frame, self.judge(frame, observation), old, observation)

    def _views(self, lived: Lived, observation: Mapping[str, Any]) -> Frame:
        """Return the images of all cameras; one that repeats is the same array as before, and takes no memory."""
        before, views = lived.views[-1] if lived.views else {}, {}
        for camera, shape in self.interface.cameras.items():
            check_image(camera, observation.get(camera), shape)
            image = observation[camera]
            repeats = camera in before and np.array_equal(before[camera], image)
            views[camera] = before[camera] if repeats else image.copy()
        return views

    def _call(self, name: str, call: Callable[[], T], gate: Gate, within_s: float | None = None) -> T:
        return self.calls(name, call, lambda: gate.reason or self.watch(), within_s)


@contextmanager
def promptly() -> Iterator[None]:
    """Avoid delays of the loop: switch threads quickly, pause garbage collection, raise the priority of the process.

    By default a thread can hold the interpreter for 5 ms while another one is due, and garbage collection takes as
    long.
    """
    before, collects = sys.getswitchinterval(), gc.isenabled()
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    sys.setswitchinterval(2e-4)
    gc.disable()
    with suppress(PermissionError):  # usually only root may raise it; without that, keep the priority
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
    """Wait until `due` in seconds of `time.monotonic`: sleep first, then spin."""
    if (left := due - time.monotonic() - SPIN_S) > 0:
        time.sleep(left)
    while time.monotonic() < due:
        pass
