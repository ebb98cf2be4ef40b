"""Measure the robot control loop: the accuracy of its period, and the jump of commands between two chunks.

    python benchmarks/robot_loop.py [MINUTES [LATENCY_MS ...]]
    python benchmarks/robot_loop.py serve [MINUTES]
    python benchmarks/robot_loop.py cameras [MINUTES [POLICY]]

Runs the built-in checkpoint on the simulated robot at 20 Hz for MINUTES (1 by default), first without added latency,
then with 150 ms added to each plan, or with the given latencies. A seam is the change from one command to the next
where a new plan starts, relative to the change everywhere else. The table also shows the seam of plans that are neither
held nor blended. Run a training at the same time to see its effect on the period.

With `serve` the robot runs at 10 Hz, and the policy is at the other end of a line on this computer: `wamtune serve`,
first without added latency, then with 50 ms added to each plan, and with 500 ms in place of it to one in twenty.

With `cameras` the robot runs at 10 Hz with two cameras of 96 x 96 pixels, at 20 and 10 images a second, and a policy
that reads one of them (`metaworld-pixels-tuned`, or POLICY: an export, or the url of a server). Every episode is
recorded, to an episode store and to a LeRobot dataset with two videos. A command counts as missed if it comes more than
half a period late.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from rl.deploy.frames import Frame
from rl.deploy.loop import Lived, Loop
from rl.deploy.pilots import Decider, Pilot, load_pilot
from rl.deploy.planner import Planner
from rl.deploy.remote_pilot import RemotePilot
from rl.deploy.robot_config import RobotConfig
from rl.deploy.safety import Guard, Limits
from rl.deploy.served import Served
from rl.deploy.server import Endpoint, serving
from rl.deploy.session import run_session
from rl.envs.metaworld.robot import SimRobot
from rl.policies.wam import ModelPilot
from rl.robots.api import Interface, RobotMap
from world_model.wam.store import load_model

HZ, SERVED_HZ, TASK, STEPS = 20.0, 10.0, "push", 150

Latency = Callable[[], float]
"""Returns the seconds that are added to the next plan."""


def main() -> None:
    if sys.argv[1:2] == ["cameras"]:
        record_with_cameras(float(sys.argv[2]) if sys.argv[2:] else 1.0, (*sys.argv[3:], "metaworld-pixels-tuned")[0])
        return
    serves, words = sys.argv[1:2] == ["serve"], [word for word in sys.argv[1:] if word != "serve"]
    minutes, *latencies = [float(word) for word in words] or [1.0]
    torch.set_num_threads(1)
    pilot = ModelPilot(load_model("metaworld-tuned"), 2)
    if serves:
        draw = random.Random(0)
        late: dict[str, Latency] = {"none": lambda: 0.0, "50 ms": lambda: 0.05}
        late["50 ms, 5 % of plans 500 ms"] = lambda: 0.5 if draw.random() < 0.05 else 0.05
        with serving(Served(pilot, "metaworld-tuned", ""), Endpoint()) as url:
            measure(RemotePilot(url), SERVED_HZ, minutes, late)
        return
    measure(pilot, HZ, minutes, {f"{ms:.0f} ms": (lambda ms=ms: ms / 1000) for ms in latencies or (0.0, 150.0)})


def record_with_cameras(minutes: float, policy: str) -> None:
    """Print a table with one row: a session with two cameras that records everything."""
    torch.set_num_threads(1)
    n_episodes = max(1, round(60 * minutes * SERVED_HZ / STEPS))
    limits = Limits(
        low=(-1.0,) * 4,
        high=(1.0,) * 4,
        max_change=(2.0,) * 4,
        still=(0.0,) * 4,
        max_age_s=0.5,  # the arm measures itself ten times a second
        max_image_age_s=0.5,
        max_frozen_s=0.0,
    )
    cameras = {"front": {"hz": 20.0}, "side": {"azimuth": 90.0, "hz": 10.0}}
    params = {"cameras": cameras, "image_size": 96, "hz": SERVED_HZ}
    with tempfile.TemporaryDirectory() as folder:
        episodes, dataset = (str(Path(folder, name)) for name in ("episodes", "dataset"))
        config = RobotConfig(
            robot="sim",
            params=params,
            task=TASK,
            hz=SERVED_HZ,
            n_episodes=n_episodes,
            max_steps=STEPS,
            success="key",  # nobody types s, so every episode has all of its steps
            limits=limits,
            episodes=episodes,
            dataset=dataset,
            stop_file=str(Path(folder, "STOP")),
        )
        load = os.getloadavg()[0]
        lived = run_session(load_pilot(policy, 2), config, say=lambda line: print(line, file=sys.stderr, flush=True))
        size = sum(path.stat().st_size for path in Path(dataset).rglob("*.mp4"))
    if not lived[0].periods:
        raise SystemExit(f"the robot was stopped: {lived[0].reason}")
    assert all((np.abs(one.sent) <= 1).all() for one in lived if one.sent), "a command is beyond its limits"
    periods = np.array([period for one in lived for period in one.periods])
    off, n = np.abs(periods - 1 / SERVED_HZ), sum(len(one.sent) for one in lived)
    print(f"load of the machine: {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end, {os.cpu_count()} cores")
    print("| commands | without a plan or for an old image | period, median | 99 % off by | most | missed | videos |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    print(
        f"| {n} | {sum(one.n_late for one in lived)} | {1000 * np.median(periods):.2f} ms "
        f"| {1000 * np.quantile(off, 0.99):.2f} ms | {1000 * off.max():.2f} ms "
        f"| {int((periods > 1.5 / SERVED_HZ).sum())} | {size / 1e6:.1f} MB |"
    )
    if lived[-1].stopped:
        raise SystemExit(f"the robot was stopped: {lived[-1].reason}")


def measure(pilot: Pilot, hz: float, minutes: float, latencies: dict[str, Latency]) -> None:
    """Print a table with a row for each latency."""
    limits = Limits(low=(-1.0,) * 4, high=(1.0,) * 4, max_change=(2.0,) * 4, still=(0.0,) * 4, max_age_s=0.5)
    robot = SimRobot(TASK, hz=hz)
    robot.connect()
    interface = Interface(robot, pilot.spec, RobotMap(), hz)
    print("| latency added | commands | late | period, median | 99 % off by | missed | seam | plans as they come |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, latency in latencies.items():
        lived, seam = live(pilot, interface, robot, limits, latency, minutes, smooth=True, hz=hz)
        _, rough = live(pilot, interface, robot, limits, latency, min(minutes / 4, 1.0), smooth=False, hz=hz)
        periods = np.array([p for one in lived for p in one.periods])
        off = np.abs(periods - 1 / hz)
        n, late = sum(len(one.sent) for one in lived), sum(one.n_late for one in lived)
        assert all((np.abs(one.sent) <= 1).all() for one in lived), "a command is beyond its limits"
        print(
            f"| {name} | {n} | {late} | {1000 * np.median(periods):.2f} ms | {1000 * np.quantile(off, 0.99):.2f} ms "
            f"| {int((periods > 1.5 / hz).sum())} | {seam:.2f} | {rough:.2f} |",
            flush=True,
        )
    robot.disconnect()


def live(
    pilot: Pilot,
    interface: Interface,
    robot: SimRobot,
    limits: Limits,
    latency: Latency,
    minutes: float,
    smooth: bool,
    hz: float,
) -> tuple[list[Lived], float]:
    """Run episodes for some minutes; return them, and the change at seams relative to the change elsewhere."""
    entered: list[int] = []
    splice, lived = Planner._splice, []
    at_seams: list[float] = []
    elsewhere: list[float] = []

    def watched(planner: Planner, k: int) -> None:
        assert planner._next is not None
        as_it_is = planner._next[1].result()[0]
        splice(planner, k)
        if not smooth:  # take each plan as it is, without blending
            planner.plan.actions[:] = as_it_is
        entered.append(k)

    Planner._splice = watched  # type: ignore[method-assign]
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        robot.reset(len(lived))
        entered.clear()
        decide = Slow(Decider(pilot, TASK, len(lived)), latency, smooth)
        spec = pilot.spec
        guard = Guard(limits, spec.action_dim, spec.state_dim, spec.slices)
        one = Loop(interface, guard, decide, pilot.n_context_frames, 4, hz, STEPS, max_late=20).run()
        lived.append(one)
        changes = np.abs(np.diff(np.array(one.sent)[:, :3], axis=0)).mean(1)
        seams = {k - 1 for k in entered if 0 < k <= len(changes)}
        at_seams += [float(c) for i, c in enumerate(changes) if i in seams]
        elsewhere += [float(c) for i, c in enumerate(changes) if i not in seams]
    Planner._splice = splice  # type: ignore[method-assign]
    return lived, float(np.mean(at_seams) / np.mean(elsewhere))


class Slow:
    """A policy with added latency."""

    def __init__(self, decide: Decider, latency: Latency, smooth: bool) -> None:
        self.decide, self.latency, self.smooth = decide, latency, smooth

    def __call__(self, obs: Frame, held: np.ndarray) -> np.ndarray:
        """See `Decider`."""
        time.sleep(self.latency())
        return self.decide(obs, held if self.smooth else held[:0])


if __name__ == "__main__":
    main()
