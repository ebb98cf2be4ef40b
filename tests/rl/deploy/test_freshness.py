"""Images that are too old: what counts as old, and that no command follows from one."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.errors import UserError
from rl.deploy import loop, session
from rl.deploy.freshness import Freshness
from rl.deploy.robot_config import RobotConfig
from rl.deploy.safety import Limits
from rl.deploy.session import run_session
from rl.policies.wam import ModelPilot
from rl.robots.errors import Stop
from rl.robots.fake import FakeRobot
from world_model.wam.model import WorldActionModel

LIMITS = Limits(low=(-1.0,) * 4, high=(1.0,) * 4, max_change=(2.0,) * 4, still=(0.0,) * 4, max_age_s=60.0)
CAMERAS = {"images.front": "top", "images.wrist": "wrist"}


def seen(top_level: int, wrist_level: int, **times: Any) -> dict[str, Any]:
    """Return an observation with images of one level each, and the times of some."""
    images = {"top": np.full((2, 2, 3), top_level, np.uint8), "wrist": np.full((2, 2, 3), wrist_level, np.uint8)}
    return {**images, "timestamps": times} if times else images


def test_an_image_is_as_old_as_its_time_says() -> None:
    freshness = Freshness(replace(LIMITS, max_image_age_s=0.3, image_ages_s={"wrist": 1.0}, max_frozen_s=0.0), CAMERAS)
    assert freshness.complaint(seen(0, 0, top=10.0, wrist=10.0), now=10.25) == ""
    found = freshness.complaint(seen(0, 0, top=10.0, wrist=10.0), now=10.5)
    assert found == "images.front is 0.50 s old, at most 0.3 s is allowed"
    assert freshness.complaint(seen(0, 0, top=10.4, wrist=10.0), now=10.5) == ""
    found = freshness.complaint(seen(0, 0, top=11.4, wrist=10.0), now=11.5)
    assert found == "images.wrist is 1.50 s old, at most 1 s is allowed"


def test_without_a_time_an_image_is_as_old_as_its_last_change() -> None:
    freshness = Freshness(replace(LIMITS, max_image_age_s=0.3, max_frozen_s=0.0), CAMERAS)
    assert freshness.complaint(seen(0, 0), now=5.0) == ""
    assert freshness.complaint(seen(1, 0), now=5.2) == ""
    found = freshness.complaint(seen(1, 0), now=5.4)
    assert found == "images.wrist has not changed for 0.40 s, at most 0.3 s is allowed"
    assert freshness.complaint(seen(2, 7), now=5.6) == ""
    freshness.begin()
    assert freshness.complaint(seen(2, 7), now=99.0) == ""  # another episode


def test_a_camera_that_repeats_its_image_with_new_times_is_frozen() -> None:
    freshness = Freshness(replace(LIMITS, max_frozen_s=1.0), CAMERAS)
    for t in range(11):
        assert freshness.complaint(seen(t, 0, top=t / 10, wrist=t / 10), now=t / 10) == ""
    found = freshness.complaint(seen(11, 0, top=1.1, wrist=1.1), now=1.1)
    assert found == "images.wrist is frozen: it has not changed for 1.10 s, see limits.max_frozen_s"
    assert freshness.complaint(seen(12, 1, top=1.2, wrist=1.2), now=1.2) == ""


@pytest.mark.parametrize(
    ("stamp", "reason"),
    [
        (math.nan, "the time of images.front is nan, expected seconds"),
        ("now", "the time of images.front is 'now', expected seconds"),
        (True, "the time of images.front is True, expected seconds"),
        ([1.0, 2.0], "the time of images.front is [1.0, 2.0], expected seconds"),
        (10**400, "the time of images.front is 1000"),
        (20.0, "images.front was taken 10.000 s in the future; correct the clock of the camera"),
        (9.5, "images.front is 0.400 s older than the image before it"),
    ],
)
def test_a_time_that_cannot_be_is_a_stop(stamp: Any, reason: str) -> None:
    freshness = Freshness(LIMITS, {"images.front": "top"})
    freshness.complaint(seen(0, 0, top=9.9), now=10.0)
    with pytest.raises(Stop) as stop:
        freshness.complaint(seen(1, 0, top=stamp), now=10.0)
    assert str(stop.value).startswith(reason)


def test_times_that_are_no_dict_are_a_stop() -> None:
    with pytest.raises(Stop, match=r"timestamps of the observation is \[1\], expected seconds by camera"):
        Freshness(LIMITS, CAMERAS).complaint(seen(0, 0) | {"timestamps": [1]}, now=1.0)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"max_image_age_s": 0.0}, "limits.max_image_age_s=0.0: expected a finite number above 0"),
        ({"image_ages_s": {"front": math.nan}}, "limits.image_ages_s.front=nan: expected a finite number above 0"),
        ({"max_frozen_s": math.inf}, "limits.max_frozen_s=inf: expected a finite number of at least 0"),
    ],
)
def test_limits_that_never_stop_are_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        replace(LIMITS, **changes).check_fits(4, {})
    assert str(error.value) == line


AGE = 0.2
"""Largest age of an image in the sessions below, in seconds."""


class Stuck(FakeRobot):
    """A robot whose camera repeats its image from the fourth observation on, for some seconds.

    It notes of each observation whether the image was too old, and of each command whether it is zero.
    """

    def __init__(self, model: WorldActionModel, seconds: float) -> None:
        super().__init__(model.spec)
        self.seconds, self.stuck_at, self.image = seconds, math.inf, np.zeros(0)
        self.is_new, self.since = True, math.inf
        self.was_old: list[bool] = []
        self.was_still: list[bool] = []

    def get_observation(self) -> dict[str, Any]:
        """See `FakeRobot`."""
        found, now = super().get_observation(), time.monotonic()
        if self.n_observations <= 3:
            self.stuck_at = now
        self.is_new = self.n_observations <= 3 or now - self.stuck_at > self.seconds
        if self.is_new:
            self.image = found["front"]
        else:
            found["front"] = self.image
        return found

    def note(self, now: float) -> None:
        """Note how old the image is at the time at which the loop judges it: its clock is read later than ours."""
        if self.is_new:
            self.since = now
        self.was_old.append(now - self.since > AGE)

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """See `FakeRobot`."""
        self.was_still.append(not any(action.values()))
        return super().send_action(action)


Run = Callable[..., tuple[Stuck, loop.Lived, list[str]]]


@pytest.fixture
def run(seeing: WorldActionModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return a function that runs one episode of a policy whose actions are never zero."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "PERIODS", 1000)  # the machine may be busy
    act = ModelPilot.act
    monkeypatch.setattr(ModelPilot, "act", lambda *given: act(*given).abs() + 0.1)

    def run(seconds: float, max_late: int, max_steps: int) -> tuple[Stuck, loop.Lived, list[str]]:
        robot, said, complaint = Stuck(seeing, seconds), list[str](), Freshness.complaint

        def noted(freshness: Freshness, observation: dict[str, Any], now: float) -> str:
            robot.note(now)
            return complaint(freshness, observation, now)

        monkeypatch.setattr(Freshness, "complaint", noted)
        monkeypatch.setattr(session, "make_robot", lambda name, params, task: robot)
        limits = replace(LIMITS, max_image_age_s=AGE)
        fields = {"task": "push", "hz": 50.0, "max_steps": max_steps, "max_late": max_late, "limits": limits}
        (lived,) = run_session(ModelPilot(seeing, 2), RobotConfig(robot="fake", **fields), say=said.append)
        return robot, lived, said

    return run


def test_the_robot_holds_and_then_stops_with_one_line(run: Run) -> None:
    robot, lived, said = run(seconds=1000.0, max_late=3, max_steps=1000)
    assert lived.stopped and not lived.failed and lived.old_image
    reason = (
        r"there was no plan for 4 commands in a row; "
        r"images\.front has not changed for \d+\.\d\d s, at most 0\.2 s is allowed"
    )
    assert re.fullmatch(reason, lived.reason)
    assert sum(robot.was_old) >= 3 and not all(robot.was_still[:4])
    # Command i follows from observation i. The last command stands still, as at every stop.
    assert all(still for still, old in zip(robot.was_still, robot.was_old, strict=False) if old)
    assert robot.was_still[-1] and len(said) == 1 and not list(Path("runs").rglob("*.safetensors"))


def test_an_episode_goes_on_with_a_new_plan_once_images_are_new_again(run: Run) -> None:
    robot, lived, said = run(seconds=0.6, max_late=1000, max_steps=150)
    assert lived.ended and lived.n_late >= 1 and sum(robot.was_old) >= 1
    assert all(still for still, old in zip(robot.was_still, robot.was_old, strict=False) if old)
    after = len(robot.was_old) - robot.was_old[::-1].index(True)  # the first observation with a new image again
    assert not all(robot.was_still[after:-1])  # it moves again
    assert said[0].startswith("episode 1: 150 commands, 150 steps, ") and "; images.front has not changed" in said[0]


def test_an_old_first_image_sends_nothing(
    seeing: WorldActionModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    robot = FakeRobot(seeing.spec)
    robot.misbehave = lambda found: {**found, "timestamps": {"front": found["timestamp"] - 40.0}}
    monkeypatch.setattr(session, "make_robot", lambda name, params, task: robot)
    config = RobotConfig(robot="fake", task="push", limits=replace(LIMITS, max_image_age_s=30.0))
    (lived,) = run_session(ModelPilot(seeing, 2), config, say=lambda line: None)
    assert lived.stopped and lived.reason.startswith("images.front is 40.0") and not lived.sent
    assert not any(any(action.values()) for action in robot.sent)


def test_a_robot_that_waits_for_commands_has_no_old_images(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stuck, "real_time", False, raising=False)
    _, lived, _ = run(seconds=1000.0, max_late=0, max_steps=20)
    assert lived.reason == "20 steps" and lived.old_image == ""
