"""Rerun: what a session shows, that a slow viewer never delays it, and that its absence is one line."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rewards.errors import UserError
from rl.deploy import session
from rl.deploy.robot_config import RobotConfig
from rl.deploy.safety import Limits
from rl.deploy.session import run_session
from rl.deploy.viewer import WAITING, Viewer
from rl.policies.wam import ModelPilot
from rl.robots.fake import FakeRobot
from world_model.wam.model import WorldActionModel


class Stream:
    """Stands for rerun.RecordingStream."""

    def __init__(self, name: str) -> None:
        self.logged: list[tuple[int, str, Any]] = []
        self.where, self.step, self.flushed = "", -1, False
        self.free = threading.Event()
        self.free.set()
        STREAMS.append(self)

    def save(self, where: str) -> None:
        self.where = where

    def spawn(self) -> None:
        self.where = "spawned"

    def connect_grpc(self, where: str) -> None:
        self.where = where

    def set_time(self, name: str, sequence: int) -> None:
        self.step = sequence

    def log(self, name: str, value: Any) -> None:
        assert self.free.wait(20)
        self.logged.append((self.step, name, value))

    def flush(self) -> None:
        self.flushed = True


STREAMS: list[Stream] = []


@pytest.fixture(autouse=True)
def rerun(monkeypatch: pytest.MonkeyPatch) -> None:
    STREAMS.clear()
    fake = SimpleNamespace(RecordingStream=Stream, Image=lambda image: image, Scalars=lambda value: value)
    monkeypatch.setitem(sys.modules, "rerun", fake)


def test_a_session_shows_images_state_and_commands(
    seeing: WorldActionModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    robot = FakeRobot(seeing.spec)
    robot.real_time = False  # type: ignore[attr-defined]
    monkeypatch.setattr(session, "make_robot", lambda name, params, task: robot)
    monkeypatch.setattr("rl.deploy.viewer.WAITING", 1000)
    limits = Limits(low=(-1.0,) * 4, high=(1.0,) * 4, max_change=(2.0,) * 4, still=(0.0,) * 4, max_age_s=60.0)
    config = RobotConfig(robot="fake", task="push", max_steps=6, limits=limits, rerun="logs/one.rrd")
    (lived,) = run_session(ModelPilot(seeing, 2), config, say=lambda line: None)
    (stream,) = STREAMS
    assert stream.where == "logs/one.rrd" and stream.flushed and Path("logs").is_dir()
    images = [value for _, name, value in stream.logged if name == "cameras/images.front"]
    assert [image.shape for image in images] == [(32, 32, 3)] * 7
    commands = [value for _, name, value in stream.logged if name == "action/action.2"]
    assert commands == pytest.approx([float(sent[2]) for sent in lived.sent])
    assert {step for step, _, _ in stream.logged} == {*range(1, 8)}


def test_a_slow_viewer_misses_steps_and_delays_nothing() -> None:
    viewer = Viewer("spawn", ["a"], ["b"])
    (stream,) = STREAMS
    stream.free.clear()
    for i in range(50):
        viewer.show({}, np.array([float(i)]), np.array([np.nan]))
    assert viewer.n_left_out >= 50 - WAITING - 1
    stream.free.set()
    viewer.close()
    assert stream.where == "spawned" and 0 < len(stream.logged) <= WAITING + 1
    assert {name for _, name, _ in stream.logged} == {"state/a"}  # no command yet


def test_a_viewer_that_fails_does_not_hold_up_the_end_of_a_session(capsys: pytest.CaptureFixture[str]) -> None:
    viewer = Viewer("spawn", ["a"], ["b"])
    (stream,) = STREAMS
    stream.log = lambda name, value: stream.nothing  # type: ignore[attr-defined,method-assign] # raises AttributeError
    for i in range(2 * WAITING + 2):
        viewer.show({}, np.array([float(i)]), np.array([0.0]))
    closing = threading.Thread(target=viewer.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive() and stream.flushed
    assert "rerun: AttributeError: " in capsys.readouterr().out


def test_a_viewer_that_hangs_does_not_keep_the_robot_connected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rl.deploy.viewer.CLOSE_S", 0.3)
    viewer = Viewer("spawn", ["a"], ["b"])
    (stream,) = STREAMS
    stream.free.clear()
    for i in range(2 * WAITING):
        viewer.show({}, np.array([float(i)]), np.array([0.0]))
    viewer.close()
    assert not stream.flushed
    assert capsys.readouterr().out == "rerun: still busy after 0.3 s; the last steps are not shown\n"
    stream.free.set()


def test_without_the_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(UserError, match=r"rerun needs rerun-sdk; install it with pip install .*rerun"):
        Viewer("spawn", [], [])
    with pytest.raises(UserError, match=r"rerun=here: expected spawn, a file NAME\.rrd, or the url of a viewer"):
        RobotConfig(robot="fake", rerun="here").check()
