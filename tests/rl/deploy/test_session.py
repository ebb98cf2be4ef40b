"""A policy on a robot that is none: what is sent, what is recorded, and what makes it stop."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewards.errors import UserError
from rl import cli
from rl.deploy import loop, session
from rl.deploy.robot_config import RobotConfig
from rl.deploy.safety import Box, Limits
from rl.deploy.session import run_session
from rl.deploy.stops import Stops
from rl.policies.wam import ModelPilot
from rl.robots.api import Interface, RobotMap, differences, make_robot
from rl.robots.fake import FakeRobot
from world_model.data.episodes import Episode, EpisodeStore
from world_model.spec import Feature, Spec
from world_model.wam.model import WorldActionModel

LIMITS = Limits(low=(-1.0,) * 2, high=(1.0,) * 2, max_change=(0.5,) * 2, still=(0.0,) * 2, max_age_s=4.0)
HZ = 100.0
PATIENT = 1000
"""Periods, or late commands: a busy machine is no reason to stop, where that is not what is tested."""


@pytest.fixture
def robot(trained: WorldActionModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRobot:
    monkeypatch.chdir(tmp_path)
    robot = FakeRobot(trained.spec)
    monkeypatch.setattr(loop, "PERIODS", PATIENT)
    monkeypatch.setattr(session, "make_robot", lambda name, params, task: robot)
    return robot


def config(**changes: Any) -> RobotConfig:
    fields = {"robot": "fake", "task": "reach", "hz": HZ, "max_steps": 12, "n_action_steps": 2, "limits": LIMITS}
    return RobotConfig(**{**fields, "max_late": PATIENT, **changes})


def test_what_was_sent_is_what_is_recorded(trained: WorldActionModel, robot: FakeRobot) -> None:
    lived = run_session(ModelPilot(trained, 2), config(n_episodes=2), say=lambda line: None)
    assert [(len(one.sent), one.reason, one.stopped) for one in lived] == [(12, "12 steps", False)] * 2
    episodes = EpisodeStore("runs/robot/fake").load()
    assert [(e.length, e.task, e.source) for e in episodes] == [(12, "reach", "robot, success by robot")] * 2
    sent = np.array([[*action.values()] for action in robot.sent])
    assert len(sent) == 2 * 13 and (sent[[12, 25]] == 0).all()  # each episode ends standing still
    for episode, commands in zip(episodes, (sent[:12], sent[13:25]), strict=True):
        assert episode.action.numpy() == pytest.approx(commands, abs=1e-6)
        moved = np.diff(episode.state.numpy(), axis=0)
        assert moved[:, :2] == pytest.approx(0.01 * commands, abs=1e-6)
    assert not robot.is_connected


@pytest.mark.parametrize("refuses", [False, True])
def test_a_robot_that_is_connected_halfway_is_disconnected(
    trained: WorldActionModel, robot: FakeRobot, monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    """Motors may hold a robot, and then its camera is missing."""
    calls: list[str] = []

    def connect() -> None:
        calls.append("connect")
        raise ConnectionError("no camera at /dev/video0")

    def disconnect() -> None:
        calls.append("disconnect")
        if refuses:
            raise RuntimeError("not connected")

    monkeypatch.setattr(robot, "connect", connect)
    monkeypatch.setattr(robot, "disconnect", disconnect)
    with pytest.raises(ConnectionError, match="no camera at /dev/video0"):
        run_session(ModelPilot(trained, 2), config(), say=lambda line: None)
    assert calls == ["connect", "disconnect"] and not robot.sent


def test_the_rate_of_the_session_is_recorded(trained: WorldActionModel, robot: FakeRobot) -> None:
    robot.real_time = False  # type: ignore[attr-defined]
    for hz, folder, recorded_hz in ((25.0, "other", 25.0), (0.0, "own", trained.spec.control_hz)):
        run_session(ModelPilot(trained, 2), config(hz=hz, episodes=folder), say=lambda line: None)
        assert EpisodeStore(folder).spec.control_hz == recorded_hz
    with pytest.raises(UserError, match=r"other features, bounds or rate than the checkpoint's: control_hz 25.0, not"):
        EpisodeStore("other").check_fits(trained.spec, "here")  # as the dream does before it learns
    with pytest.raises(UserError, match=r"other: its episodes have other features, .*; choose another folder"):
        run_session(ModelPilot(trained, 2), config(hz=50.0, episodes="other"), say=lambda line: None)


def test_what_the_robot_clips_is_recorded_as_it_was_clipped(trained: WorldActionModel, robot: FakeRobot) -> None:
    send = robot.send_action
    robot.send_action = lambda a: send({n: min(max(v, -0.01), 0.01) for n, v in a.items()})  # type: ignore[method-assign]
    run_session(ModelPilot(trained, 2), config(), say=lambda line: None)
    (episode,) = EpisodeStore("runs/robot/fake").load()
    sent = np.array([[*action.values()] for action in robot.sent])[:12]
    assert np.abs(sent).max() == pytest.approx(0.01)  # some were
    assert episode.action.numpy() == pytest.approx(sent, abs=1e-6)


def test_who_says_that_a_task_is_solved(
    trained: WorldActionModel, robot: FakeRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    robot.misbehave = after(4, lambda o: {**o, "success": True})
    (lived,) = run_session(ModelPilot(trained, 2), config(), say=lambda line: None)
    assert lived.reason == "success" and lived.success == [False] * 3 + [True]
    (lived,) = run_session(ModelPilot(trained, 2), config(success="key"), say=lambda line: None)
    assert lived.reason == "12 steps" and not any(lived.success)
    answers = iter([0.1, 0.9, 0.1, 0.9, 0.9, 0.9])  # of the read-out, frame by frame: sure of two in a row comes fifth
    monkeypatch.setattr(trained, "success_and_progress", lambda frames, task: (torch.tensor([[next(answers)]]), None))
    (lived,) = run_session(ModelPilot(trained, 2), config(success="read_out"), say=lambda line: None)
    assert lived.reason == "success" and lived.success == [False] * 3 + [True]
    assert EpisodeStore("runs/robot/fake").load()[-1].source == "robot, success by read_out"


def test_keys_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read, write = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(read))
    stops = Stops(tmp_path / "STOP", keys=True)
    assert stops() is None and not stops.solved
    os.write(write, b"s\n")
    assert stops() is None and stops.solved
    os.write(write, b"q\n")
    assert stops() == "a key"
    os.close(write)


def test_a_key_that_was_typed_ahead_keeps_it_from_starting(
    trained: WorldActionModel, robot: FakeRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(read))
    os.write(write, b"\n")
    with pytest.raises(UserError, match="no start: a key; it was typed too early, start again"):
        run_session(ModelPilot(trained, 2), config(), say=lambda line: None, keys=True)
    os.close(write)
    assert robot.sent == []


def test_success_by_key_needs_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", open(os.devnull))
    line = "success=key: expected a terminal to type s in; run it in one, or choose robot or read_out"
    for action in (["run"], ["compare", "other"]):
        assert cli.main(["deploy", "metaworld-tuned", *action, "robot-ros"]) == 2
        assert capsys.readouterr().err == f"wamtune: {line}\n"


def test_a_dry_run_sends_nothing(trained: WorldActionModel, robot: FakeRobot) -> None:
    said: list[str] = []
    robot.reset = lambda scene: robot.sent.append({})  # type: ignore[attr-defined]
    run_session(ModelPilot(trained, 2), config(dry_run=True), say=said.append)
    assert robot.sent == [] and sum(line.startswith("would send [") for line in said) == 13
    assert not Path("runs").exists()


def recorded() -> list[Episode]:
    return EpisodeStore("runs/robot/fake").load()


def after(n: int, change: Any) -> Any:
    """Misbehave from the `n`-th observation on."""
    seen = []

    def misbehave(observation: dict[str, Any]) -> dict[str, Any]:
        seen.append(1)
        return change(observation) if len(seen) > n else observation

    return misbehave


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda o: {**o, "goal.1": float("nan")}, "entry 3 of the observation is not finite"),
        (lambda o: {**o, "goal.1": None}, "entry 3 of the observation is not finite"),
        (lambda o: {**o, "goal.1": "far"}, "the observation is no list of numbers"),
        (lambda o: {k: v for k, v in o.items() if k != "point.0"}, "entry 0 of the observation is not finite"),
        (lambda o: {**o, "timestamp": o["timestamp"] - 5}, "the observation is 5.0"),
        (lambda o: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_bad_observation_stops_the_robot(
    change: Any, reason: str, trained: WorldActionModel, robot: FakeRobot
) -> None:
    robot.misbehave = after(5, change)
    if reason == "ZeroDivisionError":
        with pytest.raises(ZeroDivisionError):
            run_session(ModelPilot(trained, 2), config(n_episodes=3), say=lambda line: None)
    else:
        (lived,) = run_session(ModelPilot(trained, 2), config(n_episodes=3), say=lambda line: None)
        assert lived.stopped and reason in lived.reason
    assert len(robot.sent) == 6 and [*robot.sent[-1].values()] == [0.0, 0.0]
    assert not robot.is_connected and not recorded()  # what was stopped says nothing about the policy


@pytest.mark.parametrize(
    ("at", "where", "failed"),
    [
        (5, 9.0, True),  # the policy left its box
        (0, 9.0, False),  # somebody put the robot there
        (5, None, False),  # a sensor broke
    ],
)
def test_a_stop_for_what_the_policy_did_is_told_apart(
    at: int, where: float | None, failed: bool, trained: WorldActionModel, robot: FakeRobot
) -> None:
    box = Box(low=(-1.0, -1.0), high=(1.0, 1.0), actions=(0, 1), per_action=0.01)
    robot.misbehave = after(at, lambda o: {**o, "point.1": where})
    limits = replace(LIMITS, boxes={"point": box})
    (lived,) = run_session(ModelPilot(trained, 2), config(limits=limits), say=lambda line: None)
    assert lived.stopped and lived.failed is failed
    assert lived.reason.startswith("no command for action 1" if where else "entry 1 of the observation")


def test_bad_numbers_of_a_policy_are_its_own_from_the_first_command_on(
    trained: WorldActionModel, robot: FakeRobot
) -> None:
    pilot = ModelPilot(trained, 2)
    act = pilot.act
    pilot.act = lambda *given: act(*given) * float("nan")  # type: ignore[method-assign]
    (lived,) = run_session(pilot, config(), say=lambda line: None)
    assert lived.stopped and lived.failed and not lived.sent and lived.reason.startswith("the action is array([nan")


def test_a_robot_that_says_nothing_of_what_it_took_took_it_all(trained: WorldActionModel, robot: FakeRobot) -> None:
    send = robot.send_action
    robot.send_action = lambda action: (send(action), None)[1]  # type: ignore[method-assign, return-value]
    (lived,) = run_session(ModelPilot(trained, 2), config(max_steps=3), say=lambda line: None)
    assert len(lived.sent) == 3 and not lived.stopped


def test_a_file_stops_it_and_keeps_it_from_starting(trained: WorldActionModel, robot: FakeRobot) -> None:
    timer = threading.Timer(0.3, Path("STOP").touch)
    timer.start()
    (lived,) = run_session(ModelPilot(trained, 2), config(max_steps=1000, n_episodes=3), say=lambda line: None)
    assert lived.reason == "the file STOP is there" and 0 < len(lived.sent) < 500
    assert [*robot.sent[-1].values()] == [0.0, 0.0]
    n = len(robot.sent)
    with pytest.raises(UserError, match="no start: the file STOP is there; delete it first"):
        run_session(ModelPilot(trained, 2), config(), say=lambda line: None)
    assert len(robot.sent) == n


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_stops_it(number: signal.Signals, trained: WorldActionModel, robot: FakeRobot) -> None:
    before = signal.signal(number, lambda *_: pytest.fail(f"nobody took {number.name}"))
    robot.misbehave = after(5, lambda o: (signal.raise_signal(number), o)[1])
    try:
        (lived,) = run_session(ModelPilot(trained, 2), config(n_episodes=3), say=lambda line: None)
    finally:
        signal.signal(number, before)
    assert lived.stopped and lived.reason == f"the signal {number.name}" and not recorded()
    assert [*robot.sent[-1].values()] == [0.0, 0.0]


def test_a_stop_between_two_episodes_begins_no_other(trained: WorldActionModel, robot: FakeRobot) -> None:
    made_ready: list[int] = []
    robot.reset = made_ready.append  # type: ignore[attr-defined]
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        Path("STOP").touch()

    first, second = run_session(ModelPilot(trained, 2), config(n_episodes=3), say)
    assert not first.stopped and second.stopped and second.reason == "the file STOP is there"
    assert made_ready == [0] and len(robot.sent) == 13 and said[1] == "episode 2: not begun, the file STOP is there"


def test_a_robot_that_does_not_stand_still_ends_the_session(trained: WorldActionModel, robot: FakeRobot) -> None:
    send = robot.send_action

    def refuse(action: dict[str, Any]) -> dict[str, Any]:
        if not any(action.values()):
            raise ValueError("no zeros")
        return send(action)

    robot.send_action = refuse  # type: ignore[method-assign]
    robot.real_time = False  # type: ignore[attr-defined]  # else a plan that is late is a command of zeros, too
    complaint = "the robot did not take the command to stand still: ValueError('no zeros')"
    (lived,) = run_session(ModelPilot(trained, 2), config(n_episodes=3), say=lambda line: None)
    assert lived.stopped and lived.reason == f"12 steps; {complaint}"
    assert len(recorded()) == 1  # it had ended by itself
    robot.misbehave = after(5, lambda o: {**o, "goal.1": None})
    (lived,) = run_session(ModelPilot(trained, 2), config(n_episodes=3), say=lambda line: None)
    assert lived.reason == f"entry 3 of the observation is not finite; {complaint}"


def test_a_slow_robot_is_stopped_by_the_watchdog(
    trained: WorldActionModel, robot: FakeRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PERIODS", 2)
    robot.misbehave = after(5, lambda o: (time.sleep(0.3), {**o, "timestamp": time.monotonic()})[1])
    (lived,) = run_session(ModelPilot(trained, 2), config(), say=lambda line: None)
    assert lived.reason == "no command for 0.02 s: the loop hangs" and [*robot.sent[-1].values()] == [0.0, 0.0]


def test_nobody_talks_to_a_robot_while_another_does(trained: WorldActionModel, robot: FakeRobot) -> None:
    """The watchdog sends from its own thread; but a robot that hangs does not keep the command from passing."""
    interface = Interface(robot, trained.spec, RobotMap(), hz=5.0)
    within, at_once, pauses = [0], [], [0.1, 1.0]  # of a period of 0.2 s

    def slow(observation: dict[str, Any]) -> dict[str, Any]:
        within[0] += 1
        time.sleep(pauses.pop(0))
        within[0] -= 1
        return observation

    robot.misbehave = slow
    send = robot.send_action
    robot.send_action = lambda action: (at_once.append(within[0]), send(action))[1]  # type: ignore[method-assign]
    for _ in (*pauses,):
        observing = threading.Thread(target=interface.observe)
        observing.start()
        time.sleep(0.02)
        interface.send(np.zeros(2))
        observing.join()
    assert at_once == [0, 1]


def test_a_robot_that_waits_is_not_hurried(trained: WorldActionModel, robot: FakeRobot) -> None:
    robot.real_time = False  # type: ignore[attr-defined]
    begun, sent = time.monotonic(), []
    for folder in ("one", "other"):
        robot.values = dict.fromkeys(robot.values, 0.0)
        slow = config(hz=1.0, max_steps=20, episodes=folder)
        (lived,) = run_session(ModelPilot(trained, 2), slow, say=lambda line: None)
        assert lived.reason == "20 steps" and lived.n_late == 0
        sent.append(lived.sent)
    assert time.monotonic() - begun < 15 and np.array_equal(*sent)  # nothing depends on how long it takes


def test_the_loop_gives_back_what_it_took(trained: WorldActionModel, robot: FakeRobot) -> None:
    seen: list[tuple[bool, float]] = []
    robot.misbehave = lambda o: (seen.append((gc.isenabled(), sys.getswitchinterval())), o)[1]
    before = gc.isenabled(), sys.getswitchinterval(), os.getpriority(os.PRIO_PROCESS, 0)
    run_session(ModelPilot(trained, 2), config(), say=lambda line: None)
    assert seen and all(not collects and interval == pytest.approx(2e-4) for collects, interval in seen)
    assert (gc.isenabled(), sys.getswitchinterval(), os.getpriority(os.PRIO_PROCESS, 0)) == before


def test_a_policy_that_is_late_stops_it(
    trained: WorldActionModel, robot: FakeRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, n = session.Decider.__call__, []

    def slow(self: Any, frames: Any, held: Any) -> Any:
        n.append(1)
        time.sleep(0.5 if len(n) > 2 else 0.0)
        return call(self, frames, held)

    monkeypatch.setattr(session.Decider, "__call__", slow)
    (lived,) = run_session(ModelPilot(trained, 2), config(max_steps=50, max_late=3), say=lambda line: None)
    assert lived.reason == "there was no plan for 4 commands in a row" and lived.n_late >= 4
    held = [[*action.values()] for action in robot.sent[-4:]]
    assert held[-1] == [0.0, 0.0] and np.abs(held).max() < 1  # it ramps to a stand within its limits


def test_names_order_and_units_are_mapped(trained: WorldActionModel) -> None:
    robot = FakeRobot(state=("gx", "gy", "x", "y", "spare"), action=("vy", "vx"))
    mapping = RobotMap(
        state=("x", "y", "gx", "gy"), action=("vx", "vy"), scale={"x": 0.001, "vx": -1.0}, offset={"x": 0.5}
    )
    interface = Interface(robot, trained.spec, mapping, 10.0)
    robot.values |= {"x": 100.0, "y": 2.0, "gx": 3.0, "gy": 4.0}
    state, images, _, _ = interface.observe()
    assert state == pytest.approx([0.6, 2.0, 3.0, 4.0]) and images == {}
    assert interface.send(np.array([0.25, -0.75])) == pytest.approx([0.25, -0.75])
    assert robot.sent == [{"vx": -0.25, "vy": -0.75}]
    robot.send_action = lambda action: {"vx": -0.125, "vy": np.nan}  # type: ignore[method-assign]
    assert interface.send(np.array([0.25, -0.75])) == pytest.approx([0.125, -0.75])
    robot.send_action = lambda action: {}  # type: ignore[method-assign]
    assert interface.send(np.array([0.25, -0.75])) == pytest.approx([0.25, -0.75])


@pytest.mark.parametrize(
    ("state", "action", "mapping", "expected"),
    [
        ("point.0 point.1 goal.0", "action.0 action.1", RobotMap(), ("goal.1", "a number", "no such")),
        ("point.0 point.1 goal.0 goal.1", "action.0", RobotMap(), ("action.1", "a number", "no such")),
        ("point.0 point.1 goal.0 goal.1", "action.0 action.1 grip", RobotMap(), ("grip", "no such action", "one that")),
        ("a b c d", "action.0 action.1", RobotMap(state=("a", "b", "c")), ("state, size", "4", "3 names")),
        (
            "a b c d",
            "action.0 action.1",
            RobotMap(state=("a", "b", "c", "c")),
            ("state, names", "each once", "c twice"),
        ),
        (
            "point.0 point.1 goal.0 goal.1",
            "action.0 action.1",
            RobotMap(scale={"point.0": 0.0}),
            ("point.0", "a scale that can be undone", "0, offset 0"),
        ),
    ],
)
def test_a_robot_that_differs_is_refused_by_name(
    state: str, action: str, mapping: RobotMap, expected: tuple[str, str, str], trained: WorldActionModel
) -> None:
    robot = FakeRobot(state=state.split(), action=action.split())
    (row,) = differences(robot, trained.spec, mapping, 10.0)
    assert row[:2] == expected[:2] and row[2].startswith(expected[2])
    with pytest.raises(UserError, match=f"nothing was sent: {row[0]}: expected {row[1]}"):
        Interface(robot, trained.spec, mapping, 10.0)


def test_names_in_the_recordings_need_no_map(trained: WorldActionModel) -> None:
    spec = trained.spec
    motors = tuple(f"motor_{i}.pos" for i in range(spec.state_dim))
    goals = tuple(f"motor_{i}.goal" for i in range(spec.action_dim))
    features = {**spec.features, "state": replace(spec.features["state"], names=motors)}
    named = replace(spec, features=features, action_names=goals)
    robot = FakeRobot(state=motors[::-1], action=goals[::-1])  # in another order
    assert differences(robot, named, RobotMap(), 10.0) == []
    interface = Interface(robot, named, RobotMap(), 10.0)
    assert (interface.state_names, interface.action_names) == (motors, goals)
    assert [row[0] for row in differences(robot, spec, RobotMap(), 10.0)] != []  # without them it needs one


def test_recordings_of_joints_have_one_part_to_start_from(trained: WorldActionModel) -> None:
    joints = Spec({"state": Feature((2,), names=("a.pos", "b.pos"))}, (-1.0,) * 2, (1.0,) * 2, ("reach",), 10.0)
    assert joints.parts == {"state": slice(0, 2)}
    replace(LIMITS, still=(), start="state").check_fits(2, joints.parts)  # commands are positions of these joints
    assert trained.spec.parts == trained.spec.slices != {}


def test_another_rate_is_refused_and_shown(trained: WorldActionModel, robot: FakeRobot) -> None:
    robot.control_hz = 50.0  # type: ignore[attr-defined]
    said: list[str] = []
    with pytest.raises(UserError, match="rate: expected 100 Hz, found 50 Hz"):
        run_session(ModelPilot(trained, 2), config(), say=said.append)
    assert len(said) == 1 and "rate" in said[0] and robot.sent == [] and not robot.is_connected


def loaded_by(modules: str) -> set[str]:
    """Return the distributions that a new process loads when it imports `modules`."""
    code = (
        f"import sys; before = set(sys.modules); import {modules}; "
        "import importlib.metadata as m; tops = {n.partition('.')[0] for n in set(sys.modules) - before}; "
        "of = m.packages_distributions(); print(*sorted({d for t in tops for d in of.get(t, [])}))"
    )
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_a_robot_needs_no_more_than_torch_and_the_world_model() -> None:
    """Neither Stable-Baselines3 nor a simulator, a plotter or a config library is loaded to run a robot."""
    found = loaded_by("rl.deploy.session, rl.robots.fake, world_model.wam.store")
    needed = {"torch", "numpy", "safetensors"}
    of_torch = {re.split(r"[^\w.-]", requirement)[0] for requirement in importlib.metadata.requires("torch") or []}
    # What torch itself brings and loads, such as cuda-bindings and the cuda-pathfinder that these need; it also loads
    # tqdm where that is installed.
    of_cuda = {name for name in found if name.startswith("cuda-") and any(n.startswith("cuda-") for n in of_torch)}
    assert needed <= found <= needed | {"typing_extensions", "wamtune"} | of_torch | of_cuda | loaded_by("torch")


LEROBOT = {
    "robots/__init__.py": """
class RobotConfig:
    known = {}
    get_known_choices = classmethod(lambda cls: cls.known)
    get_choice_class = classmethod(lambda cls, name: cls.known[name])

def make_robot_from_config(config):
    from lerobot.robots.arm import Arm
    return Arm(config)
""",
    "robots/arm.py": """
from dataclasses import dataclass
from lerobot.robots import RobotConfig

@dataclass
class ArmConfig:
    port: str

RobotConfig.known["arm"] = ArmConfig

class Arm:
    def __init__(self, config):
        if config.port == "usb":
            raise ImportError("'servo-sdk' is required but not installed")
        self.port = config.port
""",
    "robots/other.py": "import a_library_that_is_not_there",
    "__init__.py": "",
    "utils/__init__.py": "",
    "utils/import_utils.py": """
def register_third_party_plugins():
    from lerobot.robots import RobotConfig
    RobotConfig.known["plug-in"] = dict
""",
}
"""How LeRobot 0.6 finds its robots: a name is known once its module is imported."""


def test_robots_of_lerobot_are_found_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"robot=arm: expected fake, sim, rosbridge, or a robot of LeRobot \(pip install"
    ):
        make_robot("arm", {})
    for name, text in LEROBOT.items():
        (tmp_path / "lerobot" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lerobot" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert make_robot("arm", {"port": "tty"}).port == "tty"  # type: ignore[attr-defined]
        for name, params, line in (
            ("leg", {}, "robot=leg: unknown to LeRobot, which knows arm, plug-in"),
            ("arm", {"port": "usb"}, "robot=arm: 'servo-sdk' is required but not installed"),
            ("arm", {"speed": 1}, "robot=arm: its parameters {'speed': 1} do not fit"),
        ):
            with pytest.raises(UserError, match=line):
                make_robot(name, params)
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "lerobot"]:
            del sys.modules[name]
