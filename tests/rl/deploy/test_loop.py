"""The times of commands, by a clock that only moves when somebody waits or works."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rl.deploy import loop
from rl.deploy.loop import LEAD, Pace

HZ = 1.0


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1e-4  # so that a busy loop ends
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    return clock


def times(clock: Clock, work: Sequence[float], sending: float = 0.0) -> np.ndarray:
    """Return when each command is sent, in periods from the first one.

    Args:
        clock: of the loop.
        work: periods from an observation to its command, for each.
        sending: periods that a robot takes to receive a command.
    """
    pace, sent = Pace(HZ, real_time=True), []
    for periods in work:
        clock.now += periods / HZ
        pace.wait_to_send()
        sent.append(clock.now)
        clock.now += sending / HZ
        pace.wait_to_observe()
    assert pace.periods == pytest.approx(np.diff(sent), abs=1e-3)
    return (np.array(sent) - sent[0]) * HZ


def test_late_commands_are_not_caught_up_in_a_burst(clock: Clock) -> None:
    """Twenty periods are too long, but within what the watchdog allows; after that the loop is free again."""
    sent = times(clock, [0, *[1.6] * 20, *[0] * 30])
    assert np.diff(sent)[1:20] == pytest.approx(1.6, abs=1e-3)
    assert np.diff(sent)[20:].min() > 1 - LEAD - 1e-3
    assert sent[-1] - sent[20] > 29  # not even one of the twelve commands that were missing
    assert np.diff(sent)[-10:] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("most", [LEAD, 0.5, 0.9])
def test_jitter_does_not_lower_the_mean_rate(most: float, clock: Clock) -> None:
    sent = times(clock, [0, *(most * np.random.default_rng(0).random(400)), 0])
    assert sent[-1] == pytest.approx(401, abs=most)
    assert np.diff(sent).min() > 1 - LEAD - 1e-3


@pytest.mark.parametrize(("work", "sending"), [(0.0, 0.0), (0.6, 0.0), (0.0, 0.6), (0.4, 0.4)])
def test_a_slow_robot_keeps_the_rate(work: float, sending: float, clock: Clock) -> None:
    sent = times(clock, [work] * 100, sending)
    assert np.diff(sent)[2:] == pytest.approx(1.0, abs=1e-3)
