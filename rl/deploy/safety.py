"""Safety limits between a policy and a robot.

`Guard` checks observations and keeps commands within the limits. `Gate` sends commands and stops the robot. Everything
fails closed: without limits a session does not start, an invalid number stops the robot, and after a stop no command
is sent any more, whatever the rest of the program does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import pi
from typing import Any

import numpy as np

from rewards.errors import UserError
from rl.robots.errors import NOT_NUMBERS, Stop

Array = np.ndarray

GRACE_S = 1.0
"""Seconds that a running call gets after a stop to return, before it is given up."""

TRIES = 3
"""Attempts to send a command while stopping, so that one lost packet does not matter."""

ROUNDING = 1e-6
"""Relative rounding error allowed in a robot's answer, from single precision and from scales."""

UNITS = {
    "degrees, not radians": (180 / pi, 0.0),
    "radians, not degrees": (pi / 180, 0.0),
    "millimetres, not metres": (1000.0, 0.0),
    "metres, not millimetres": (0.001, 0.0),
    "percent": (100.0, 0.0),
    "motor ticks, 4096 a turn": (4096 / (2 * pi), 2048.0),
}
"""Common unit mistakes of a robot's answer: unit -> (scale, offset), where answer = scale * command + offset."""


class Refused(Stop):
    """A stop because of the policy's actions, not because of the robot."""


class NoRoom(Refused):
    """No command keeps all limits, because of earlier actions or, before the first command, the robot's start."""


@dataclass(frozen=True)
class Box:
    """Bounds of a slice of the state, and the entries of an action that move it."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    actions: tuple[int, ...]  # for each entry of the slice: index of the action entry that moves it
    per_action: float = 0.0  # how far an action of 1 moves it; 0: actions are positions


@dataclass(frozen=True)
class Limits:
    """Limits of commands and observations. They have no defaults: a person must choose them for each robot."""

    low: tuple[float, ...] = ()  # smallest value of each entry of an action
    high: tuple[float, ...] = ()  # largest value
    max_change: tuple[float, ...] = ()  # largest change from one command to the next
    still: tuple[float, ...] = ()  # the command to stand still; empty: actions are positions, repeat the last command
    start: str = ""  # if actions are positions: the slice of the state with the current positions
    boxes: dict[str, Box] = field(default_factory=dict)  # name of a slice of the state -> its bounds
    max_age_s: float = 0.1  # an older observation stops the robot
    # With an older image the robot holds, and after `max_late` such commands it stops.
    max_image_age_s: float = 0.5
    image_ages_s: dict[str, float] = field(default_factory=dict)  # the same for single cameras of the policy
    max_frozen_s: float = 1.0  # an image that does not change for so long counts as old; 0: not checked

    def check_fits(self, action_dim: int, slices: Mapping[str, slice]) -> None:
        """Refuse limits that are missing or invalid.

        Raises:
            UserError: a field is missing, has the wrong size or an invalid value; the message names it.
        """
        for name in ("low", "high", "max_change", *(("still",) if self.still else ())):
            values = getattr(self, name)
            if len(values) != action_dim or not _finite(np.array(values)).all():
                raise UserError(
                    f"limits.{name}={list(values)}: expected {action_dim} finite numbers, one for each action; "
                    "there is no start without limits"
                )
        low, high, still = (np.array(v) for v in (self.low, self.high, self.still or self.low))
        if not (low <= still).all() or not (still <= high).all() or not (np.array(self.max_change) > 0).all():
            raise UserError("limits: expected low <= still <= high and max_change above 0, for every action")
        part = slices.get(self.start, slice(0, 0))
        if not self.still and part.stop - part.start != action_dim:
            raise UserError(
                f"limits.start={self.start!r}: where actions are positions, it names the part of the state "
                f"({', '.join(slices)}) with the {action_dim} numbers that they are positions of; where they are not, "
                "give limits.still"
            )
        if not 0 < self.max_age_s < np.inf:
            raise UserError(f"limits.max_age_s={self.max_age_s}: expected a finite number above 0")
        ages = {
            "max_image_age_s": self.max_image_age_s,
            **{f"image_ages_s.{k}": v for k, v in self.image_ages_s.items()},
        }
        for name, age in ages.items():
            if not 0 < age < np.inf:
                raise UserError(f"limits.{name}={age}: expected a finite number above 0")
        if not 0 <= self.max_frozen_s < np.inf:
            raise UserError(f"limits.max_frozen_s={self.max_frozen_s}: expected a finite number of at least 0")
        for name, box in self.boxes.items():
            width = slices[name].stop - slices[name].start if name in slices else -1
            if not len(box.low) == len(box.high) == len(box.actions) == width:
                known = ", ".join(slices)
                raise UserError(f"limits.boxes.{name}: expected a part of the state ({known}), as wide as low and high")
            if not set(box.actions) <= set(range(action_dim)):
                raise UserError(f"limits.boxes.{name}.actions={list(box.actions)}: expected 0 to {action_dim - 1}")
            if not (np.array(box.low) <= box.high).all() or not np.isfinite(box.per_action):  # NaN fails too
                raise UserError(f"limits.boxes.{name}: expected low <= high for every entry, and a finite per_action")


class Guard:
    """Checks observations and answers, clips commands to the limits, and raises `Stop` for everything invalid.

    Args:
        limits: they must fit the sizes of the policy.
        action_dim: number of entries of an action of the policy.
        state_dim: number of entries of its state.
        slices: named parts of its state.

    Raises:
        UserError: see `Limits.check_fits`.
    """

    def __init__(self, limits: Limits, action_dim: int, state_dim: int, slices: Mapping[str, slice]) -> None:
        limits.check_fits(action_dim, slices)
        self.limits, self.state_dim, self.action_dim, self.slices = limits, state_dim, action_dim, slices
        self.low, self.high, self.max_change = (
            np.array(v, np.float64) for v in (limits.low, limits.high, limits.max_change)
        )
        # None: actions are positions, and repeating the last command stands still.
        self.still: Array | None = np.array(limits.still, np.float64) if limits.still else None
        self.begin()

    def begin(self) -> None:
        """Start an episode: the first command is limited relative to standing still."""
        self.last = self.still
        self.stamp = -np.inf

    def hold(self, frame: Array) -> Array:
        """Return the command (action_dim,) that keeps the robot where it is; `frame` (state_dim,) is the newest one."""
        if self.still is not None:
            return self.still
        # Actions are positions: the last command, or the measured position before the first one.
        return frame[self.slices[self.limits.start]] if self.last is None else self.last

    def observe(self, frame: object, stamp: object, now: float) -> Array:
        """Check an observation and return its frame (state_dim,); `stamp` and `now` are seconds of the same clock.

        Raises:
            Stop: it is not finite, has another size, is too old, is from the future, or is older than the previous one.
        """
        try:
            values = _numbers(frame)
        except NOT_NUMBERS:
            raise Stop(f"the observation is no list of numbers: {repr(frame)[:60]}") from None
        if values.shape != (self.state_dim,):
            raise Stop(f"the observation has shape {values.shape}, expected {(self.state_dim,)}")
        if not (finite := _finite(values)).all():
            i = int(np.flatnonzero(~finite)[0])
            how = f" in single precision: {values[i]:g}" if np.isfinite(values[i]) else ""
            raise Stop(f"entry {i} of the observation is not finite{how}")
        try:
            when = float(_numbers([stamp])[0])
        except NOT_NUMBERS:
            raise Stop(f"the time of the observation is {repr(stamp)[:60]}, expected seconds") from None
        age, most = now - when, self.limits.max_age_s
        if not abs(age) <= most:  # written with `not`, so that NaN stops too
            raise Stop(f"the observation is {age:.3f} s old, at most {most:g} s is allowed, before now or after")
        if when < self.stamp:
            raise Stop(f"the observation is {self.stamp - when:.3f} s older than the one before it")
        self.stamp = when
        return values

    def command(self, action: object, frame: Array) -> Array:
        """Clip `action` (action_dim,) to the nearest command within all limits.

        Raises:
            Refused: the action is not finite or has another size.
            NoRoom: no command keeps all limits.
        """
        try:
            wanted = _numbers(action)
        except NOT_NUMBERS:
            raise Refused(f"the action is no list of numbers: {repr(action)[:60]}") from None
        if wanted.shape != (self.action_dim,) or not np.isfinite(wanted).all():
            raise Refused(f"the action is {repr(wanted)[:60]}, expected {self.action_dim} finite numbers")
        last = self.hold(frame) if self.last is None else self.last
        # Every limit narrows the interval [low, high] of each entry: bounds and rate of change first, then the boxes.
        low, high = np.maximum(self.low, last - self.max_change), np.minimum(self.high, last + self.max_change)
        for name, box in self.limits.boxes.items():
            ends = np.array([box.low, box.high])
            if box.per_action != 0.0:
                # From bounds of the position to bounds of the action that moves it. Far outside the box this may
                # overflow to infinity, and then no command is left.
                with np.errstate(over="ignore"):
                    ends = (ends - frame[self.slices[name]]) / box.per_action
            # `ufunc.at`, since one action may move several entries, and the narrowest bounds count.
            index = list(box.actions)
            np.maximum.at(low, index, ends.min(0))
            np.minimum.at(high, index, ends.max(0))
        if (low > high).any():
            which = int(np.flatnonzero(low > high)[0])
            raise NoRoom(f"no command for action {which} keeps all limits: it is outside its box, or moves too fast")
        self.last = np.clip(wanted, low, high)
        return self.last

    def answer(self, taken: object, command: Array, frame: Array) -> Array:
        """Check the action that a robot reports as sent; return it (action_dim,), to be recorded.

        Args:
            taken: the robot's report.
            command: the command that was sent to it, (action_dim,).
            frame: the frame before it, (state_dim,).

        Raises:
            Stop: the report is invalid, beyond the limits, or further than `max_change` from the command; the last two
                often mean that the robot answers in other units than those of the policy.
        """
        try:
            values = _numbers(taken)
        except NOT_NUMBERS:
            raise Stop(f"the answer to a command is no list of numbers: {repr(taken)[:60]}") from None
        if values.shape != (self.action_dim,):
            raise Stop(f"the answer to a command has shape {values.shape}, expected {(self.action_dim,)}")
        low, high = np.maximum(self.low, command - self.max_change), np.minimum(self.high, command + self.max_change)
        slack = ROUNDING * np.maximum(1.0, np.abs(command))
        within = (low - slack <= values) & (values <= high + slack)  # False for NaN
        if not within.all():
            i = int(np.flatnonzero(~within)[0])
            raise Stop(
                f"the robot answers that it took {values[i]:g} where action {i} was {command[i]:g}; "
                f"it seems to answer {self._likely_unit(values, command, frame)}; correct the map or its send_action"
            )
        return np.clip(values, low, high)

    def _likely_unit(self, values: Array, command: Array, frame: Array) -> str:
        """Guess in which unit a robot answers, for the error message."""
        for unit, (scale, offset) in UNITS.items():
            if np.allclose(values, scale * command + offset, rtol=0.02, atol=0.6 if offset else 0.0):
                return f"in {unit}"
        part = self.slices.get(self.limits.start, slice(0, 0))
        if self.still is None and (np.abs(values - frame[part]) <= self.max_change).all():
            return "the positions that it measures, not those that it was sent"
        whole = 100 <= np.abs(values).max() < 1e6 and np.array_equal(values, np.round(values))
        return "in motor ticks" if whole else "in other units than those of the policy"


class Gate:
    """The only way to send commands to a robot. Shutting it makes the robot stand still; then it sends nothing more.

    A robot with speed commands is slowed down to `still`: each command changes by at most `max_change`, one command
    per period. If it almost stands still, one command is enough. A command that hangs in the robot may take effect
    later; then the command to stand still is sent again after it.

    Args:
        send: sends a command to the robot; returns the action that the robot reports as sent, None: the command.
        still: the last command when the gate is shut; None: repeat the last command, if any.
        patience_s: seconds without a new command after which the watchdog shuts the gate.
        watch: returns a reason to stop, or None; called before each command, and regularly by the watchdog.
        max_change: (action_dim,) largest change from one command to the next while slowing down.
        period_s: seconds from one command to the next while slowing down.
    """

    def __init__(
        self,
        send: Callable[[Array], Any],
        still: Array | None,
        patience_s: float,
        watch: Callable[[], str | None] = lambda: None,
        max_change: Array | float = np.inf,
        period_s: float = 0.0,
    ) -> None:
        self._send, self._still, self._patience, self._watch = send, still, patience_s, watch
        self._max_change, self._period = max_change, period_s
        self._sending, self._shutting, self._over = threading.Lock(), threading.Lock(), threading.Event()
        self._slowing = threading.Lock()
        self._last = np.inf  # time at which sending the newest command began
        self._sent = self._taken = still  # the newest command, and the newest one that the robot surely received
        self._overtaken = False  # the command to stand still was sent while another command hung
        self.reason: str | None = None  # why it was shut; None while it is open
        self._watchdog = threading.Thread(target=self._watch_over, daemon=True)

    def __enter__(self) -> Gate:
        self._watchdog.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self.shut("the end" if kind is None else str(error) or kind.__name__)
        self._over.set()
        # The watchdog may be slowing the robot down. Wait for that, but not forever: the robot may hang.
        self._watchdog.join(self._slowing_s() + 2 * GRACE_S)

    def send(self, command: Array) -> Any:
        """Send a command (action_dim,) within all limits; return the action that the robot reports as sent.

        Raises:
            Stop: the gate is shut.
        """
        if (reason := self._watch()) is not None:
            self.shut(reason)
        with self._sending:
            if self.reason is not None:
                raise Stop(self.reason)
            self._last = time.monotonic()
            try:
                taken = self._send_one(command)
            finally:
                if self._overtaken:  # this command hung and may take effect only now, so stop the robot again
                    self._stand_still()
            if self.reason is not None:
                raise Stop(self.reason)
            return command if taken is None else taken

    def shut(self, reason: str) -> None:
        """Make the robot stand still and send nothing after that; only the first reason counts."""
        if not self._shutting.acquire(blocking=False):
            return  # it was shut before; the lock is never released
        self.reason = reason  # set it first, so that a waiting `send` stops
        # A robot that hangs in `send` holds the lock. If it does so for too long, go on without the lock.
        left = self._last + self._patience - time.monotonic()
        acquired = self._sending.acquire(timeout=min(max(left, 0.0), GRACE_S))
        self._overtaken = not acquired
        try:
            self._stand_still()
        finally:
            if acquired:
                self._sending.release()

    def _send_one(self, command: Array) -> Any:
        """Send a command, and note whether the robot surely received it."""
        self._sent = command  # before sending, since a robot may execute a command and then fail to answer
        taken = self._send(command)
        if self._sent is command:  # no newer command was sent while this one hung
            self._taken = command
        return taken

    def _stand_still(self) -> None:
        """Slow the robot down in another thread, so that a robot that hangs does not block the caller."""
        if self._sent is None:
            return  # no command was ever sent
        slowing_s = self._slowing_s()
        sending = threading.Thread(target=self._slow_down, daemon=True)
        sending.start()
        sending.join(slowing_s + GRACE_S)
        if sending.is_alive():
            self.reason = f"{self.reason}; the robot hangs in the command to stand still"

    def _slow_down(self) -> None:
        """Send the commands that slow the robot down to `still`, each with at most `TRIES` attempts."""
        # One thread at a time: a command that hung may return, and ask for this again, while the robot slows down.
        with self._slowing:
            while self._try_to_send(command := self._slower()):
                if self._still is None or np.array_equal(command, self._still):
                    return
                time.sleep(self._period)

    def _slower(self) -> Array:
        """Return the command nearest to `still` within `max_change` of the previous command.

        If the newest command hangs or failed, it is unknown whether the robot executes it or the one before. So the
        result is within `max_change` of both.
        """
        assert self._sent is not None
        if self._still is None or self._taken is None:
            return self._sent
        low = np.maximum(self._sent, self._taken) - self._max_change
        high = np.minimum(self._sent, self._taken) + self._max_change
        return np.clip(self._still, low, high)

    def _slowing_s(self) -> float:
        """Return how many seconds slowing down takes."""
        if self._still is None or self._sent is None:
            return 0.0
        return float(np.max(np.ceil(np.abs(self._sent - self._still) / self._max_change))) * self._period

    def _try_to_send(self, command: Array) -> bool:
        """Send a command with up to `TRIES` attempts; return whether one succeeded."""
        complaint = ""
        for _ in range(TRIES):
            try:
                self._send_one(command)
                return True
            except Exception as error:  # the robot must be stopped, so try again after any error, then report it
                complaint = repr(error)
        self.reason = f"{self.reason}; the robot did not take the command to stand still: {complaint}"
        return False

    def _watch_over(self) -> None:
        """Run the watchdog: shut the gate at a stop, or when no command came for `patience_s`."""
        while not self._over.wait(self._patience / 8):
            try:
                reason = self._watch()
            except Exception as error:  # if stops cannot be read, the robot must not continue
                reason = f"stops cannot be looked for: {error!r}"
            if reason is None and time.monotonic() - self._last > self._patience:
                reason = f"no command for {self._patience:g} s: the loop hangs"
            if reason is not None:
                self.shut(reason)


def _numbers(values: object) -> Array:
    """Convert numbers to float64; raise one of `NOT_NUMBERS`, also for booleans and text, which numpy would accept."""
    entries = values.tolist() if isinstance(values, np.ndarray) else values
    if isinstance(entries, list | tuple) and any(isinstance(v, bool | np.bool_ | str | bytes) for v in entries):
        raise TypeError
    return np.asarray(values, np.float64)


def _finite(values: Array) -> Array:
    """Return whether each number is finite as float32, the type in the network and on disk."""
    with np.errstate(over="ignore"):
        return np.isfinite(values.astype(np.float32))
