"""A person takes over from the policy and gives back: who acts, what is recorded, and that the guard checks both."""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rewards.errors import UserError
from rl import cli
from rl.deploy import session
from rl.deploy.loop import Lived
from rl.deploy.robot_config import RobotConfig
from rl.deploy.safety import Limits
from rl.deploy.session import run_session
from rl.deploy.stops import Stops
from rl.deploy.takeover import Takeover
from rl.envs.metaworld.tasks import SLICES
from rl.policies.wam import ModelPilot
from rl.robots.fake import FakeRobot
from rl.robots.teleoperators import make_teleoperator
from rl.verbs import deploy
from world_model.data.episodes import BLEND, PERSON, POLICY, EpisodeStore
from world_model.data.lerobot import import_lerobot
from world_model.wam.model import WorldActionModel

LIMITS = Limits(low=(-1.0,) * 2, high=(1.0,) * 2, max_change=(0.5,) * 2, still=(0.0,) * 2, max_age_s=60.0)


class Event(enum.Enum):
    """The keys of LeRobot's events."""

    IS_INTERVENTION = "is_intervention"
    SUCCESS = "success"
    TERMINATE_EPISODE = "terminate_episode"
    RERECORD_EPISODE = "rerecord_episode"


class Expert:
    """A scripted person, who takes over where the point is too far to the right, and brings it back.

    Args:
        right: where it takes over.
        wants: its action.
        says: what it says after it has driven for three steps.
    """

    def __init__(self, right: float = 0.02, wants: float = -0.4, says: Event | None = None) -> None:
        self.says = says
        self.right, self.action = right, {"action.0": wants, "action.1": 0.25}
        self.drives = self.is_connected = False
        self.asked = 0

    def connect(self) -> None:
        self.is_connected = True

    def see(self, observation: Mapping[str, Any]) -> None:
        x = observation["point.0"]
        self.drives = x > self.right or (self.drives and x > 0.0)

    def get_teleop_events(self) -> dict[Event, bool]:
        said = {event: event == self.says and self.asked > 2 for event in (Event.SUCCESS, Event.TERMINATE_EPISODE)}
        return {**said, Event.IS_INTERVENTION: self.drives}

    def get_action(self) -> Any:
        self.asked += 1
        return self.action

    def disconnect(self) -> None:
        self.is_connected = False


Run = Callable[..., tuple[FakeRobot, Lived]]


@pytest.fixture
def run(trained: WorldActionModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return a function that runs one episode in which the policy always goes to the right."""
    monkeypatch.chdir(tmp_path)
    act = ModelPilot.act
    monkeypatch.setattr(ModelPilot, "act", lambda *given: 0 * act(*given) + torch.tensor([0.5, 0.0]))

    def run(device: Any, **changes: Any) -> tuple[FakeRobot, Lived]:
        robot = FakeRobot(trained.spec)
        robot.real_time = False  # type: ignore[attr-defined]
        monkeypatch.setattr(session, "make_robot", lambda name, params, task: robot)
        monkeypatch.setattr(session, "make_teleoperator", lambda name, params, task: device)
        fields = {"task": "reach", "hz": 20.0, "max_steps": 60, "n_action_steps": 2, "limits": LIMITS, "person": "it"}
        (lived,) = run_session(ModelPilot(trained, 2), RobotConfig(robot="fake", **{**fields, **changes}), say=str)
        return robot, lived

    return run


def test_every_step_is_marked_and_the_commands_go_over_smoothly(run: Run) -> None:
    person = Expert()
    _, lived = run(person)
    assert lived.reason == "60 steps" and not person.is_connected
    who, sent = np.array(lived.control), np.array(lived.sent)
    assert set(who) == {POLICY, PERSON, BLEND} and person.asked == (who == PERSON).sum()
    assert sent[who == POLICY] == pytest.approx(np.broadcast_to([0.5, 0.0], (sum(who == POLICY), 2)), abs=1e-6)
    # Within max_change of the command before, so the first one of the person is on the way to -0.4.
    first = int(np.argmax(who == PERSON))
    assert sent[first] == pytest.approx([0.0, 0.25]) and sent[first + 1] == pytest.approx([-0.4, 0.25])
    # Ten steps of half a second, from the person's last command to the policy's.
    begin = int(np.argmax(who == BLEND))
    shares = np.arange(10, 0, -1) / 11
    expected = shares[:, None] * [-0.4, 0.25] + (1 - shares[:, None]) * [0.5, 0.0]
    moves = [i for i in range(begin, begin + 12) if np.any(sent[i])][:10]  # while there is no plan it holds
    assert (who[moves] == BLEND).all() and sent[moves] == pytest.approx(expected, abs=1e-6)
    assert np.abs(np.diff(sent, axis=0)).max() <= 0.5 + 1e-9


def test_marks_are_in_the_store_and_in_a_dataset_of_lerobot(run: Run) -> None:
    _, lived = run(Expert(), dataset="arm")
    (episode,) = EpisodeStore("runs/robot/fake").load()
    assert episode.control is not None and episode.control.tolist() == lived.control
    assert episode.cut(3, 9).control.tolist() == lived.control[3:9]  # type: ignore[union-attr]
    (found,), spec = import_lerobot("arm")
    assert spec.control_hz == 20.0  # of the session; the checkpoint's is 10
    assert found.control is not None and torch.equal(found.control, episode.control)
    table = pq.read_table("arm/data/chunk-000/file-000.parquet")
    assert table["intervention"].to_pylist() == [who == PERSON for who in lived.control]


def test_without_a_person_every_step_is_the_policys(run: Run) -> None:
    _, lived = run(None, person="")
    (episode,) = EpisodeStore("runs/robot/fake").load()
    assert set(lived.control) == {POLICY} and episode.control is not None and not episode.control.any()


def test_a_plan_after_a_hand_back_is_not_late(run: Run) -> None:
    """It takes a period, as every plan here, in which the robot stands still."""
    _, lived = run(Expert(), max_late=0)
    assert lived.reason == "60 steps" and PERSON in lived.control and BLEND in lived.control
    assert lived.n_late > 0


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ({"action.0": float("nan"), "action.1": 0.0}, "from the person: the action is array([nan"),
        ({"action.0": "left", "action.1": 0.0}, "from the person: the action is no list of numbers: ['left', 0.0]"),
        ({"action.0": 0.1}, "from the person: the action is array([0.1, nan])"),
        ([0.1, 0.2], "the person's device gives [0.1, 0.2], expected an action by name"),
    ],
)
def test_bad_numbers_of_a_person_never_reach_the_robot(run: Run, action: Any, reason: str) -> None:
    person = Expert(right=-1.0)
    person.action = action
    robot, lived = run(person)
    assert lived.stopped and not lived.failed and lived.reason.startswith(reason)
    assert not any(any(command.values()) for command in robot.sent)


def test_a_person_is_kept_within_the_limits(run: Run) -> None:
    robot, lived = run(Expert(wants=-50.0))
    sent = np.array([[*command.values()] for command in robot.sent])
    assert np.abs(sent).max() <= 1.0 and np.abs(np.diff(sent, axis=0)).max() <= 0.5 + 1e-9
    assert PERSON in lived.control


@pytest.mark.parametrize(
    ("says", "reason", "solved"),
    [(Event.SUCCESS, "success", True), (Event.TERMINATE_EPISODE, "failure", False)],
)
def test_the_device_says_how_the_episode_ends(run: Run, says: Event, reason: str, solved: bool) -> None:
    robot, lived = run(Expert(says=says))
    assert lived.ended and not lived.stopped and lived.reason == reason and len(lived.sent) < 60
    assert lived.control.count(PERSON) == 4 and not any(lived.success[:-1]) and lived.success[-1] is solved
    (episode,) = EpisodeStore("runs/robot/fake").load()
    assert episode.is_success is solved and not any(robot.sent[-1].values())  # it stands still


def test_an_episode_that_the_person_discards_begins_again(
    trained: WorldActionModel, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """LeRobot's gamepad says both for one button."""
    both = {Event.TERMINATE_EPISODE: True, Event.RERECORD_EPISODE: True}
    person, robot = Expert(right=9.0), FakeRobot(trained.spec)
    robot.real_time, starts = False, []  # type: ignore[attr-defined]
    robot.reset = starts.append  # type: ignore[attr-defined]
    says = person.get_teleop_events
    person.get_teleop_events = lambda: says() | (both if len(robot.sent) == 5 else {})  # type: ignore[method-assign]
    monkeypatch.setattr(session, "make_robot", lambda name, params, task: robot)
    monkeypatch.setattr(session, "make_teleoperator", lambda name, params, task: person)
    config = RobotConfig(robot="fake", task="reach", hz=20.0, max_steps=10, n_episodes=2, limits=LIMITS, person="it")
    said: list[str] = []
    lived = run_session(ModelPilot(trained, 2), config, say=said.append)
    assert [(one.reason, one.ended, len(one.sent)) for one in lived] == [
        ("discarded by the person", False, 6),
        ("10 steps", True, 10),
        ("10 steps", True, 10),
    ]
    assert starts == [0, 0, 1] and not any(one.stopped for one in lived)
    assert said[0].startswith("episode 1: 6 commands, discarded by the person") and said[1].startswith("episode 1: 10 ")
    assert [episode.length for episode in EpisodeStore("runs/robot/fake").load()] == [10, 10]


def test_a_button_that_is_held_ends_only_one_episode() -> None:
    person, events = Expert(), {Event.RERECORD_EPISODE: False}
    person.get_teleop_events = lambda: events  # type: ignore[method-assign]
    takeover = Takeover(person, lambda: False, list, hz=20.0)
    seen = {"point.0": 0.0}
    ended = []
    for pressed in ([False, True], [True, True], [True, False, True], [True, False]):
        takeover.begin()
        for events[Event.RERECORD_EPISODE] in pressed:
            takeover.wanted(seen)
        ended.append(takeover.discards)
    assert ended == [True, False, True, False]


def test_a_discarded_episode_does_not_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deploy, "load_pilot", lambda *given: None)
    lived = [Lived(success=[True]), Lived(success=[True], ended=True), Lived(success=[False], ended=True)]
    monkeypatch.setattr(deploy, "run_session", lambda *given, **named: lived)
    assert cli.main(["deploy", "metaworld-tuned", "run", "robot-sim", "person=expert"]) == 0
    assert "1 of 2 episodes reported success, 0 of them with a person" in capsys.readouterr().out


def test_the_robot_and_the_user_say_that_it_failed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    observe = FakeRobot.get_observation
    with monkeypatch.context() as patch:
        patch.setattr(FakeRobot, "get_observation", lambda self: {**observe(self), "failure": len(self.sent) >= 7})
        _, lived = run(None, person="")
        assert (lived.reason, len(lived.sent), lived.ended) == ("failure", 7, True)
        patch.setattr(FakeRobot, "get_observation", lambda self: {**observe(self), "failure": "no"})
        _, lived = run(None, person="")
        assert lived.stopped and lived.reason == "the observation has failure='no', expected True or False"

    class Typing(Stops):
        """A user who types f in each episode."""

        def __call__(self) -> str | None:
            self.failed = True
            return super().__call__()

    monkeypatch.setattr(session, "Stops", Typing)
    _, lived = run(None, person="")
    assert (lived.reason, lived.ended, lived.stopped) == ("failure", True, False)


def test_a_typed_f_is_no_stop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read, write = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(read))
    stops = Stops(tmp_path / "STOP", keys=True)
    os.write(write, b"f\n")
    assert stops() is None and stops.failed and not stops.solved
    os.close(write)


def test_numbers_of_a_device_are_scaled(run: Run) -> None:
    """LeRobot's gamepad gives 0 to close a gripper, 1 to leave it, 2 to open it."""
    person = Expert()
    person.action = {"delta_x": -0.1, "gripper": 2}
    grip = {"name": "gripper", "scale": -0.25, "offset": 0.25}
    names = {"action.0": {"name": "delta_x", "scale": 4.0}, "action.1": grip}
    _, lived = run(person, person_names=names)
    assert lived.sent[lived.control.index(PERSON) + 1] == pytest.approx(np.array([-0.4, -0.25]))
    person.action = {"delta_x": float("inf"), "gripper": 1}
    _, lived = run(person, person_names=names)
    assert lived.stopped and lived.reason.startswith("from the person: the action is array([")
    line = r"person_names\.action\.0=.*: expected the device's name of that number, or"
    for wrong in ({"scale": 2.0}, {"name": "x", "scale": "wide"}, {"name": "x", "offset": float("nan")}, 3):
        with pytest.raises(UserError, match=line):
            run(person, person_names={"action.0": wrong})


def test_the_scripted_expert_sees_that_the_policy_errs() -> None:
    """The hand is at x, the object at 0, the goal at 0.2: the way is |x| + 0.2."""

    def takes_over_at(way: list[float], **limits: Any) -> int | None:
        person = make_teleoperator("expert", limits, task="push")
        names = [f"{part}.{i}" for part, (a, b) in SLICES.items() for i in range(b - a)]
        for i, x in enumerate(way):
            frame = dict.fromkeys(names, 0.0) | {"hand_pos.0": x, "goal_pos.0": 0.2}
            person.see(frame)  # type: ignore[attr-defined]
            if person.get_teleop_events()["is_intervention"]:  # type: ignore[attr-defined]
                return i
        return None

    nearer = [0.5 - 0.02 * i for i in range(20)]
    assert takes_over_at(nearer) is None
    assert takes_over_at(nearer, after=10) == 10
    assert takes_over_at([*nearer[:5], *[0.42] * 10], patience=3) == 8
    assert takes_over_at([*nearer[:5], 0.5, 0.55, 0.3], worse=0.1) == 6
    assert takes_over_at([0.3, 0.29, 0.28, 0.28], after=100, patience=2) is None


class Wheel:
    """A device that does not tell whether it is wanted."""

    def connect(self) -> None: ...

    def get_action(self) -> dict[str, float]:
        return {"action.0": 0.5}

    def disconnect(self) -> None: ...


def test_a_typed_t_takes_over_and_gives_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read, write = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(read))
    stops = Stops(tmp_path / "STOP", keys=True, takes_over=True)
    takeover = Takeover(Wheel(), lambda: stops.person_drives, lambda given: [*given.values()], 10.0)
    assert stops() is None and takeover.wanted({}) is None
    for wanted in ([0.5], None, [0.5]):
        os.write(write, b"t\n")
        assert stops() is None and takeover.wanted({}) == wanted
    os.write(write, b"q\n")
    assert stops() == "a key"
    nobody = Stops(tmp_path / "STOP", keys=True)
    os.write(write, b"t\n")
    assert nobody() == "a key"  # nobody can take over there
    os.close(write)


def test_each_episode_begins_with_the_policy(
    trained: WorldActionModel, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """The person still drives when the first episode ends."""

    class Kept(Stops):
        """The stops of the session."""

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            stops.append(self)

    def type_t(observation: dict[str, Any]) -> dict[str, Any]:
        if len(robot.sent) == 3:
            stops[0].person_drives = True
        return observation

    stops: list[Stops] = []
    robot = FakeRobot(trained.spec)
    robot.real_time = False  # type: ignore[attr-defined]
    robot.misbehave = type_t
    device = Wheel()
    device.get_action = lambda: {"action.0": 0.5, "action.1": 0.0}  # type: ignore[method-assign]
    monkeypatch.setattr(session, "Stops", Kept)
    monkeypatch.setattr(session, "make_robot", lambda name, params, task: robot)
    monkeypatch.setattr(session, "make_teleoperator", lambda name, params, task: device)
    config = RobotConfig(robot="fake", task="reach", hz=20.0, max_steps=8, n_episodes=2, limits=LIMITS, person="it")
    first, second = run_session(ModelPilot(trained, 2), config, say=str)
    assert first.control == [POLICY] * 3 + [PERSON] * 5 and second.control == [POLICY] * 8


def test_a_device_that_is_none_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Wheel:\n    def connect(self): ...\n")
    with pytest.raises(UserError, match=r"Wheel has no get_action, disconnect; expected the members of LeRobot's"):
        make_teleoperator(f"{file}:Wheel", {})
    with pytest.raises(
        UserError, match=r"person=wheel: (expected expert, or a teleoperator of LeRobot|unknown to LeRobot)"
    ):
        make_teleoperator("wheel", {})


def test_the_scripted_expert_solves_what_the_policy_does_not(
    seeing: WorldActionModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the simulated arm, with a policy that stands still: it takes over after ten steps and reaches success."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelPilot, "act", lambda self, obs, noise, held, n_held: torch.zeros_like(held))
    limits = Limits(low=(-1.0,) * 4, high=(1.0,) * 4, max_change=(2.0,) * 4, still=(0.0,) * 4, max_age_s=60.0)
    fields = {"robot": "sim", "task": "door-open", "max_steps": 150, "n_action_steps": 8, "limits": limits}
    params = {"paced": False, "cameras": {"front": {}}, "image_size": 32}
    config = RobotConfig(**fields, params=params, person="expert", person_params={"after": 10})
    said: list[str] = []
    (lived,) = run_session(ModelPilot(seeing, 2), config, say=said.append)
    assert lived.reason == "success" and lived.control.count(POLICY) == 10 and PERSON in lived.control
    assert said[0].endswith(f"; {lived.control.count(PERSON)} from the person")


@pytest.mark.parametrize("as_lerobot", [False, True])
def test_a_device_with_other_names_needs_a_map(run: Run, as_lerobot: bool) -> None:
    person = Expert()
    person.action = {"delta_x": -0.4, "delta_y": 0.25}
    names = ["delta_x", "delta_y"]
    of_lerobot = {"dtype": "float32", "shape": (2,), "names": dict.fromkeys(names, 0)}
    person.action_features = of_lerobot if as_lerobot else dict.fromkeys(names, float)  # type: ignore[attr-defined]
    with pytest.raises(UserError) as error:
        run(person)
    line = (
        "person=it: the device gives delta_x, delta_y, and the robot takes 'action.0'; name the number of the device "
        "with 'person_names={action.0: NAME}'"
    )
    assert str(error.value) == line and not person.is_connected
    _, lived = run(person, person_names={"action.0": "delta_x", "action.1": "delta_y"})
    assert lived.sent[lived.control.index(PERSON) + 1] == pytest.approx(np.array([-0.4, 0.25]))


def test_a_comparison_has_no_person(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["deploy", "metaworld-tuned", "compare", "other", "robot-sim", "person=expert"]) == 2
    line = "person=expert: a comparison is of the policies alone; leave it out"
    assert capsys.readouterr().err == f"wamtune: {line}\n"
