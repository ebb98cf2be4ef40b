"""A network of somebody else on a robot: what it is given, how its chunks continue, and what is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewards.errors import UserError
from rl import cli
from rl.config import PolicyConfig
from rl.deploy.brought import fit_to_robot
from rl.deploy.robot_config import RobotConfig
from rl.deploy.safety import Limits
from rl.deploy.session import run_session
from rl.policies.api import Denoiser
from rl.policies.pilot import DenoiserPilot
from rl.policies.saving import save_denoiser
from rl.robots.api import RobotMap, slices_of
from rl.robots.fake import FakeRobot
from world_model.data.episodes import EpisodeStore
from world_model.spec import ENVIRONMENT_STATE, STATE, Feature, Spec

SIZE, STEPS = 8, 4


class Follower(Denoiser):
    """A flow in which each action becomes the one before it; actions are `gain` times the chain."""

    def __init__(self, gain: float = 2.0, first: int = 0, knows_path: bool = True) -> None:
        super().__init__()
        self.reads, self.horizon, self.chain_dim, self.n_features = {STATE: Feature((2,))}, SIZE + first, 2, 1
        self.gain, self.first, self.knows_path, self.n_denoising_steps = gain, first, knows_path, STEPS
        self.weight = nn.Parameter(torch.zeros(1))

    def encode(self, obs: Any, generator: Any = None) -> Any:
        self.seen = obs
        return {"state": obs[STATE][:, -1]}

    def features(self, encoded: Any) -> Tensor:
        return encoded["state"][:, :1]

    def step(self, prepared: Any, x: Tensor, i: int, n_steps: int) -> tuple[Tensor, Tensor | None]:
        clean = torch.cat([x[:, :1], x[:, :-1]], dim=1)
        return x + (clean - x) / (n_steps - i), torch.full((), 0.5) if self.is_stochastic else None

    def to_actions(self, encoded: Any, x: Tensor) -> Tensor:
        return self.gain * x[:, self.first :] + self.weight

    def noised(self, encoded: Any, actions: Tensor, noise: Tensor, i: int, n_steps: int) -> Tensor | None:
        if not self.knows_path:
            return None
        time = 1 - i / n_steps
        clean = torch.nn.functional.pad(actions / self.gain, (0, 0, self.first, 0))
        return time * noise + (1 - time) * clean

    def imitation_loss(self, encoded: Any, actions: Tensor, generator: Any) -> Tensor:
        raise NotImplementedError

    def action_parameters(self) -> list[nn.Parameter]:
        return [self.weight]


class WrongShape(Follower):
    """It forgets to cut a chunk."""

    first = 1

    def to_actions(self, encoded: Any, x: Tensor) -> Tensor:
        return torch.cat([x, x])


class Broken(Follower):
    """It fails in a step."""

    def step(self, prepared: Any, x: Tensor, i: int, n_steps: int) -> tuple[Tensor, Tensor | None]:
        raise IndexError("no such row")


SPEC = Spec({STATE: Feature((2,))}, (-1.0, -1.0), (1.0, 1.0), ("reach",), 100.0)
LIMITS = Limits(low=(-1.0,) * 2, high=(1.0,) * 2, max_change=(0.25,) * 2, still=(0.0,) * 2, max_age_s=60.0)
CONFIG = RobotConfig(robot="fake", task="reach", hz=100.0, max_steps=30, n_action_steps=3, limits=LIMITS)


def fake(**changes: Any) -> FakeRobot:
    """Return a robot of two joints that waits for its commands."""
    robot = FakeRobot(**{"state": ("joint.0", "joint.1"), "action": ("joint.0", "joint.1"), **changes})
    robot.real_time = False  # type: ignore[attr-defined]  # the machine may be busy
    return robot


def act(pilot: DenoiserPilot, held: Tensor, n_held: int, noise: Tensor | None = None) -> Tensor:
    """Return a chunk (chunk_size, action_dim); `held` is (chunk_size, action_dim)."""
    if noise is None:
        noise = torch.zeros(1, *pilot.noise_shape)
    obs = {STATE: torch.zeros(1, 1, pilot.spec.state_dim), "task": torch.zeros(1, dtype=torch.long)}
    return pilot.act(obs, noise, held.unsqueeze(0), torch.tensor([n_held]))[0]


def test_held_actions_are_returned_exactly_and_the_rest_continues_them() -> None:
    held = torch.full((SIZE, 2), 0.3)
    held[3:] = 7.0  # not held, so it must not matter
    chunk = act(DenoiserPilot(Follower(), SPEC), held, 3)
    assert torch.equal(chunk[:3], held[:3])
    # The chain starts at 0. Before steps 0 to 3 the held rows are 0, 1/4, 2/4 and 3/4 of .15. Row 3 goes a 4th, 3rd,
    # 2nd and all of the way to the row before it: at last to 3/4 of .15, twice that as an action.
    assert chunk[3].tolist() == pytest.approx([0.225, 0.225])
    # Row 4 follows row 3, which is 0, 0, 1/12 and 7/24 of .15 before the four steps.
    assert chunk[4].tolist() == pytest.approx([0.3 * 7 / 24] * 2)


def test_the_rest_does_not_know_held_actions_without_a_path() -> None:
    noise = torch.randn(1, 1, SIZE, 2, generator=torch.Generator().manual_seed(0)) / 4
    pilot, held = DenoiserPilot(Follower(knows_path=False), SPEC), torch.full((SIZE, 2), 0.3)
    free, chunk = (act(pilot, held, n, noise) for n in (0, 3))
    assert torch.equal(chunk[:3], held[:3]) and torch.equal(chunk[3:], free[3:])


def test_rows_of_the_past_are_not_held() -> None:
    pilot = DenoiserPilot(Follower(first=2), SPEC)
    assert pilot.noise_shape == (1, SIZE + 2, 2) and pilot.chunk_size == SIZE
    chunk = act(pilot, torch.full((SIZE, 2), 0.3), 1)
    assert chunk[0].tolist() == pytest.approx([0.3] * 2) and chunk[1].tolist() == pytest.approx([0.225] * 2)


def test_a_stochastic_sampler_gets_the_noise_of_each_step() -> None:
    denoiser = Follower(gain=1.0)
    denoiser.is_stochastic = True
    pilot = DenoiserPilot(denoiser, SPEC, n_denoising_steps=2)
    assert pilot.noise_shape == (3, SIZE, 2)
    noise = torch.zeros(1, 3, SIZE, 2)
    noise[:, 2] = 0.4
    assert act(pilot, torch.zeros(SIZE, 2), 0, noise).flatten().tolist() == pytest.approx([0.2] * 16)


def test_actions_are_clamped_to_their_bounds() -> None:
    noise = torch.full((1, 1, SIZE, 2), 3.0)
    assert (act(DenoiserPilot(Follower(), SPEC), torch.zeros(SIZE, 2), 0, noise) == 1).all()


def test_the_state_of_a_robot_is_split_as_the_network_reads_it() -> None:
    denoiser = Follower()
    denoiser.reads = {STATE: Feature((2,)), ENVIRONMENT_STATE: Feature((3,))}
    names = ("hand.0", "hand.1", "cup.0", "cup.1", "cup.2")
    pilot, config = fit_to_robot(denoiser, "mine", CONFIG, fake(state=names))
    assert config.map.state == names and pilot.spec.slices == {"hand": slice(0, 2), "cup": slice(2, 5)}
    assert denoiser.spec.features[ENVIRONMENT_STATE].slices == {"cup": (0, 3)}
    obs = {STATE: torch.arange(5.0).view(1, 1, 5), "task": torch.tensor([0])}
    pilot.act(obs, torch.zeros(1, *pilot.noise_shape), torch.zeros(1, SIZE, 2), torch.tensor([0]))
    assert denoiser.seen[STATE].tolist() == [[[0, 1]]] and denoiser.seen[ENVIRONMENT_STATE].tolist() == [[[2, 3, 4]]]


def test_parts_of_a_state_are_runs_of_numbered_names() -> None:
    assert slices_of(("a.0", "a.1", "grip", "b.pos.0", "a.2")) == {"a": (0, 2), "b.pos": (3, 4)}
    assert slices_of(("shoulder.pos", "elbow.pos")) == {}


def test_joints_with_a_name_each_are_the_part_state() -> None:
    """So `limits.start` can name them, where actions are positions."""
    denoiser = Follower()
    denoiser.reads = {STATE: Feature((2,)), ENVIRONMENT_STATE: Feature((2,))}
    robot = fake(state=("shoulder.pos", "elbow.pos", "cup.x", "cup.y"))
    limits = replace(LIMITS, still=(), start=STATE)
    pilot, _ = fit_to_robot(denoiser, "mine", replace(CONFIG, limits=limits), robot)
    assert pilot.spec.slices == {STATE: slice(0, 2)}


def test_commands_stay_within_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its actions are far beyond all bounds, and the sign changes with each chunk."""
    monkeypatch.chdir(tmp_path)
    robot = fake()
    pilot, config = fit_to_robot(Follower(gain=100.0, knows_path=False), "mine", CONFIG, robot)
    (lived,) = run_session(pilot, config, say=lambda line: None, robot=robot)
    sent = np.array([[*action.values()] for action in robot.sent])
    assert lived.reason == "30 steps" and len(sent) > 30
    assert np.abs(sent).max() == 1 and np.abs(np.diff(sent, axis=0)).max() <= 0.25 + 1e-9
    (episode,) = EpisodeStore("runs/robot/fake").load()
    assert episode.task == "reach" and episode.action.numpy() == pytest.approx(sent[:30], abs=1e-6)


def test_what_the_robot_says_is_used_unless_the_config_says_another() -> None:
    robot = fake(state=("joint.0", "joint.1"), action=("a", "b"))
    robot.control_hz, robot.instructions = 25.0, {"reach": "Go there."}  # type: ignore[attr-defined]
    pilot, config = fit_to_robot(Follower(), "mine", replace(CONFIG, hz=0.0), robot)
    assert (config.hz, config.map.action, pilot.spec.control_hz) == (25.0, ("a", "b"), 25.0)
    assert pilot.spec.action_low == LIMITS.low and pilot.denoiser.spec.instruction("reach") == "Go there."
    changed = replace(CONFIG, instruction="Stay.", map=RobotMap(state=("joint.1", "joint.0")))
    pilot, config = fit_to_robot(Follower(), "mine", changed, robot)
    assert (pilot.spec.instruction("reach"), config.map.state) == ("Stay.", ("joint.1", "joint.0"))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"task": ""}, "task=: a policy that you bring does not say which tasks it knows; name one, such as task=push"),
        ({"hz": 0.0}, "hz=0: neither the policy nor the robot says the rate; set it to that of the recorded episodes"),
        (
            {"limits": Limits()},
            "limits.low=[]: expected 2 finite numbers, one for each action; there is no start without",
        ),
        (
            {"limits": replace(LIMITS, low=(-1.0, 0.0), high=(1.0, 0.0))},
            "limits: action 1 is from 0 to 0; for this policy, choose low below high",
        ),
        (
            {"map": RobotMap(state=("joint.0",))},
            "map.state: mine reads 2 numbers, and there are 1: joint.0; name those that it reads, in the order of",
        ),
    ],
)
def test_what_is_not_known_is_asked_for(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as refused:
        fit_to_robot(Follower(), "mine", replace(CONFIG, **changes), fake())
    assert str(refused.value).startswith(line)


@pytest.mark.parametrize(
    ("reads", "line"),
    [
        (
            {STATE: Feature((2,)), "images.top": Feature((4, 4, 3), dtype="uint8")},
            "map.images: mine reads 'images.top', and the robot's cameras are none; name one with "
            "map.images.top=CAMERA, or add it to the robot, in the simulated one with 'params.cameras={top: {}}'",
        ),
        (
            {"touch": Feature((2,))},
            "mine reads 'touch', which a robot does not give; expected state, environment_state",
        ),
        ({}, "mine reads no 'state', which the limits of a robot need; add it to `reads` of the policy"),
    ],
)
def test_what_a_robot_does_not_give_is_named(reads: dict[str, Feature], line: str) -> None:
    denoiser = Follower()
    denoiser.reads = reads
    with pytest.raises(UserError) as refused:
        fit_to_robot(denoiser, "mine", CONFIG, fake())
    assert str(refused.value).startswith(line)


def test_a_policy_that_fails_is_refused_before_the_robot_is_connected() -> None:
    robot = fake()
    with pytest.raises(
        UserError, match=r"policy=mine: the policy returned actions of shape \[2, 9, 2\], expected \[1, 8,"
    ):
        fit_to_robot(WrongShape(first=1), "mine", CONFIG, robot)
    with pytest.raises(UserError, match=r"policy=mine raised IndexError: no such row; see .*test_brought.py:\d+"):
        fit_to_robot(Broken(), "mine", CONFIG, robot)
    assert not robot.is_connected and not robot.sent


ROBOT = ["robot=fake", "params.state=[joint.0,joint.1]", "params.action=[joint.0,joint.1]", "hz=200", "task=reach"]
ROBOT += ["limits.low=-1,-1", "limits.high=1,1", "limits.max_change=1,1", "limits.still=0,0", "limits.max_age_s=4"]
ROBOT += ["max_steps=5", "max_late=1000"]


def test_a_class_of_your_own_runs_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rl.deploy.loop.PERIODS", 1000)  # the machine may be busy
    denoiser, own = Follower(), f"policy={Path(__file__)}:Follower"
    denoiser.weight.data += 0.5
    save_denoiser(tmp_path / "mine" / "checkpoints" / "last", denoiser, PolicyConfig("x.py:Follower"), {}, "")
    assert cli.main(["deploy", "mine", "run", *ROBOT, own]) == 0
    said = capsys.readouterr().out
    assert "mine: task reach, 'reach', 200 Hz\n" in said and "episode 1: 5 commands, 5 steps" in said
    assert cli.main(["deploy", "mine", "run", *ROBOT]) == 2
    line = "mine: it was trained from a class of your own; name that with policy=FILE.py:Class"
    assert capsys.readouterr().err == f"wamtune: {line}\n"
    assert cli.main(["deploy", "mine", "export"]) == 2
    line = "deploy mine export: only wamtune's own policies are exported; this one runs from its checkpoint, with "
    line += "wamtune deploy mine run, or on another computer with wamtune serve mine"
    assert capsys.readouterr().err == f"wamtune: {line}\n"
    assert cli.main(["deploy", "mine", "compare", "new", *ROBOT, own, "n_episodes=1", "episodes=pairs"]) == 0
    assert "champion 0 %, challenger 0 % of 1 pairs" in capsys.readouterr().out
    assert cli.main(["deploy", "mine", "run", *ROBOT, "policy=gaussian"]) == 2
    line = "policy=gaussian: expected FILE.py:Class or a policy of LeRobot; leave it out for mine"
    assert capsys.readouterr().err == f"wamtune: {line}\n"


def test_the_saved_weights_of_a_class_act(tmp_path: Path) -> None:
    from rl.verbs.acting import load_brought

    denoiser = Follower()
    denoiser.weight.data += 0.5
    save_denoiser(tmp_path / "checkpoints" / "last", denoiser, PolicyConfig("x.py:Follower"), {}, "")
    own = {"func": f"{Path(__file__)}:Follower", "params": {"gain": 0.0}}
    for name, expected in ((str(tmp_path), 0.5), ("new", 0.0)):
        pilot = DenoiserPilot(load_brought(name, own, "cpu", 0), SPEC)
        assert (act(pilot, torch.zeros(SIZE, 2), 0) == expected).all()


def test_a_sentence_for_a_policy_without_language_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["deploy", "metaworld-tuned", "run", "robot-sim", "instruction=Push it."]) == 2
    line = "instruction: metaworld-tuned knows its tasks by name and reads no sentence; leave it out"
    assert capsys.readouterr().err == f"wamtune: {line}\n"
