"""Robots that answer in other units, lose packets or hang; disks that are full: what is sent, recorded and said."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rewards.errors import UserError
from rl import cli
from rl.compose import compose
from rl.deploy import loop, safety, session, stops
from rl.deploy.loop import Lived
from rl.deploy.robot_config import RobotConfig
from rl.deploy.safety import Gate, Guard, Limits
from rl.deploy.session import run_session
from rl.deploy.stops import Stops
from rl.envs.metaworld.robot import SimRobot
from rl.robots.api import make_robot
from rl.robots.fake import FakeRobot
from rl.verbs import deploy
from world_model import files
from world_model.data import episodes as recording
from world_model.data.episodes import Episode, EpisodeStore
from world_model.env import Obs
from world_model.spec import Feature, Spec

SPEC = Spec(
    {"state": Feature((4,), "m", {"point": (0, 2), "goal": (2, 4)})},
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    tasks=("reach", "rest"),
    control_hz=10.0,
)
SPEEDS = Limits(low=(-0.8,) * 2, high=(0.8,) * 2, max_change=(0.05,) * 2, still=(0.0,) * 2, max_age_s=1000.0)
POSITIONS = Limits(low=(-0.8,) * 2, high=(0.8,) * 2, max_change=(0.05,) * 2, start="point", max_age_s=1000.0)
FOLDER = Path("runs/robot/fake")


class ConstantPilot:
    """Always wants the same."""

    spec, n_context_frames, chunk_size, noise_shape = SPEC, 1, 8, (1,)

    def __init__(self, wanted: float) -> None:
        self.wanted = wanted

    def act(self, obs: Obs, noise: Tensor, held: Tensor, n_held: Tensor) -> Tensor:
        return torch.full((1, self.chunk_size, 2), self.wanted)


class Robot(FakeRobot):
    """Waits for its commands, so that nothing depends on the load of the machine; may be one in positions."""

    def __init__(self) -> None:
        super().__init__(SPEC)
        self.real_time = False
        self.takes_positions = False
        self.answer: Callable[[np.ndarray], np.ndarray | None] = lambda command: None
        self.refuses: Callable[[int], bool] = lambda n: False  # whether the n-th command does not arrive
        self.n_commands = 0
        self.has_been_connected = False

    def connect(self) -> None:
        self.has_been_connected = True
        super().connect()

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self.n_commands += 1
        if self.refuses(self.n_commands):
            raise ConnectionError("a packet was lost")
        answer = self.answer(np.array([*action.values()]))
        super().send_action(action)
        if self.takes_positions:
            self.values |= {"point.0": action["action.0"], "point.1": action["action.1"]}
        return action if answer is None else dict(zip(action, answer.tolist(), strict=True))

    @property
    def commands(self) -> np.ndarray:
        """(n, 2), all that arrived."""
        return np.array([[*action.values()] for action in self.sent])


@pytest.fixture
def robot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Robot:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    robot = Robot()
    monkeypatch.setattr(session, "make_robot", lambda *given: robot)
    monkeypatch.setattr(loop, "PERIODS", 1000)
    return robot


def config(**changes: Any) -> RobotConfig:
    fields = {"robot": "fake", "task": "reach", "hz": 50.0, "max_steps": 6, "limits": SPEEDS, "max_late": 1000}
    return RobotConfig(**{**fields, **changes})


def run(wanted: float = 0.8, say: Callable[[str], None] = lambda line: None, **changes: Any) -> list[Lived]:
    return run_session(ConstantPilot(wanted), config(**changes), say=say)


def recorded(folder: str | Path = FOLDER) -> list[Episode]:
    return EpisodeStore(folder).load()


# --- the last command, and what the robot says that it took ---


@pytest.mark.parametrize(
    ("answer", "units"),
    [
        (lambda c, measured: np.round(2048 + 4096 / (2 * math.pi) * c), "motor ticks"),
        (lambda c, measured: np.degrees(c), "degrees, not radians"),
        (lambda c, measured: measured, "the positions that it measures"),
        (lambda c, measured: c + np.inf, "in other units"),
        (lambda c, measured: 1e39 * c, "in other units"),
    ],
)
def test_a_robot_that_answers_in_other_units_stands_still_where_it_was_sent(
    answer: Callable[..., np.ndarray], units: str, robot: Robot
) -> None:
    robot.takes_positions = True
    robot.answer = lambda command: answer(command, np.array([0.0, 0.0]))
    (lived,) = run(limits=POSITIONS, max_steps=20)
    assert np.abs(robot.commands).max() <= 0.8
    assert np.abs(np.diff(robot.commands, axis=0, prepend=0.0)).max() <= 0.05 + 1e-9
    assert np.array_equal(robot.commands[-1], robot.commands[-2])  # it stands still
    assert lived.stopped and "the robot answers that it took" in lived.reason and units in lived.reason
    assert not recorded()


@pytest.mark.parametrize("limits", [SPEEDS, POSITIONS])
def test_the_end_of_an_episode_is_within_the_limits(limits: Limits, robot: Robot) -> None:
    robot.takes_positions = limits is POSITIONS
    robot.answer = lambda command: command.clip(max=0.2)  # within max_change of the command, until then
    (lived,) = run(0.21, limits=limits, max_steps=20)
    assert not lived.stopped and lived.reason == "20 steps" and len(lived.sent) == 20
    assert np.abs(np.diff(robot.commands, axis=0, prepend=0.0)).max() <= 0.05 + 1e-9
    assert robot.commands[-1] == pytest.approx(0.21 if limits is POSITIONS else 0.0)
    (episode,) = recorded()
    assert episode.length == 20 and episode.action.max() == pytest.approx(0.2)  # as it was taken


def test_an_answer_may_be_rounded() -> None:
    guard = Guard(POSITIONS, 2, 4, SPEC.slices)
    command = guard.command([0.8, 0.8], np.array([0.79, 0.79, 0, 0]))
    taken = guard.answer(np.float32(command).tolist(), command, np.zeros(4))
    assert (taken <= 0.8).all() and taken == pytest.approx(0.8)
    for answer, line in (
        ([True, 0.8], "no list of numbers"),
        (["0.8", 0.8], "no list of numbers"),
        ([0.8], "has shape"),
        ([10**400, 0.8], "no list of numbers"),
    ):
        with pytest.raises(safety.Stop, match=f"the answer to a command .*{line}"):
            guard.answer(answer, command, np.zeros(4))


# --- episodes that ended by themselves ---


def test_one_lost_packet_of_the_last_command_loses_no_episode(robot: Robot) -> None:
    robot.refuses = lambda n: n == 7  # after the six of the episode
    (lived,) = run(limits=replace(SPEEDS, max_change=(0.8, 0.8)))
    assert len(recorded()) == 1 and lived.ended and not lived.stopped
    assert (robot.commands[-1] == 0).all()


def test_an_episode_that_ended_is_recorded_whatever_comes_after_it(robot: Robot) -> None:
    robot.refuses = lambda n: n > 6
    (lived,) = run(n_episodes=3)
    assert len(recorded()) == 1
    assert lived.ended and lived.stopped and "6 steps; " in lived.reason and "a packet was lost" in lived.reason


def test_a_folder_of_another_robot_is_seen_before_this_one_moves(robot: Robot) -> None:
    other = Spec({"state": Feature((3,))}, (-1.0,), (1.0,), ("reach",), 10.0)
    obs, action, success = {"state": torch.zeros(2, 3)}, torch.zeros(1, 1), torch.zeros(1, dtype=torch.bool)
    episode = Episode(obs, action, success, "reach", "random", 0)
    EpisodeStore(FOLDER).append([episode], other)
    with pytest.raises(UserError, match=r"have other features, bounds or rate: .*; choose another folder"):
        run()
    assert not robot.has_been_connected


def test_a_number_that_no_disk_holds_is_not_seen(robot: Robot) -> None:
    seen: list[int] = []
    robot.misbehave = lambda o: (seen.append(1), {**o, "goal.1": 1e39} if len(seen) > 10 else o)[1]
    first, second = run(n_episodes=3)
    assert first.ended and second.stopped
    assert second.reason == "entry 3 of the observation is not finite in single precision: 1e+39"
    assert len(recorded()) == 1


@pytest.mark.parametrize("full", ["the folder", "home too"])
def test_with_a_full_disk_an_episode_is_written_elsewhere(
    full: str, robot: Robot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    write = files.write_synced

    def full_disk(path: Path, data: bytes) -> None:
        if "runs" in path.parts or ("home" in path.parts and full == "home too"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(files, "write_synced", full_disk)
    with pytest.raises(UserError, match=r"No space left on device.*; episode 1 was written to .* instead") as caught:
        run(n_episodes=3)
    place = re.findall(r"written to (\S+) instead", str(caught.value))[0]
    assert ("home" in place) == (full == "the folder") and len(recorded(place)) == 1
    assert not recorded() and not robot.is_connected


def test_two_sessions_do_not_write_to_one_folder(robot: Robot) -> None:
    run()
    with EpisodeStore(FOLDER).writer(replace(SPEC, control_hz=50.0)):  # the rate of `run`
        with pytest.raises(UserError, match="runs/robot/fake: another process is writing to it; wait for it, or end"):
            robot.has_been_connected = False
            run()
        assert not robot.has_been_connected
    run()
    assert len(recorded()) == 2


def test_who_appends_waits_for_the_other_writer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recording, "WAIT_S", 0.1)
    store = EpisodeStore(tmp_path)
    obs, action, success = {"state": torch.zeros(2, 4)}, torch.zeros(1, 2), torch.zeros(1, dtype=torch.bool)
    episode = Episode(obs, action, success, "reach", "random", 0)
    with EpisodeStore(tmp_path).writer(SPEC), pytest.raises(UserError, match="another process is writing to it"):
        store.append([episode], SPEC)
    store.append([episode], SPEC)
    assert len(store) == 1


def test_a_copy_in_the_folder_loses_nothing(robot: Robot) -> None:
    run()
    shutil.copy(FOLDER / "episodes-000000.safetensors", FOLDER / "episodes-1 (copy).safetensors")
    run()
    run()
    names = {shard.stem for shard in EpisodeStore(FOLDER).shards}
    assert names == {"episodes-000000", "episodes-1 (copy)", "episodes-000001", "episodes-000002"}


def test_a_folder_that_cannot_be_written_to_is_seen_before_the_robot_moves(
    robot: Robot, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    with pytest.raises(UserError, match="file/episodes: cannot write it"):
        run(episodes="file/episodes")

    def read_only(**_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(UserError, match=r"cannot write it \(Permission denied\)"):
        run()
    assert not robot.has_been_connected


# --- calls that hang, and other ways in which a stop did not win ---


class Hang:
    """A call of the robot that hangs in the n-th time until `release`, or for 30 s."""

    def __init__(self, robot: Any, name: str, n: int = 1) -> None:
        self.begun, self.release, self.is_over = threading.Event(), threading.Event(), False
        call, seen = getattr(robot, name, lambda scene: None), []

        def hang(*arguments: Any) -> Any:
            seen.append(1)
            if len(seen) == n:
                self.begun_at = time.monotonic()
                self.begun.set()
                self.release.wait(30)
                self.is_over = True
            return call(*arguments)

        setattr(robot, name, hang)

    def then(self, do: Callable[[], Any]) -> None:
        """Do it as soon as the call hangs."""
        threading.Thread(target=lambda: self.begun.wait(30) and do(), daemon=True).start()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    from rl.deploy import calls

    monkeypatch.setattr(calls, "GRACE_S", 0.2)
    monkeypatch.setattr(safety, "GRACE_S", 0.2)


@pytest.fixture
def own_signals() -> Iterator[None]:
    """What a signal does where the session does not take it: nothing."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("stop", ["SIGINT", "SIGTERM", "STOP"])
@pytest.mark.parametrize(
    ("name", "n"), [("get_observation", 1), ("get_observation", 3), ("send_action", 3), ("reset", 1)]
)
def test_a_stop_wins_over_a_call_that_hangs(
    name: str, n: int, stop: str, robot: Robot, quick: None, own_signals: None
) -> None:
    hang = Hang(robot, name, n)
    stop_it = Path("STOP").touch if stop == "STOP" else lambda: os.kill(os.getpid(), getattr(signal, stop))
    hang.then(stop_it)
    try:
        (lived,) = run(n_episodes=3)
        assert not hang.is_over  # it hangs still
        why = "the file STOP is there" if stop == "STOP" else f"the signal {stop}"
        assert lived.stopped and lived.reason == f"{why}; {name} hangs"
        assert (robot.commands[-1] == 0).all() and not recorded() and not robot.is_connected
        if name == "send_action":  # it comes through after all, and is not the last
            n_before = len(robot.sent)
            hang.release.set()
            until(lambda: len(robot.sent) == n_before + 2)
            assert (robot.commands[-2] != 0).all() and (robot.commands[-1] == 0).all()
    finally:
        hang.release.set()


def until(what: Callable[[], bool]) -> None:
    last = time.monotonic() + 30
    while not what():
        assert time.monotonic() < last
        time.sleep(0.01)


def test_a_robot_that_hangs_in_everything_ends_the_session(
    robot: Robot, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "LET_GO_S", 0.2)
    release, seen = threading.Event(), []

    def hang(*_: Any) -> Any:
        release.wait(30)
        raise ConnectionError("nothing works")

    def hang_later(observation: dict[str, Any]) -> dict[str, Any]:
        seen.append(1)
        if len(seen) < 3:
            return observation
        for name in ("send_action", "get_observation", "disconnect"):
            setattr(robot, name, hang)
        Path("STOP").touch()
        return hang()  # type: ignore[no-any-return]

    robot.misbehave = hang_later
    said: list[str] = []
    try:
        (lived,) = run(say=said.append)
        assert not release.is_set() and lived.stopped
        assert (
            lived.reason
            == "the file STOP is there; get_observation hangs; the robot hangs in the command to stand still"
        )
        assert said[-1] == "the robot was not let go of: disconnect did not return within 0.2 s"
    finally:
        release.set()


def test_a_first_observation_that_never_comes_is_not_waited_for(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "FIRST_S", 0.2)
    hang = Hang(robot, "get_observation")
    try:
        (lived,) = run()
        assert not hang.is_over and lived.stopped and lived.reason == "get_observation did not return within 0.2 s"
    finally:
        hang.release.set()


@pytest.mark.parametrize("name", ["send_action", "get_observation"])
def test_two_periods_after_a_call_that_hangs_the_robot_stands_still(
    name: str, robot: Robot, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PERIODS", 2)
    robot.real_time = True
    hang = Hang(robot, name, 2)
    arrived: list[float] = []
    robot.answer = lambda command: (arrived.append(time.monotonic()), None)[1]
    try:
        (lived,) = run(hz=1.0, max_steps=3)
        assert not hang.is_over and lived.stopped
        assert lived.reason == f"no command for 2 s: the loop hangs; {name} hangs"
        assert (robot.commands[-1] == 0).all()
        # The second command is sent then, or was a period before.
        assert 0.9 < arrived[-1] - hang.begun_at < 3.4
    finally:
        hang.release.set()


def test_of_two_threads_that_see_a_line_none_waits_for_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read, write = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(read))
    asked = Stops(tmp_path / "STOP", keys=True)
    select, seen, go_on = stops.select.select, threading.Event(), threading.Event()

    def slow_select(*given: Any) -> Any:
        found = select(*given)
        if threading.current_thread() is not threading.main_thread():
            seen.set()
            go_on.wait(30)
        return found

    monkeypatch.setattr(stops.select, "select", slow_select)
    os.write(write, b"s\n")
    other = threading.Thread(target=asked, daemon=True)
    other.start()
    assert seen.wait(30)
    asked()
    go_on.set()
    other.join(10)
    assert not other.is_alive() and asked.solved and asked() is None
    os.write(write, b"q")  # half a line
    assert asked() is None
    os.close(write)
    assert asked() == "the end of standard input"


@pytest.mark.parametrize("stdin", ["none", "closed"])
def test_a_closed_standard_input_is_no_terminal(
    stdin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = open(os.devnull)
    closed.close()
    monkeypatch.setattr(sys, "stdin", None if stdin == "none" else closed)
    assert cli.main(["deploy", "metaworld-tuned", "run", "robot-ros"]) == 2
    assert "success=key: expected a terminal to type s in" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGTSTP])
def test_signals_that_would_end_the_process_stop_the_robot(number: signal.Signals, robot: Robot) -> None:
    before = signal.getsignal(number)

    def raise_it(observation: dict[str, Any]) -> dict[str, Any]:
        assert signal.getsignal(number) is not signal.SIG_DFL  # which would end the tests
        os.kill(os.getpid(), number)
        return observation

    robot.misbehave = lambda o: raise_it(o) if robot.sent else o
    (lived,) = run()
    assert lived.stopped and lived.reason == f"the signal {number.name}" and (robot.commands[-1] == 0).all()
    assert signal.getsignal(number) == before


def test_a_signal_that_is_used_otherwise_is_left_alone(robot: Robot) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    robot.misbehave = lambda o: (os.kill(os.getpid(), signal.SIGUSR1), o)[1]
    try:
        (lived,) = run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard and not lived.stopped


def test_a_session_that_was_stopped_does_not_exit_with_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deploy, "load_pilot", lambda *given: None)
    score = deploy.compare.__globals__["Score"](stopped="a key")
    for action, name, result in (
        (["run"], "run_session", [Lived(ended=True), Lived(reason="a key", stopped=True)]),
        (["compare", "other"], "compare", score),
    ):
        monkeypatch.setattr(deploy, name, lambda *given, result=result, **named: result)
        assert cli.main(["deploy", "metaworld-tuned", *action, "robot-sim"]) == 2
        assert "wamtune: the robot was stopped: a key" in capsys.readouterr().err
    monkeypatch.setattr(deploy, "run_session", lambda *given, **named: [Lived(ended=True)])
    assert cli.main(["deploy", "metaworld-tuned", "run", "robot-sim"]) == 0


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"goal.1": True}, "the observation is no list of numbers"),
        ({"goal.1": "0.1"}, "the observation is no list of numbers"),
        ({"goal.1": np.bool_(False)}, "the observation is no list of numbers"),
        ({"goal.1": 10**400}, "the observation is no list of numbers"),
        ({"success": "False"}, "the observation has success='False', expected True or False"),
        ({"success": 1}, "the observation has success=1, expected True or False"),
        ({"timestamp": "0.1"}, "the time of the observation is '0.1', expected seconds"),
        ({"timestamp": True}, "the time of the observation is True, expected seconds"),
    ],
)
def test_what_only_looks_like_a_value_is_none(change: dict[str, Any], line: str, robot: Robot) -> None:
    robot.misbehave = lambda o: {**o, **change} if robot.sent else o
    (lived,) = run()
    assert lived.stopped and lived.reason.startswith(line) and not recorded()


@pytest.mark.parametrize("answer", [True, "0.1", 10**400, [0.1], {}])
def test_an_answer_that_only_looks_like_a_value_is_none(answer: Any, robot: Robot) -> None:
    send = robot.send_action
    robot.send_action = lambda action: (send(action), dict.fromkeys(action, answer))[1]  # type: ignore[method-assign]
    (lived,) = run()
    assert lived.stopped and lived.reason.startswith("the answer to a command ") and not recorded()


def test_what_is_no_dict_stops_it(robot: Robot) -> None:
    send = robot.send_action
    robot.send_action = lambda action: (send(action), [0.1, 0.1])[1]  # type: ignore[method-assign, return-value]
    (lived,) = run()
    assert lived.stopped and lived.reason.startswith("the answer to a command is no list of numbers")
    robot.misbehave = lambda o: [*o.values()]  # type: ignore[assignment, return-value]
    (lived,) = run()
    assert lived.stopped and lived.reason.startswith("the observation is no dict of numbers by name")


def test_without_its_stops_it_does_not_go_on() -> None:
    sent: list[float] = []

    def watch() -> str | None:
        if sent:
            raise OSError("the disk is gone")
        return None

    with Gate(lambda c: sent.append(float(c[0])), np.zeros(1), patience_s=0.4, watch=watch) as gate:
        gate.send(np.ones(1))
        until(lambda: gate.reason is not None)
    assert sent == [1.0, 0.0] and "stops cannot be looked for" in str(gate.reason)


# --- one task ---


def test_the_simulated_arm_runs_the_task_that_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    robot = make_robot("sim", {"gain": 0.9}, "hammer")
    assert isinstance(robot, SimRobot) and robot.spec.tasks == ("hammer",)
    line = "params.task=push: expected hammer, the task that the session runs and records; leave params.task out"
    with pytest.raises(UserError, match=line):
        make_robot("sim", {"task": "push"}, "hammer")
    monkeypatch.chdir(tmp_path)
    preset = compose("robot-sim", ["task=hammer"], RobotConfig)
    spec = SimRobot("hammer").spec
    assert session.Session(spec, preset).robot.spec.tasks == ("hammer",)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"params.task=push: expected hammer"):
        session.Session(spec, compose("robot-sim", ["task=hammer", "params.task=push"], RobotConfig))
