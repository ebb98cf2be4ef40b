"""A session on a robot: connect, compare, run episodes, record each that ends, stand still."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewards.errors import UserError
from rl.deploy.loop import Judge, Lived, Loop, robot_says
from rl.deploy.pilots import Decider, ModelPilot, Pilot
from rl.deploy.robot_config import RobotConfig
from rl.deploy.robots import Interface, differences, make_robot
from rl.deploy.safety import Guard
from rl.deploy.stops import Stops
from world_model.dream_env import SURE
from world_model.episodes import EpisodeStore
from world_model.spec import Spec


def run_session(
    pilot: Pilot, config: RobotConfig, say: Callable[[str], None] = print, keys: bool = False
) -> list[Lived]:
    """Run the episodes of `config`; every one that ends is on disk before the next begins.

    Args:
        pilot: the policy.
        config: robot, limits and counts.
        say: hears a line for people.
        keys: whether a line on standard input stops the robot.

    Returns:
        What happened in each. A stop ends the session.

    Raises:
        UserError: there is no such robot or task, limits are missing, or the robot is not what the policy expects.
    """
    task, hz, spec = _task(pilot.spec, config), config.hz or pilot.spec.control_hz, pilot.spec
    stops = Stops(Path(config.stop_file), keys)
    if (reason := stops()) is not None:
        raise UserError(f"no start: {reason}; delete it first")
    guard = Guard(config.limits, spec.action_dim, spec.state_dim, spec.slices)
    store = EpisodeStore(config.episodes or f"runs/robot/{config.robot}")
    robot = make_robot(config.robot, config.params)
    robot.connect()
    lived: list[Lived] = []
    try:
        robot.calibrate()
        robot.configure()
        for what, expected, found in differences(robot, spec, config.map, hz):
            say(f"  {what:<24} the policy expects {expected:<20} the robot has {found}")
        interface = Interface(robot, spec, config.map, hz)
        with stops.signals():
            for i in range(config.n_episodes):
                if i > 0 and hasattr(robot, "reset"):
                    robot.reset()
                guard.begin()
                decide = Decider(pilot, task, config.seed + i)
                send = (lambda command: say(f"would send {np.round(command, 4).tolist()}")) if config.dry_run else None
                counts = pilot.n_context_frames, config.n_action_steps, hz, config.max_steps
                judge = make_judge(config.success, pilot, task, stops)
                one = Loop(interface, guard, decide, *counts, stops, config.max_late, send, judge).run()
                lived.append(one)
                say(f"episode {i + 1}: {len(one.sent)} commands, {one.reason}, {one.n_late} without a plan in time")
                if not config.dry_run:
                    _record(store, spec, one, task, f"robot, success by {config.success}", config.seed + i)
                if one.stopped:
                    break
    finally:
        robot.disconnect()
    return lived


def make_judge(who: str, pilot: Pilot, task: str, stops: Stops) -> Judge:
    """Return who says of one episode whether the task is solved: `robot`, `key` or `read_out`, see `RobotConfig`.

    Raises:
        UserError: an export has no read-out.
    """
    if who == "key":
        stops.solved = False
        return lambda frame, observation: stops.solved
    if who == "robot":
        return robot_says
    if not isinstance(pilot, ModelPilot):
        raise UserError("success=read_out: an export reads nothing out; run the checkpoint, or choose robot or key")
    model = pilot.model
    index, before = torch.tensor([model.spec.tasks.index(task)]), [False]

    @torch.inference_mode()
    def read_out(frame: np.ndarray, observation: dict[str, Any]) -> bool:
        p, _ = model.read_frames(torch.tensor(frame, dtype=torch.float32).unsqueeze(0), index)
        sure, was_sure = bool(p >= SURE), before[0]
        before[0] = sure
        return sure and was_sure  # as in a dream: two frames in a row

    return read_out


def _record(store: EpisodeStore, spec: Spec, lived: Lived, task: str, source: str, seed: int) -> None:
    """Keep an episode that came to its own end; one that was stopped says nothing about the policy."""
    if lived.stopped:
        return
    episode = lived.to_episode(task, source, seed)
    if episode is not None:
        store.append([episode], spec)


def _task(spec: Spec, config: RobotConfig) -> str:
    known = spec.tasks
    if config.task in known or (not config.task and len(known) == 1):
        return config.task or known[0]
    raise UserError(f"task={config.task or '(none)'}: expected one of {', '.join(known)}")
