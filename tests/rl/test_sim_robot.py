"""The simulated arm: a process of its own, which a stop of ours does not end."""

from __future__ import annotations

import os
import signal

import pytest

from rl.deploy.sim_robot import SimRobot


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
