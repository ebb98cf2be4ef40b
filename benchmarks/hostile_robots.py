"""Run sessions with faulty robots and policies; count commands outside the limits and lost episodes.

    python benchmarks/hostile_robots.py [N] [SEED]

N sessions (5,000 by default) of up to three episodes run through the real session, loop, guard and store. Half of them
have robots with speed commands, half with position commands; each has a camera. The faults of a session and their times
are drawn from SEED: answers in motor ticks, degrees, measured positions, 1e39, NaN, text and wrong sizes; observations
of the same kinds, too old or from the future; images of other sizes, types and times; exceptions; lost commands;
get_observation, send_action and reset that hang; policies with arbitrary actions; STOP files and signals at any moment;
a full disk; copies of shards.

Every command that arrives is compared with `low`, `high` and `max_change`, including the commands after a stop, which
slow the robot down. Every episode that reached its own end must be on disk. Prints one table; the exit code is 1 if one
of its last lines is not 0.
"""

from __future__ import annotations

import errno
import math
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards.errors import UserError
from rl.deploy import calls, loop, safety, session
from rl.deploy.loop import Lived
from rl.deploy.robot_config import RobotConfig
from rl.deploy.safety import Limits
from rl.robots.fake import FakeRobot
from rl.runs.progress import Progress
from world_model import files
from world_model.data.episodes import EpisodeStore
from world_model.env import Obs
from world_model.spec import Feature, Spec

SPEC = Spec(
    {
        "state": Feature((4,), "m", {"joints": (0, 2), "goal": (2, 4)}),
        "images.front": Feature((8, 8, 3), dtype="uint8"),
    },
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    tasks=("reach",),
    control_hz=50.0,
)
TICKS = 4096 / (2 * math.pi)
ROUNDING = 1e-9
ALARM_S = 60
"""Seconds after which a session counts as not ended."""

ANSWERS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "the command": lambda c, measured: c,
    "nothing": lambda c, measured: None,
    "half of it": lambda c, measured: 0.5 * c,
    "ticks": lambda c, measured: np.round(2048 + TICKS * c),
    "degrees": lambda c, measured: np.degrees(c),
    "measured": lambda c, measured: measured,
    "1e39": lambda c, measured: np.full(2, 1e39),
    "NaN": lambda c, measured: np.full(2, np.nan),
    "inf": lambda c, measured: np.full(2, -np.inf),
    "text": lambda c, measured: [str(v) for v in c],
    "true": lambda c, measured: [True, False],
    "one number": lambda c, measured: c[:1],
    "three numbers": lambda c, measured: [c, 0.0],
    "a huge integer": lambda c, measured: [10**400, 0],
}
OBSERVATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "NaN": lambda o: {**o, "goal.0": float("nan")},
    "inf": lambda o: {**o, "joints.0": float("inf")},
    "1e39": lambda o: {**o, "goal.1": 1e39},
    "none": lambda o: {**o, "joints.1": None},
    "text": lambda o: {**o, "goal.0": "0.1"},
    "true": lambda o: {**o, "goal.0": True},
    "an array": lambda o: {**o, "goal.0": np.zeros(3)},
    "too few": lambda o: {k: v for k, v in o.items() if k != "joints.0"},
    "a list": lambda o: [*o.values()],
    "a huge integer": lambda o: {**o, "goal.0": 10**400},
    "stale": lambda o: {**o, "timestamp": o["timestamp"] - 100},
    "of the future": lambda o: {**o, "timestamp": o["timestamp"] + 100},
    "a time that is text": lambda o: {**o, "timestamp": "now"},
    "no image": lambda o: {k: v for k, v in o.items() if k != "front"},
    "an image as text": lambda o: {**o, "front": "image"},
    "an image of floats": lambda o: {**o, "front": o["front"] / 255},
    "a smaller image": lambda o: {**o, "front": o["front"][:4, :4]},
    "a larger image": lambda o: {**o, "front": np.zeros((9, 8, 3), np.uint8)},
    "an image without colours": lambda o: {**o, "front": o["front"][..., 0]},
    "an old image": lambda o: {**o, "timestamps": {"front": o["timestamp"] - 100}},
    "an image of the future": lambda o: {**o, "timestamps": {"front": o["timestamp"] + 100}},
    "a time of an image that is text": lambda o: {**o, "timestamps": {"front": "now"}},
    "times of images that are a list": lambda o: {**o, "timestamps": [o["timestamp"]]},
    "success as text": lambda o: {**o, "success": "False"},
    "elsewhere": lambda o: {**o, "joints.0": 5.0, "joints.1": -5.0},
    "an exception": lambda o: 1 / 0,
}
CALLS = ("get_observation", "send_action", "reset")


class HostilePilot:
    """A policy with arbitrary actions, sometimes invalid ones."""

    spec, n_context_frames, chunk_size, noise_shape = SPEC, 1, 8, (1,)

    def __init__(self, draw: random.Random) -> None:
        self.random = np.random.default_rng(draw.getrandbits(32))
        self.scale = draw.choice([0.1, 1.0, 10.0, 1e6])
        self.evil = draw.choice([float("nan"), float("inf"), 1e38]) if draw.random() < 0.1 else None

    def act(self, obs: Obs, noise: Tensor, held: Tensor, n_held: Tensor) -> Tensor:
        """See `rl.deploy.pilots.Pilot`."""
        actions = self.scale * self.random.standard_normal((1, self.chunk_size, 2))
        if self.evil is not None and self.random.random() < 0.2:
            actions[0, self.random.integers(self.chunk_size), 0] = self.evil
        return torch.tensor(actions, dtype=torch.float32)


class HostileRobot(FakeRobot):
    """A robot that checks every command it receives, and has the faults that were drawn for it."""

    def __init__(self, draw: random.Random, limits: Limits) -> None:
        super().__init__(SPEC)
        self.limits, self.in_positions = limits, not limits.still
        self.answer = ANSWERS[draw.choice([*ANSWERS, *["the command"] * len(ANSWERS)])]
        self.answers_from = draw.randrange(60) if draw.random() < 0.5 else 0
        self.bad = OBSERVATIONS[draw.choice([*OBSERVATIONS])] if draw.random() < 0.35 else None
        self.bad_from, self.succeeds_at = draw.randrange(1, 60), draw.randrange(1, 60)
        self.refuses = {draw.randrange(1, 60) for _ in range(draw.choice([0, 0, 1, 3]))}
        self.refuses_from = draw.randrange(1, 60) if draw.random() < 0.05 else 10**9
        self.hangs_in = draw.choice(CALLS) if draw.random() < 0.1 else ""
        self.hangs_at = 1 if self.hangs_in == "reset" else draw.randrange(1, 20)
        self.real_time = bool(self.hangs_in)  # without real time, the watchdog would take too long to notice a hang
        self.release, self.hung_s, self.still_s = threading.Event(), math.nan, math.nan
        self.n: Counter[str] = Counter()  # calls by name, and violations by kind
        self.last: np.ndarray | None = None if self.in_positions else np.array(limits.still)
        self.within = 0  # calls that have not returned
        self.moment: Callable[[], None] = lambda: None  # requests a stop if its drawn time has come
        self.stop: Callable[[], None] = lambda: None  # requests a stop now

    def _enter(self, name: str) -> None:
        self.n[name] += 1
        self.moment()
        if name == self.hangs_in and self.n[name] == self.hangs_at:
            self.hung_s = time.monotonic()
            if name == "reset":  # reset has no time limit, so request a stop
                threading.Timer(0.05, self.stop).start()
            self.release.wait(ALARM_S)

    def reset(self, scene: int) -> None:
        """Begin an episode at the present position."""
        self.within += 1
        try:
            self._enter("reset")
            self.last = None if self.in_positions else self.last
        finally:
            self.within -= 1

    def get_observation(self) -> dict[str, Any]:
        """Return an observation, or a faulty one."""
        self.within += 1
        try:
            self._enter("get_observation")
            n = self.n["get_observation"]
            observation = {**super().get_observation(), "success": n % 61 >= self.succeeds_at}
            if self.bad is not None and n >= self.bad_from:
                observation = self.bad(observation)
            self.reported = observation
            return observation
        finally:
            self.within -= 1

    def send_action(self, action: dict[str, Any]) -> Any:
        """Execute a command, or lose it."""
        self.within += 1
        try:
            n, command = self.n["send_action"] + 1, np.array([*action.values()])
            is_lost = n in self.refuses or n >= self.refuses_from
            if not is_lost:
                self._watch(command)  # check it when it is sent, since a command that hangs takes effect later
            self._enter("send_action")
            if is_lost:
                raise ConnectionError("a packet was lost")
            super().send_action(action)
            if self.in_positions:
                # The measured positions lag behind.
                self.values |= {"joints.0": command[0] - 0.1, "joints.1": command[1] + 0.1}
            measured = np.array([self.values["joints.0"], self.values["joints.1"]]) * 0.5
            taken = self.answer(command, measured) if n >= self.answers_from else command
            return None if taken is None else dict(zip(action, taken, strict=False))
        finally:
            self.within -= 1

    def _watch(self, command: np.ndarray) -> None:
        if self.hung_s == self.hung_s and self.still_s != self.still_s:
            self.still_s = time.monotonic()
        low, high, most = (np.array(v) for v in (self.limits.low, self.limits.high, self.limits.max_change))
        before = self.last
        if before is None:  # with position commands, the first one is compared with the measured positions
            before = np.array([self.reported["joints.0"], self.reported["joints.1"]])
        self.last = command
        self.n["commands"] += 1
        if not ((low - ROUNDING <= command) & (command <= high + ROUNDING)).all():
            self.n["beyond low, high"] += 1
        if not (np.abs(command - before) <= most + ROUNDING).all():
            self.n["beyond max_change"] += 1


@dataclass
class Session:
    """One session with drawn faults; `run` counts its results."""

    draw: random.Random
    folder: Path

    def run(self) -> Counter[str]:
        """Run the session, then release the calls that hang."""
        draw = self.draw
        limits = hostile_limits(draw)
        robot, pilot = HostileRobot(draw, limits), HostilePilot(draw)
        self.arm_stop(robot)
        recorded = self.folder / "recorded"
        disk_is_full = draw.random() < 0.03
        config = RobotConfig(
            robot="fake", task="reach", hz=100.0, n_episodes=3, max_steps=draw.randrange(1, 25), n_action_steps=4,
            limits=limits, max_late=1000, episodes=str(recorded), stop_file=str(self.folder / "STOP"),
        )  # fmt: skip
        lived: list[Lived] = []
        n: Counter[str] = Counter()
        said: list[str] = []
        note, write = loop.Lived, files.write_synced
        loop.Lived = lambda: (lived.append(Lived()), lived[-1])[1]  # type: ignore[misc, assignment]
        files.write_synced = full if disk_is_full else write
        session.make_robot = lambda *given: robot  # type: ignore[assignment]
        signal.alarm(ALARM_S)
        try:
            session.run_session(pilot, config, said.append)
        except TimeoutError:
            n["did not end"] += 1
        except (UserError, ZeroDivisionError, ConnectionError) as error:
            said.append(str(error))
            n["ended with an error"] += 1
        finally:
            signal.alarm(0)
            loop.Lived, files.write_synced = note, write
            robot.moment = lambda: None
            robot.release.set()
        last = time.monotonic() + 10
        while robot.within and time.monotonic() < last:
            time.sleep(0.001)
        # After a command that hung, the command to stand still is sent again; give it time to arrive.
        time.sleep(0.01 if robot.hangs_in == "send_action" else 0.0)
        return n + self.count(robot, lived, said)

    def arm_stop(self, robot: HostileRobot) -> None:
        """Draw whether, when and how a person stops it."""
        how, when = self.draw.choice(["STOP", signal.SIGINT, signal.SIGTERM]), self.draw.randrange(1, 120)
        stopped = [] if self.draw.random() < 0.6 else [1]  # not empty: no stop (any more)

        def stop() -> None:
            if how == "STOP":
                (self.folder / "STOP").touch()
            else:
                os.kill(os.getpid(), how)

        def moment() -> None:
            if not stopped and sum(robot.n[name] for name in CALLS) >= when:
                stopped.append(1)
                stop()

        robot.moment, robot.stop = moment, stop

    def count(self, robot: HostileRobot, lived: list[Lived], said: list[str]) -> Counter[str]:
        """Compare the finished episodes with those on disk, and add the robot's counts."""
        n: Counter[str] = Counter({"sessions": 1, "hangs": int(robot.hung_s == robot.hung_s)})
        for name in ("commands", "beyond low, high", "beyond max_change"):
            n[name] += robot.n[name]
        found = EpisodeStore(self.folder / "recorded").load()
        for place in re.findall(r"was written to (\S+) instead", " ".join(said)):
            found += EpisodeStore(place).load()
            n["written elsewhere"] += 1
        n["episodes"], n["stopped"] = len(lived), sum(not one.ended for one in lived)
        n["ended"] = sum(one.ended and bool(one.sent) for one in lived)
        n["on disk"] = len(found)
        n["lost"] = abs(n["ended"] - n["on disk"])
        low, high = (torch.tensor(v) for v in (robot.limits.low, robot.limits.high))
        n["recorded beyond"] = sum(not bool(((low <= e.action) & (e.action <= high)).all()) for e in found)
        if robot.hangs_in == "send_action" and robot.still_s == robot.still_s:
            n["late"] = int(1000 * (robot.still_s - robot.hung_s))
        return n


def hostile_limits(draw: random.Random) -> Limits:
    """Draw limits of a robot with speed or position commands."""
    high, change = draw.choice([0.5, 0.75, 1.0]), draw.choice([0.0625, 0.25, 0.5])
    low, high, change = (-high,) * 2, (high,) * 2, (change,) * 2  # type: ignore[assignment]
    how = {"still": (0.0, 0.0)} if draw.random() < 0.5 else {"start": "joints"}
    return Limits(low=low, high=high, max_change=change, max_age_s=30.0, **how)  # type: ignore[arg-type]


def full(path: Path, data: bytes) -> None:
    """Fail like a full disk, except in other folders."""
    if "recorded" in path.parts:
        raise OSError(errno.ENOSPC, "No space left on device")
    path.write_bytes(data)


def too_long(number: int, frame: Any) -> None:
    """Stop a session that does not end by itself."""
    raise TimeoutError("the session does not end")


def main() -> None:
    """Run the sessions, print the table."""
    n_sessions, seed = (int(word) for word in (*sys.argv[1:], *("5000", "0")[len(sys.argv) - 1 :]))
    torch.set_num_threads(1)
    calls.GRACE_S = safety.GRACE_S = 0.05  # short, since hanging calls last until the end of their session
    session.LET_GO_S = 0.5
    signal.signal(signal.SIGALRM, too_long)
    for number in (signal.SIGINT, signal.SIGTERM):  # ignore them between two sessions; SIGQUIT ends the benchmark
        signal.signal(number, lambda *_: None)
    rows: dict[str, Counter[str]] = {"speeds": Counter(), "positions": Counter()}
    late: list[int] = []
    with tempfile.TemporaryDirectory() as folder, Progress("session") as progress:
        os.environ["HOME"] = folder
        tempfile.tempdir = folder
        for i in range(n_sessions):
            one = Session(random.Random(f"{seed}, {i}"), Path(folder) / str(i))
            one.folder.mkdir()
            kind = "speeds" if hostile_limits(random.Random(f"{seed}, {i}")).still else "positions"
            n = one.run()
            if "late" in n:
                late.append(n.pop("late"))
            rows[kind] += n
            if bad := [f"{name}: {n[name]}" for name in BAD if n[name]]:
                print(f"session {i}: {', '.join(bad)}", flush=True)
            progress.update(i + 1, n_sessions, commands=sum(row["commands"] for row in rows.values()))
    print(table(rows))
    if late:
        late.sort()
        print(
            f"commands to stand still after a send that hung: {len(late)}, median {late[len(late) // 2]} ms (20 is due)"
        )
    sys.exit(any(row[name] for row in rows.values() for name in BAD))


SHOWN = (
    "sessions", "hangs", "ended with an error", "episodes", "stopped", "ended", "on disk", "written elsewhere",
    "commands",
)  # fmt: skip
BAD = ("lost", "recorded beyond", "beyond low, high", "beyond max_change", "did not end")


def table(rows: dict[str, Counter[str]]) -> str:
    """Return a line for each count; the counts that must be 0 come last."""
    names = [*rows, "all"]
    total = sum(rows.values(), Counter())
    lines = [f"| {'':<20} |" + "".join(f" {name:>9} |" for name in names)]
    lines.append("|" + "-" * 22 + "|" + "----------:|" * len(names))
    for name in (*SHOWN, *BAD):
        lines.append(f"| {name:<20} |" + "".join(f" {row[name]:>9,} |" for row in (*rows.values(), total)))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
