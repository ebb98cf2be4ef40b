"""The simulated arm: a process of its own, which a stop of ours does not end."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest

from rewards.errors import UserError
from rl.envs.metaworld.robot import PERTURBATION, Arm, SimRobot
from rl.robots.api import make_robot


def test_signals_of_the_terminal_are_not_for_its_process(capfd: pytest.CaptureFixture[str]) -> None:
    robot = SimRobot("button-press-topdown", paced=False)
    robot.connect()
    try:
        assert robot._process is not None
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):  # they come to all that run in it
            os.kill(robot._process.pid, number)
            robot.send_action(dict.fromkeys(robot.action, 0.0))
        assert robot.get_observation().keys() == {*robot.state, "timestamp", "success"}
        with pytest.raises(ConnectionError, match="the process of the simulated robot has ended"):
            robot._ask("nothing that it knows")
    finally:
        robot.disconnect()
    assert not robot.is_connected and "AttributeError" in capfd.readouterr().err


def test_a_command_takes_effect_after_the_delay_in_every_step_of_every_episode() -> None:
    arm = Arm("button-press-topdown", 0, 80.0, False, {**PERTURBATION, "delay_s": 1 / 80}, cameras={})
    executed: list[float] = []
    step = arm.task.step
    arm.task.step = lambda command: (executed.append(float(command[3])), step(command))[1]  # type: ignore[method-assign]
    for scene in (0, 1):
        arm.reset(scene)
        executed.clear()
        for k in range(150):
            arm.act(np.array([0, 0, 0, k / 150], np.float32))
        assert executed == pytest.approx([0, *(k / 150 for k in range(149))])


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"gain": "x"}, "gain='x': expected a number of at least 0"),
        ({"delay_s": -0.1}, "delay_s=-0.1: expected a number of at least 0"),
        ({"noise": float("nan")}, "noise=nan: expected a number of at least 0"),
        ({"paced": "flase"}, "paced='flase': expected true or false"),
        ({"image_size": 64.5}, "image_size=64.5: expected a whole number of at least 0"),
        ({"gian": 0.8}, "unknown 'gian'; known: task, seed"),
        ({"cameras": {"front": {"hz": "fast"}}}, "could not convert string to float: 'fast'"),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused_before_the_process_starts(params: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        make_robot("sim", params, "push")
    assert "robot=sim: its parameters" in str(error.value) and line in str(error.value)
