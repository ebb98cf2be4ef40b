"""What may reach a robot: every command within its limits, nothing at all from a bad observation, and a stop that wins.

Everything fails closed: without limits there is no start, a number that is none stops the run, and after a stop no
command passes any more, whatever the rest of the program does.
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
"""How long a call that hangs may still return after a stop, before it is given up."""

TRIES = 3
"""Times that the command to stand still is sent where a robot refuses it: one lost packet is not the end."""

ROUNDING = 1e-6
"""Share of a number by which an answer may differ from it: robots that keep single precision, and scales, round."""

UNITS = {
    "degrees, not radians": (180 / pi, 0.0),
    "radians, not degrees": (pi / 180, 0.0),
    "millimetres, not metres": (1000.0, 0.0),
    "metres, not millimetres": (0.001, 0.0),
    "percent": (100.0, 0.0),
    "motor ticks, 4096 a turn": (4096 / (2 * pi), 2048.0),
}
"""Mistakes that are common: unit -> (scale, offset), answer = scale * command + offset."""


class Refused(Stop):
    """The same, for what the policy wants and not for what happens to the robot."""


class NoRoom(Refused):
    """No command keeps all limits: the policy led there or, before its first command, whoever put the robot there."""


@dataclass(frozen=True)
class Box:
    """Where a part of the state has to stay, and which entries of an action move it."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    actions: tuple[int, ...]  # entry of the action that moves each entry of the part
    per_action: float = 0.0  # how far an action of 1 moves it; 0: the action is the position itself


@dataclass(frozen=True)
class Limits:
    """What a command must keep. There is no default: somebody has to have thought about each robot."""

    low: tuple[float, ...] = ()  # of each entry of an action
    high: tuple[float, ...] = ()
    max_change: tuple[float, ...] = ()  # from one command to the next
    still: tuple[float, ...] = ()  # the command to stand still; empty: the last one, where actions are positions
    start: str = ""  # the slice of the state that commands go on from, where actions are positions
    boxes: dict[str, Box] = field(default_factory=dict)  # by the name of a slice of the state
    max_age_s: float = 0.1  # an older observation is not acted on

    def check_fits(self, action_dim: int, slices: Mapping[str, slice]) -> None:
        """Refuse limits that are missing or mean nothing.

        Raises:
            UserError: names the field.
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
                f"limits.start={self.start!r}: where actions are positions, it names the {action_dim} numbers of the "
                f"state that they are positions of; where they are not, give limits.still"
            )
        if not 0 < self.max_age_s < np.inf:
            raise UserError(f"limits.max_age_s={self.max_age_s}: expected a finite number above 0")
        for name, box in self.boxes.items():
            width = slices[name].stop - slices[name].start if name in slices else -1
            if not len(box.low) == len(box.high) == len(box.actions) == width:
                known = ", ".join(slices)
                raise UserError(f"limits.boxes.{name}: expected a part of the state ({known}), as wide as low and high")
            if not set(box.actions) <= set(range(action_dim)):
                raise UserError(f"limits.boxes.{name}.actions={list(box.actions)}: expected 0 to {action_dim - 1}")
            if not (np.array(box.low) <= box.high).all() or not np.isfinite(box.per_action):  # NaN is no end
                raise UserError(f"limits.boxes.{name}: expected low <= high for every entry, and a finite per_action")


class Guard:
    """Pass what keeps the limits, bring back what can be brought back, and raise `Stop` at the rest.

    Args:
        limits: checked against the sizes of the policy.
        action_dim, slices, state_dim: of the policy.
    """

    def __init__(self, limits: Limits, action_dim: int, state_dim: int, slices: Mapping[str, slice]) -> None:
        limits.check_fits(action_dim, slices)
        self.limits, self.state_dim, self.action_dim, self.slices = limits, state_dim, action_dim, slices
        self.low, self.high, self.max_change = (
            np.array(v, np.float64) for v in (limits.low, limits.high, limits.max_change)
        )
        # None: where actions are positions, it stands still at the last one that was sent
        self.still: Array | None = np.array(limits.still, np.float64) if limits.still else None
        self.begin()

    def begin(self) -> None:
        """Forget the last episode: commands go on from standing still."""
        self.last = self.still
        self.stamp = -np.inf

    def hold(self, frame: Array) -> Array:
        """The command that keeps it where it is, seen in `frame`, when there is nothing better to do."""
        if self.still is not None:
            return self.still
        return frame[self.slices[self.limits.start]] if self.last is None else self.last

    def observe(self, frame: object, stamp: object, now: float) -> Array:
        """Return the frame (state_dim,) if it may be acted on; `stamp` and `now` are seconds of one clock.

        Raises:
            Stop: it is not finite, of another size, stale, of the future, or older than the one before it.
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
        if not abs(age) <= most:  # also where the stamp is no number
            raise Stop(f"the observation is {age:.3f} s old, at most {most:g} s is allowed, before now or after")
        if when < self.stamp:
            raise Stop(f"the observation is {self.stamp - when:.3f} s older than the one before it")
        self.stamp = when
        return values

    def command(self, action: object, frame: Array) -> Array:
        """Return the command (action_dim,) that is nearest to `action` among those that keep every limit.

        Raises:
            Refused: the action is not finite or of another size.
            NoRoom: no command keeps all limits.
        """
        try:
            wanted = _numbers(action)
        except NOT_NUMBERS:
            raise Refused(f"the action is no list of numbers: {repr(action)[:60]}") from None
        if wanted.shape != (self.action_dim,) or not np.isfinite(wanted).all():
            raise Refused(f"the action is {repr(wanted)[:60]}, expected {self.action_dim} finite numbers")
        last = self.hold(frame) if self.last is None else self.last
        low, high = np.maximum(self.low, last - self.max_change), np.minimum(self.high, last + self.max_change)
        for name, box in self.limits.boxes.items():
            ends = np.array([box.low, box.high])
            if box.per_action != 0.0:
                with np.errstate(over="ignore"):  # far outside, no command is left
                    ends = (ends - frame[self.slices[name]]) / box.per_action
            index = list(box.actions)  # one action may move several entries, each of which counts
            np.maximum.at(low, index, ends.min(0))
            np.minimum.at(high, index, ends.max(0))
        if (low > high).any():
            which = int(np.flatnonzero(low > high)[0])
            raise NoRoom(f"no command for action {which} keeps all limits: it is outside its box, or moves too fast")
        self.last = np.clip(wanted, low, high)
        return self.last

    def answer(self, taken: object, command: Array, frame: Array) -> Array:
        """Return what a robot says that it took of `command` (action_dim,), which is what will be recorded.

        Args:
            taken: what it says.
            command: what it was sent, as the guard let it through.
            frame: (state_dim,) seen before.

        Raises:
            Stop: it is beyond the limits, or further from the command than one command may be from the next.
        """
        try:
            values = _numbers(taken)
        except NOT_NUMBERS:
            raise Stop(f"the answer to a command is no list of numbers: {repr(taken)[:60]}") from None
        if values.shape != (self.action_dim,):
            raise Stop(f"the answer to a command has shape {values.shape}, expected {(self.action_dim,)}")
        low, high = np.maximum(self.low, command - self.max_change), np.minimum(self.high, command + self.max_change)
        slack = ROUNDING * np.maximum(1.0, np.abs(command))
        within = (low - slack <= values) & (values <= high + slack)  # not where it is no number
        if not within.all():
            i = int(np.flatnonzero(~within)[0])
            raise Stop(
                f"the robot answers that it took {values[i]:g} where action {i} was {command[i]:g}; "
                f"it seems to answer {self._spoken(values, command, frame)}; correct the map or its send_action"
            )
        return np.clip(values, low, high)

    def _spoken(self, values: Array, command: Array, frame: Array) -> str:
        """Guess what the numbers are with which a robot answers."""
        for unit, (scale, offset) in UNITS.items():
            if np.allclose(values, scale * command + offset, rtol=0.02, atol=0.6 if offset else 0.0):
                return f"in {unit}"
        part = self.slices.get(self.limits.start, slice(0, 0))
        if self.still is None and (np.abs(values - frame[part]) <= self.max_change).all():
            return "the positions that it measures, not those that it was sent"
        whole = 100 <= np.abs(values).max() < 1e6 and np.array_equal(values, np.round(values))
        return "in motor ticks" if whole else "in other units than those of the policy"


class Gate:
    """The one door to a robot. Once it is shut, the robot is made to stand still, and nothing else passes any more.

    A robot that is commanded speeds is slowed down to `still` by as many commands as `max_change` asks for, one a
    period; from nearly standing still that is one command. A command that hangs in the robot meanwhile may come
    through later; then the one to stand still follows it.

    Args:
        send: hands a command to the robot; returns what it says that it took, None: all of it.
        still: the command that is sent last when the gate is shut; None: the last one that was sent, if any.
        patience_s: so long after a command was sent without another, the watchdog shuts it.
        watch: asked by the watchdog for stops that nobody waits for, such as a file; returns a reason or None.
        max_change: (action_dim,) from one command to the next, when the gate is shut.
        period_s: from one command to the next, when the gate is shut.
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
        self._last = np.inf  # when the newest command was sent, or begun to be
        self._sent = self._taken = still  # the newest command, and the newest that the robot took for sure
        self._passed = False  # the command to stand still went past one that hangs
        self.reason: str | None = None  # why it is shut
        self._watchdog = threading.Thread(target=self._guard, daemon=True)

    def __enter__(self) -> Gate:
        self._watchdog.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self.shut("the end" if kind is None else str(error) or kind.__name__)
        self._over.set()
        # The watchdog may be slowing the robot down; one that hangs is not waited for.
        self._watchdog.join(self._slowing_s() + 2 * GRACE_S)

    def send(self, command: Array) -> Any:
        """Send a command that keeps all limits; return what the robot says that it took.

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
                taken = self._hand(command)
            finally:
                if self._passed:  # it hung, and the command to stand still went past it
                    self._stand_still()
            if self.reason is not None:
                raise Stop(self.reason)
            return command if taken is None else taken

    def shut(self, reason: str) -> None:
        """Make the robot stand still and let nothing else pass from here on; the first reason stays."""
        if not self._shutting.acquire(blocking=False):
            return  # shut already, for ever
        self.reason = reason  # at once, for a `send` that waits
        # A robot that hangs in `send` keeps the lock; where it does for too long, the command goes past it.
        left = self._last + self._patience - time.monotonic()
        waited = self._sending.acquire(timeout=min(max(left, 0.0), GRACE_S))
        self._passed = not waited
        try:
            self._stand_still()
        finally:
            if waited:
                self._sending.release()

    def _hand(self, command: Array) -> Any:
        """Hand a command to the robot, and keep whether it took it for sure."""
        self._sent = command  # before it is sent, since a robot may take it and fail to say so
        taken = self._send(command)
        if self._sent is command:  # it did not hang while others went past it
            self._taken = command
        return taken

    def _stand_still(self) -> None:
        """Command it in a thread of its own: who asks for it must not hang as the robot does."""
        if self._sent is None:
            return  # it never moved
        slowing_s = self._slowing_s()
        sending = threading.Thread(target=self._slow_down, daemon=True)
        sending.start()
        sending.join(slowing_s + GRACE_S)
        if sending.is_alive():
            self.reason = f"{self.reason}; the robot hangs in the command to stand still"

    def _slow_down(self) -> None:
        """Send the commands that lead to standing still, each of them `TRIES` times at most."""
        with self._slowing:  # not two at once, where a command that hung comes through while the robot slows down
            while self._hand_again(command := self._slower()):
                if self._still is None or np.array_equal(command, self._still):
                    return
                time.sleep(self._period)

    def _slower(self) -> Array:
        """The command nearest to standing still that is no further than `max_change` from the one before.

        Where the newest command hangs or failed, the robot may have taken it or not, so it is near the one before too.
        """
        assert self._sent is not None
        if self._still is None or self._taken is None:
            return self._sent
        low = np.maximum(self._sent, self._taken) - self._max_change
        high = np.minimum(self._sent, self._taken) + self._max_change
        return np.clip(self._still, low, high)

    def _slowing_s(self) -> float:
        """How long it takes to slow down."""
        if self._still is None or self._sent is None:
            return 0.0
        return float(np.max(np.ceil(np.abs(self._sent - self._still) / self._max_change))) * self._period

    def _hand_again(self, command: Array) -> bool:
        """Hand it a command until it takes it; return whether it did."""
        complaint = ""
        for _ in range(TRIES):
            try:
                self._hand(command)
                return True
            except Exception as error:  # nothing more can be done than to try again, and to say so
                complaint = repr(error)
        self.reason = f"{self.reason}; the robot did not take the command to stand still: {complaint}"
        return False

    def _guard(self) -> None:
        while not self._over.wait(self._patience / 8):
            try:
                reason = self._watch()
            except Exception as error:  # without the stops it must not go on
                reason = f"stops cannot be looked for: {error!r}"
            if reason is None and time.monotonic() - self._last > self._patience:
                reason = f"no command for {self._patience:g} s: the loop hangs"
            if reason is not None:
                self.shut(reason)


def _numbers(values: object) -> Array:
    """Return numbers as float64; raise one of `NOT_NUMBERS` at what numpy would make numbers of."""
    entries = values.tolist() if isinstance(values, np.ndarray) else values
    if isinstance(entries, list | tuple) and any(isinstance(v, bool | np.bool_ | str | bytes) for v in entries):
        raise TypeError
    return np.asarray(values, np.float64)


def _finite(values: Array) -> Array:
    """Whether each number is finite where it will be: in a float32, in the network and on disk."""
    with np.errstate(over="ignore"):
        return np.isfinite(values.astype(np.float32))
