"""A robot whose policy is at the other end of a line: as if it were here, and safe when the line is not."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.hostile_messages import KINDS
from rewards.errors import UserError
from rl.deploy import loop, remote_client, remote_pilot, session
from rl.deploy.loop import Lived
from rl.deploy.pilots import Decider, Pilot, load_pilot
from rl.deploy.planner import Planner
from rl.deploy.remote_client import BadAnswer, Client, Refused, pack
from rl.deploy.remote_pilot import RemotePilot, is_remote
from rl.deploy.robot_config import RobotConfig
from rl.deploy.safety import Limits
from rl.deploy.served import Served
from rl.deploy.server import Endpoint, serving
from rl.deploy.session import run_session
from rl.policies.wam import ModelPilot
from rl.robots.fake import FakeRobot
from tests.rl.deploy.test_planner import Slow
from tests.rl.deploy.test_remote_client import ABOUT, Liar
from world_model.spec import Feature, Spec
from world_model.wam.model import WorldActionModel

LIMITS = Limits(low=(-1.0,) * 2, high=(1.0,) * 2, max_change=(0.5,) * 2, still=(0.0,) * 2, max_age_s=4.0)
N_HOSTILE = 200


@pytest.fixture
def robot(trained: WorldActionModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRobot:
    """A robot that waits for its commands, so that nothing depends on how busy the machine is."""
    monkeypatch.chdir(tmp_path)
    robot = FakeRobot(trained.spec)
    robot.real_time = False  # type: ignore[attr-defined]
    monkeypatch.setattr(loop, "PERIODS", 1000)
    monkeypatch.setattr(session, "make_robot", lambda name, params, task: robot)
    return robot


@pytest.fixture
def served(trained: WorldActionModel) -> Served:
    return Served(ModelPilot(trained, 2), "tiny", "ab" * 32)


@pytest.fixture
def url(served: Served) -> Iterator[str]:
    with serving(served, Endpoint()) as url:
        yield url


def config(**changes: Any) -> RobotConfig:
    fields = {"robot": "fake", "task": "reach", "hz": 100.0, "max_steps": 12, "n_action_steps": 2, "limits": LIMITS}
    return RobotConfig(**{**fields, **changes})


def run(pilot: Pilot, **changes: Any) -> Lived:
    (lived,) = run_session(pilot, config(**changes), say=lambda line: None)
    return lived


def commands(robot: FakeRobot) -> np.ndarray:
    return np.array([[*action.values()] for action in robot.sent])


def check_limits(robot: FakeRobot) -> None:
    sent = commands(robot)
    if len(sent):
        assert (np.abs(sent) <= 1).all() and (np.abs(np.diff(sent, axis=0, prepend=0)) <= 0.5 + 1e-9).all()


def test_a_session_is_the_same_as_with_the_policy_here(served: Served, url: str, robot: FakeRobot) -> None:
    here = run(served.pilot)
    expected = commands(robot)
    robot.sent.clear()
    robot.values = dict.fromkeys(robot.state, 0.0)
    pilot = load_pilot(url, 2)
    assert isinstance(pilot, RemotePilot) and pilot.spec == served.pilot.spec
    assert str(pilot) == f"{url}: tiny, sha256 abababababab" and pilot.latency_budget_s == 0.2
    there = run(pilot, episodes="there")
    assert (commands(robot) == expected).all() and len(expected) == 13
    assert [here.reason, there.reason] == ["12 steps"] * 2
    assert pilot.latency_s(2) > 0
    pilot.close()


def test_a_url_is_the_name_of_a_server() -> None:
    assert is_remote("ws://gpu-box:8000") and is_remote("wss://gpu-box") and not is_remote("runs/ws://x")
    with pytest.raises(UserError, match=r"^ws://127\.0\.0\.1:1: there is no server .*; start wamtune serve there, or"):
        load_pilot("ws://127.0.0.1:1", 2)


def test_the_token_is_in_the_environment(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(served, Endpoint(token="secret")) as url:
        with pytest.raises(UserError, match="the token is missing or wrong"):
            RemotePilot(url)
        monkeypatch.setenv("WAMTUNE_TOKEN", "secret")
        RemotePilot(url).close()


def given(pilot: Pilot, n: int = 1) -> tuple[Any, ...]:
    obs = {"state": torch.randn(n, 2, 4), "task": torch.zeros(n, dtype=torch.long)}
    noise = torch.randn(n, *pilot.noise_shape)
    return obs, noise, torch.zeros(n, 4, 2), torch.zeros(n, dtype=torch.long)


def test_a_line_that_comes_back_is_used_again(served: Served) -> None:
    """The same server on the same port: the request is sent again, and answered the same."""
    with ExitStack() as first:
        url = first.enter_context(serving(served, Endpoint()))
        pilot, asked = RemotePilot(url), given(served.pilot)
        expected = served.pilot.act(*asked)
        assert torch.equal(pilot.act(*asked), expected)
    with serving(served, Endpoint(port=int(url.rpartition(":")[2]))):
        assert torch.equal(pilot.act(*asked), expected) and pilot.trouble == ""
    other = replace(served, sha256="cd" * 32)
    with serving(other, Endpoint(port=int(url.rpartition(":")[2]))):
        with pytest.raises(BadAnswer, match="the server has another policy than before"):
            pilot.act(*asked)


def test_a_lost_line_stops_the_robot(served: Served, robot: FakeRobot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server goes away in the middle of an episode; the robot ends standing still, and the reason is said."""
    monkeypatch.setattr(remote_pilot, "PATIENCE_S", 0.1)
    with ExitStack() as server:
        pilot = RemotePilot(server.enter_context(serving(served, Endpoint())))
        observe = robot.get_observation

        def get_observation() -> dict[str, Any]:
            if len(robot.sent) == 6:
                server.close()
            return observe()

        robot.get_observation = get_observation  # type: ignore[method-assign]
        lived = run(pilot, max_steps=100)
    assert lived.stopped and not lived.ended and not lived.failed
    assert lived.reason.startswith(f"{pilot.url}: there is no server")
    assert 6 <= len(lived.sent) < 12 and (commands(robot)[-1] == 0).all()
    check_limits(robot)


def test_while_the_line_is_lost_a_robot_in_real_time_holds_and_then_stops(served: Served, robot: FakeRobot) -> None:
    """The rest of the plan is executed, then it stands still for `max_late` commands, and then it stops."""
    del robot.real_time  # type: ignore[attr-defined]
    over = threading.Event()
    pilot = RemotePilot.__new__(RemotePilot)
    vars(pilot).update(spec=served.pilot.spec, n_context_frames=2, chunk_size=4, noise_shape=served.pilot.noise_shape)
    calls: list[int] = []

    def act(obs: Any, noise: Any, held: Any, n_held: Any) -> torch.Tensor:
        calls.append(len(calls))
        if len(calls) > 2:  # the first two are those of the beginning
            pilot.trouble = "ws://robot: the line is lost"
            over.wait(60)  # much longer than the session
            raise ConnectionError(pilot.trouble)
        return torch.full((1, 4, 2), 0.3)

    pilot.act = act  # type: ignore[method-assign]
    shut = loop.Gate.shut

    def shut_and_let_go(gate: Any, reason: str) -> None:
        shut(gate, reason)
        over.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Gate, "shut", shut_and_let_go)
        lived = run(pilot, hz=50.0, max_late=3, max_steps=1000)
    assert lived.reason == "there was no plan for 4 commands in a row; ws://robot: the line is lost"
    sent = commands(robot)
    assert sent[:4, 0] == pytest.approx([0.3] * 4) and (sent[4:] == 0).all() and len(sent) >= 7
    assert lived.stopped and lived.n_late == 4


def test_a_request_that_is_refused_is_one_line(url: str, served: Served, robot: FakeRobot) -> None:
    pilot = RemotePilot(url)
    asked = given(served.pilot, n=17)
    with pytest.raises(UserError, match=r"act: task: expected an index for each of 1 to 16 rows, see max_rows"):
        pilot.act(*asked)


class Wave:
    """A policy that wants a sine, each time another one, a bit higher or lower, and goes on from what is held."""

    spec = Spec({"state": Feature((1,))}, (-2.0,), (2.0,), ("wave",), control_hz=20.0)
    n_context_frames, chunk_size, noise_shape = 1, 16, (1,)

    def act(self, obs: Any, noise: torch.Tensor, held: torch.Tensor, n_held: torch.Tensor) -> torch.Tensor:
        steps, n = torch.arange(self.chunk_size), int(n_held)
        chunk = torch.sin((obs["state"][0, -1, 0] + steps) / 3) + 0.2 * noise[0]
        if n > 0:
            chunk += (held[0, n - 1, 0] - chunk[n - 1]) * 0.7 ** (steps - n + 1).clamp(min=0)
            chunk[:n] = held[0, :n, 0]
        return chunk.view(1, -1, 1)


class SometimesLate(Slow):
    """An answer takes a step of 50 ms, and every tenth one takes 500 ms."""

    def __init__(self) -> None:
        super().__init__(1.0, period=0.05)
        self.n = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.n += 1
        self.steps = 10.0 if self.n % 10 == 0 else 1.0
        return super().submit(fn, *args, **kwargs)


class AsTheyCome(Planner):
    """Takes each plan as it comes: nothing is held in it, and nothing blended."""

    def __init__(self, decide: Any, *others: Any) -> None:
        super().__init__(lambda obs, held: decide(obs, held[:0]), *others)

    def _splice(self, k: int) -> None:
        assert self._next is not None
        actions, _ = self._next[1].result()
        super()._splice(k)
        self.plan.actions[:] = actions


def seam(kind: type[Planner]) -> float:
    """Return the change of the action where a new plan is entered, relative to that from step to step elsewhere."""
    with serving(Served(Wave(), "wave", ""), Endpoint()) as url:
        executor = SometimesLate()
        planner = kind(Decider(RemotePilot(url), "wave", seed=0), 4, 0.05, executor, executor.clock)
        planner.begin({"state": np.zeros((1, 1))})
        actions, entered = [], []
        for k in range(1000):
            before = planner.plan
            actions.append(planner.step(k, {"state": np.full((1, 1), float(k))}))
            entered.append(planner.plan is not before)
            executor.tick()
    assert all(action is not None for action in actions) and sum(entered) > 150
    changes, at = np.abs(np.diff(np.array(actions)[:, 0])), np.array(entered[1:])
    return float(changes[at].mean() / changes[~at].mean())


def test_late_answers_are_spliced_without_a_seam() -> None:
    """Time is counted by hand. Plans as they come have a larger seam, so the test can tell."""
    assert seam(Planner) <= 1.2 < seam(AsTheyCome)


def test_hostile_answers(trained: WorldActionModel, robot: FakeRobot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the server says, each session ends, and no command is beyond the limits."""
    monkeypatch.setattr(remote_pilot, "PATIENCE_S", 0.05)
    monkeypatch.setattr(remote_client, "CLOSE_S", 0.05)
    liar, spec = Liar(), trained.spec
    about = {**ABOUT, "spec": spec.to_dict(), "noise_shape": list(ModelPilot(trained, 2).noise_shape)}
    ends = []
    for i in range(N_HOSTILE):
        draw = random.Random(f"client {i}")
        kind = KINDS[i % len(KINDS)]
        liar.greeting = kind(about, draw, 100_000) if i % 4 == 0 else pack(about)
        n_good = draw.randrange(8)

        def answer(request: Any, draw: random.Random = draw, kind: Any = kind, n_good: int = n_good) -> list[Any]:
            numbers = np.random.default_rng(draw.getrandbits(32)).normal(size=(1, 4, 2))
            wild = np.float32(10.0 ** draw.randrange(-2, 38)) * numbers
            good = {"id": request["id"], "actions": wild.astype("<f4")}
            return [pack(good) if request["id"] <= n_good else kind(good, draw, 100_000)] * draw.choice([1, 1, 3])

        liar.answer = answer
        robot.sent.clear()
        try:
            pilot = RemotePilot(liar.url, lambda url: Client(url, timeout_s=0.05, max_bytes=100_000))
            ends.append(run(pilot, dry_run=False, episodes=f"{i}").reason)
            pilot.close()
        except (UserError, Refused) as error:
            assert "\n" not in str(error)
            ends.append("refused")
        check_limits(robot)
    liar.close()
    assert len(ends) == N_HOSTILE and "12 steps" in ends and "refused" in ends and len(set(ends)) > 5
