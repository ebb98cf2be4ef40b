"""The schema of `wamtune deploy CHECKPOINT run`: which robot, what may be sent to it, and how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rewards.checks import at_least, between_0_1
from rewards.errors import UserError
from rl.deploy.safety import Limits
from rl.robots.api import RobotMap


@dataclass(frozen=True)
class RobotConfig:
    """One session on a robot."""

    robot: str = ""  # fake, sim, rosbridge, a robot of LeRobot by its name, FILE.py:Class, module:Class
    params: dict[str, Any] = field(default_factory=dict)  # of its constructor
    task: str = ""  # empty: the only one that the checkpoint knows
    hz: float = 0.0  # commands a second; 0: as the checkpoint was trained
    n_episodes: int = 1  # of each policy at most, where two are compared
    alpha: float = 0.1  # chance that luck alone makes a comparison clear
    max_steps: int = 150  # commands of an episode
    n_action_steps: int = 4  # of a chunk, after which the next one is begun
    n_denoising_steps: int = 2
    seed: int = 0  # of the noise that decides with the policy
    max_late: int = 5  # commands in a row for which there may be no plan; one more is a stop
    success: Literal["robot", "key", "read_out"] = "robot"  # its observation, a typed s, or the model
    dry_run: bool = False  # print the commands, send none
    stop_file: str = "STOP"  # the robot stops as soon as there is such a file
    episodes: str = ""  # folder to record to; empty: runs/robot/NAME OF THE ROBOT
    limits: Limits = field(default_factory=Limits)
    map: RobotMap = field(default_factory=RobotMap)

    def check(self) -> None:
        """Refuse a robot without a name, and counts that mean nothing."""
        if not self.robot:
            raise UserError("robot=: expected fake, sim, rosbridge, the name of a robot of LeRobot, or FILE.py:Class")
        at_least(self, 1, "n_episodes", "max_steps", "n_action_steps", "n_denoising_steps")
        between_0_1(self, "alpha")
        at_least(self, 0, "hz", "seed", "max_late")
