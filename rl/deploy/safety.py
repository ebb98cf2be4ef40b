"""What may reach a robot: every command within its limits, nothing at all from a bad observation, and a stop that wins.

Everything fails closed: without limits there is no start, a number that is none stops the run, and after a stop no
command passes any more, whatever the rest of the program does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from rewards.errors import UserError

Array = np.ndarray


class Stop(Exception):
    """The robot is to stand still; the message says why."""


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
            if len(values) != action_dim or not np.isfinite(values).all():
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

    def observe(self, frame: object, stamp: float, now: float) -> Array:
        """Return the frame (state_dim,) if it may be acted on; `stamp` and `now` are seconds of one clock.

        Raises:
            Stop: it is not finite, of another size, stale, of the future, or older than the one before it.
        """
        try:
            values = np.asarray(frame, np.float64)
        except (TypeError, ValueError):
            raise Stop(f"the observation is no list of numbers: {repr(frame)[:60]}") from None
        if values.shape != (self.state_dim,):
            raise Stop(f"the observation has shape {values.shape}, expected {(self.state_dim,)}")
        if not np.isfinite(values).all():
            raise Stop(f"entry {int(np.flatnonzero(~np.isfinite(values))[0])} of the observation is not finite")
        age, most = now - stamp, self.limits.max_age_s
        if not abs(age) <= most:  # also where the stamp is no number
            raise Stop(f"the observation is {age:.3f} s old, at most {most:g} s is allowed, before now or after")
        if stamp < self.stamp:
            raise Stop(f"the observation is {self.stamp - stamp:.3f} s older than the one before it")
        self.stamp = stamp
        return values

    def command(self, action: object, frame: Array) -> Array:
        """Return the command (action_dim,) that is nearest to `action` among those that keep every limit.

        Raises:
            Refused: the action is not finite or of another size.
            NoRoom: no command keeps all limits.
        """
        try:
            wanted = np.asarray(action, np.float64)
        except (TypeError, ValueError):
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


class Gate:
    """The one door to a robot. Once it is shut, the command to stand still has passed, and nothing passes any more.

    A command that hangs in the robot meanwhile may come through later; then the one to stand still follows it.

    Args:
        send: hands a command to the robot; returns what it really took, None: all of it.
        still: the command that is sent when the gate is shut; None: the last one that was handed over, if any.
        patience_s: without a command for so long the watchdog shuts it.
        watch: asked by the watchdog for stops that nobody waits for, such as a file; returns a reason or None.
    """

    def __init__(
        self,
        send: Callable[[Array], Array | None],
        still: Array | None,
        patience_s: float,
        watch: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._send, self._still, self._patience, self._watch = send, still, patience_s, watch
        self._sending, self._shutting, self._over = threading.Lock(), threading.Lock(), threading.Event()
        self._last = time.monotonic()
        self._handed: Array | None = None  # the last command that the robot took
        self._passed = False  # the command to stand still went past one that hangs
        self.reason: str | None = None  # why it is shut
        self._watchdog = threading.Thread(target=self._guard, daemon=True)

    def __enter__(self) -> Gate:
        self._last = time.monotonic()
        self._watchdog.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self.shut("the end" if kind is None else str(error) or kind.__name__)
        self._over.set()
        self._watchdog.join()

    def send(self, command: Array) -> Array:
        """Send a command; return what the robot really took.

        Raises:
            Stop: the gate is shut.
        """
        if (reason := self._watch()) is not None:
            self.shut(reason)
        with self._sending:
            if self.reason is not None:
                raise Stop(self.reason)
            try:
                taken = self._send(command)
                self._last, self._handed = time.monotonic(), command if taken is None else taken
            finally:
                if self._passed:  # it hung, and the command to stand still went past it
                    self._stand_still()
            if self.reason is not None:
                raise Stop(self.reason)
            return self._handed

    def shut(self, reason: str) -> None:
        """Make the robot stand still and let nothing pass from here on; the first reason stays."""
        if not self._shutting.acquire(blocking=False):
            return  # shut already, for ever
        self.reason = reason  # at once, for a `send` that waits
        # A robot that hangs in `send` keeps the lock; then the command goes past it.
        waited = self._sending.acquire(timeout=self._patience)
        self._passed = not waited
        try:
            self._stand_still()
        finally:
            if waited:
                self._sending.release()

    def _stand_still(self) -> None:
        try:
            still = self._handed if self._still is None else self._still
            if still is not None:
                self._send(still)
        except Exception as error:  # nothing more can be done than to say so
            self.reason = f"{self.reason}; the robot did not take the command to stand still: {error!r}"

    def _guard(self) -> None:
        while not self._over.wait(self._patience / 8):
            if (reason := self._watch()) is not None:
                self.shut(reason)
            elif time.monotonic() - self._last > self._patience:
                self.shut(f"no command for {self._patience:g} s: the loop hangs")
