"""Nothing beyond its limits reaches a robot, whatever policy and sensors say; and a stop wins."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rewards.errors import UserError
from rl.deploy import safety
from rl.deploy.safety import Box, Gate, Guard, Limits
from rl.robots.errors import Stop

SLICES = {"hand": slice(0, 2), "rest": slice(2, 3)}
BOX = {"hand": Box(low=(-0.1, -0.1), high=(0.1, 0.2), actions=(0, 1), per_action=0.01)}
LIMITS = Limits(
    low=(-1.0, -1.0, 0.0), high=(1.0, 0.5, 2.0), max_change=(0.25, 0.25, 2.0), still=(0.0, 0.0, 0.0), boxes=BOX
)
WILD = st.floats(allow_nan=True, allow_infinity=True, width=64)
ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.text(max_size=3), st.complex_numbers(), st.just([[1.0], [2.0, 3.0]])
)


def arrays(size: int) -> st.SearchStrategy[Any]:
    sizes = st.sampled_from([size] * 6 + [0, size - 1, size + 1])
    return st.one_of(*[hnp.arrays(np.float64, sizes, elements=WILD)] * 5, ODD)


@settings(deadline=None, max_examples=500)
@given(st.lists(st.tuples(arrays(3), arrays(3), WILD), min_size=20, max_size=20))
def test_hostile_actions_and_observations(steps: list[tuple[Any, Any, float]]) -> None:
    """500 runs of 20 commands: 10,000 of them, most of which mean nothing."""
    guard = Guard(LIMITS, action_dim=3, state_dim=3, slices=SLICES)
    last, stamp = np.zeros(3), -np.inf
    for frame, action, when in steps:
        try:
            seen = guard.observe(frame, when, now=0.0)
            assert seen.shape == (3,) and np.isfinite(seen).all() and stamp <= when and abs(when) <= LIMITS.max_age_s
            stamp = when
            command = guard.command(action, seen)
        except Stop:
            continue  # a real run ends here; what comes after must not get through either
        assert np.isfinite(command).all()
        assert (command >= LIMITS.low).all() and (command <= LIMITS.high).all()
        assert (np.abs(command - last) <= np.array(LIMITS.max_change) + 1e-12).all()
        moved = seen[:2] + 0.01 * command[:2]
        inside = (moved >= np.array(BOX["hand"].low) - 1e-9) & (moved <= np.array(BOX["hand"].high) + 1e-9)
        assert inside.all()
        last = command


@settings(deadline=None, max_examples=200)
@given(hnp.arrays(np.float64, 3, elements=st.floats(-5, 5)), hnp.arrays(np.float64, 3, elements=st.floats(-0.1, 0.1)))
@example(np.array([0.2, 0.2, 1.0]), np.zeros(3))
def test_an_action_within_its_limits_passes_as_it_is(action: np.ndarray, frame: np.ndarray) -> None:
    guard = Guard(LIMITS, 3, 3, SLICES)
    command = guard.command(action, frame)
    low = np.maximum([-0.25, -0.25, 0.0], [*((np.array(BOX["hand"].low) - frame[:2]) / 0.01), 0.0])
    high = np.minimum([0.25, 0.25, 2.0], [*((np.array(BOX["hand"].high) - frame[:2]) / 0.01), 2.0])
    assert command == pytest.approx(np.clip(action, low, high))


def test_outside_its_box_it_may_only_come_back() -> None:
    guard = Guard(LIMITS, 3, 3, SLICES)
    outside = np.array([0.1 + 0.001, 0.0, 0.0])
    assert guard.command([1.0, 0.0, 0.0], outside)[0] == pytest.approx(-0.1)
    with pytest.raises(Stop, match="no command for action 0 keeps all limits"):
        guard.command([0.0, 0.0, 0.0], np.array([0.5, 0.0, 0.0]))


def test_an_action_that_moves_two_entries_keeps_the_box_of_each() -> None:
    fingers = Box(low=(0.0, 0.0), high=(0.04, 0.04), actions=(0, 0), per_action=0.01)
    limits = Limits(low=(-1.0,), high=(1.0,), max_change=(5.0,), still=(0.0,), boxes={"hand": fingers})
    guard = Guard(limits, 1, 3, SLICES)
    for left, right in ((0.04, 0.02), (0.02, 0.04)):
        assert guard.command([1.0], np.array([left, right, 0.0])) == pytest.approx([0.0])
    for left, right in ((0.0, 0.02), (0.02, 0.0)):
        assert guard.command([-1.0], np.array([left, right, 0.0])) == pytest.approx([0.0])


@pytest.mark.parametrize("stamp", [0.2, 1e9, float("inf"), float("nan"), -0.2])
def test_an_observation_is_of_now(stamp: float) -> None:
    with pytest.raises(Stop, match=f"the observation is {-stamp:.3f} s old, at most 0.1 s is allowed"):
        Guard(LIMITS, 3, 3, SLICES).observe(np.zeros(3), stamp, now=0.0)


def test_positions_start_from_where_the_robot_is() -> None:
    limits = Limits(low=(-1.0, -1.0), high=(1.0, 1.0), max_change=(0.1, 0.1), start="hand")
    guard = Guard(limits, 2, 3, SLICES)
    frame = np.array([0.5, -0.5, 0.0])
    assert guard.still is None and guard.hold(frame) == pytest.approx([0.5, -0.5])
    assert guard.command([0.0, 0.0], frame) == pytest.approx([0.4, -0.4])  # a ramp, not a jump
    assert guard.still is None and guard.hold(frame) == pytest.approx([0.4, -0.4])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, r"limits.low=\[\]: expected 3 finite numbers.*no start without limits"),
        ({"low": (0.0, float("nan"), 0.0)}, r"limits.low=\[0.0, nan, 0.0\]"),
        ({"max_change": (0.0, 1.0, 1.0)}, "max_change above 0"),
        ({"still": (5.0, 0.0, 0.0)}, "low <= still <= high"),
        ({"still": ()}, "limits.start='': where actions are positions"),
        ({"max_age_s": float("inf")}, "limits.max_age_s=inf"),
        ({"boxes": {"foot": BOX["hand"]}}, "limits.boxes.foot: expected a part of the state .hand, rest."),
        (
            {"boxes": {"hand": replace(BOX["hand"], actions=(0, -1))}},
            r"hand.actions=\[0, -1\]: expected 0 to 2",
        ),
        ({"boxes": {"hand": replace(BOX["hand"], actions=(0, 3))}}, r"actions=\[0, 3\]: expected 0 to 2"),
        ({"boxes": {"hand": replace(BOX["hand"], low=(0.2, 0.0))}}, "limits.boxes.hand: expected low <= high"),
        (
            {"boxes": {"hand": replace(BOX["hand"], high=(0.2, float("nan")))}},
            "limits.boxes.hand: expected low <= high",
        ),
    ],
)
def test_there_is_no_start_without_limits(changes: dict[str, Any], line: str) -> None:
    fields = {**vars(LIMITS), **changes} if changes else {}
    with pytest.raises(UserError, match=line):
        Guard(Limits(**fields), 3, 3, SLICES)


class Door:
    """What a gate sends to."""

    def __init__(self, hang_s: float = 0.0) -> None:
        self.sent: list[list[float]] = []
        self.hang_s = hang_s

    def __call__(self, command: np.ndarray) -> None:
        time.sleep(self.hang_s)
        self.sent.append(command.tolist())


def test_after_a_stop_nothing_passes() -> None:
    door = Door()
    with Gate(door, np.zeros(1), patience_s=5.0) as gate:
        gate.send(np.ones(1))
        gate.shut("a key")
        gate.shut("another reason")
        with pytest.raises(Stop, match="a key"):
            gate.send(np.ones(1))
    assert door.sent == [[1.0], [0.0]] and gate.reason == "a key"


def test_a_stop_slows_a_robot_in_speeds_down_within_its_limits() -> None:
    door = Door()
    with Gate(door, np.zeros(2), patience_s=5.0, max_change=np.array([0.25, 0.5])) as gate:
        gate.send(np.array([1.0, -0.75]))
        gate.shut("a key")
    assert door.sent == [[1.0, -0.75], [0.75, -0.25], [0.5, 0.0], [0.25, 0.0], [0.0, 0.0]]


def test_a_robot_slows_down_at_the_rate_of_its_commands() -> None:
    times: list[float] = []
    with Gate(
        lambda c: times.append(time.monotonic()), np.zeros(1), patience_s=5.0, max_change=0.25, period_s=0.05
    ) as gate:
        gate.send(np.ones(1))
        gate.shut("a key")
    assert len(times) == 5 and min(np.diff(times[1:])) >= 0.05


def test_the_watchdog_has_slowed_the_robot_down_before_the_gate_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety, "GRACE_S", 0.5)
    door = Door()
    with Gate(door, np.zeros(1), patience_s=0.05, max_change=0.125, period_s=0.15) as gate:
        gate.send(np.ones(1))
        while gate.reason is None:
            time.sleep(0.001)
    assert door.sent == [[1 - i / 8] for i in range(9)]


def test_a_robot_that_fails_in_a_command_slows_down_from_it_and_from_the_one_before() -> None:
    sent: list[float] = []

    def door(command: np.ndarray) -> None:
        sent.append(float(command[0]))
        if len(sent) in (2, 3):  # it may have taken them, or not
            raise ConnectionError("no answer")

    with pytest.raises(ConnectionError), Gate(door, np.zeros(1), patience_s=5.0, max_change=0.25) as gate:
        gate.send(np.array([0.5]))
        gate.send(np.array([0.75]))
    assert sent == [0.5, 0.75, 0.5, 0.5, 0.25, 0.0]  # each is near every one that may be the last it took


def test_a_stop_wins_over_commands_from_many_threads() -> None:
    door = Door()
    with Gate(door, np.zeros(1), patience_s=5.0) as gate:

        def flood() -> None:
            with pytest.raises(Stop):
                while True:
                    gate.send(np.ones(1))

        threads = [threading.Thread(target=flood) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        gate.shut("a signal")
        at_stop = len(door.sent)
        for thread in threads:
            thread.join()
    assert len(door.sent) == at_stop and door.sent[-1] == [0.0]


def test_an_exception_shuts_the_gate() -> None:
    door = Door()
    with pytest.raises(ZeroDivisionError), Gate(door, np.zeros(1), patience_s=5.0) as gate:
        gate.send(np.ones(1))
        raise ZeroDivisionError("a bug")
    assert door.sent == [[1.0], [0.0]] and gate.reason == "a bug"


def test_the_watchdog_stops_a_loop_that_hangs() -> None:
    door = Door()
    with Gate(door, np.zeros(1), patience_s=0.5) as gate:
        gate.send(np.ones(1))
        time.sleep(1.5)
        assert door.sent == [[1.0], [0.0]]
        with pytest.raises(Stop, match="the loop hangs"):
            gate.send(np.ones(1))


def test_a_stop_goes_past_a_robot_that_hangs_in_a_command() -> None:
    door = Door(hang_s=2.0)
    gate = Gate(door, np.zeros(1), patience_s=0.05)

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(gate.send, np.ones(1))
        time.sleep(0.02)
        door.hang_s = 0.0
        gate.shut("the watchdog")
        assert door.sent == [[0.0]]  # the command that hangs has not come through yet
        with pytest.raises(Stop, match="the watchdog"):
            sending.result()
    assert door.sent == [[0.0], [1.0], [0.0]]  # and when it has, it is not the last


def test_a_command_that_hangs_and_fails_is_not_the_last_either() -> None:
    sent: list[float] = []
    hangs, go_on = threading.Event(), threading.Event()

    def door(command: np.ndarray) -> None:
        if command[0] == 1.0:
            hangs.set()
            go_on.wait(30)
        sent.append(float(command[0]))
        if command[0] == 1.0:
            raise ConnectionError("no answer")

    gate = Gate(door, np.zeros(1), patience_s=0.05)

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(gate.send, np.ones(1))
        hangs.wait(30)
        gate.shut("the watchdog")
        assert sent == [0.0]
        go_on.set()
        with pytest.raises(ConnectionError, match="no answer"):
            sending.result()
    assert sent == [0.0, 1.0, 0.0]


def test_a_stop_that_waits_for_a_command_stands_still_once() -> None:
    sent: list[float] = []
    hangs = threading.Event()

    def door(command: np.ndarray) -> None:
        if command[0] == 1.0:
            hangs.set()
            while gate.reason is None:  # until the other has asked for the stop
                time.sleep(0.001)
        sent.append(float(command[0]))

    gate = Gate(door, np.zeros(1), patience_s=30.0)
    stopper = threading.Thread(target=lambda: (hangs.wait(30), gate.shut("the stop file")))
    stopper.start()
    with pytest.raises(Stop, match="the stop file"):
        gate.send(np.ones(1))
    stopper.join()
    assert sent == [1.0, 0.0]


def test_where_actions_are_positions_a_stop_is_no_motion() -> None:
    door, reasons = Door(), [None, "the stop file"]
    with Gate(door, None, patience_s=50.0, watch=lambda: reasons.pop(0)) as gate:
        gate.send(np.array([0.4]))
        with pytest.raises(Stop, match="the stop file"):
            gate.send(np.array([0.9]))
    assert door.sent == [[0.4], [0.4]]
    with Gate(door, None, patience_s=50.0, watch=lambda: "the stop file") as gate, pytest.raises(Stop):
        gate.send(np.array([0.5]))
    assert door.sent == [[0.4], [0.4]]  # the robot stands still by itself


def test_it_stands_still_where_it_was_sent_whatever_it_says_that_it_took() -> None:
    sent: list[float] = []
    with Gate(lambda c: (sent.append(float(c[0])), c.clip(max=0.5))[1], None, patience_s=5.0) as gate:
        assert gate.send(np.array([0.75])) == pytest.approx([0.5])
    assert sent == [0.75, 0.75]


def test_a_stop_that_is_asked_for_is_heard_before_the_first_command() -> None:
    door = Door()
    with Gate(door, np.zeros(1), patience_s=5.0, watch=lambda: "the stop file") as gate, pytest.raises(Stop):
        gate.send(np.ones(1))
    assert door.sent == [[0.0]] and gate.reason == "the stop file"
