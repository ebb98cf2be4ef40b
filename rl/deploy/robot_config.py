"""Config schema of `wamtune deploy CHECKPOINT run`: the robot, the limits of its commands, and the episodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rewards.checks import at_least, between_0_1
from rewards.errors import UserError
from rl.config import Chosen
from rl.deploy.safety import Limits
from rl.deploy.viewer import check_where
from rl.robots.api import RobotMap


@dataclass(frozen=True)
class RobotConfig:
    """Config of one session on a robot."""

    robot: str = ""  # fake, sim, rosbridge, a robot of LeRobot by its name, FILE.py:Class, module:Class
    params: dict[str, Any] = field(default_factory=dict)  # arguments of its constructor
    policy: Chosen = ""  # FILE.py:Class if the policy is a class of your own; empty: the checkpoint that is named first
    device: str = "cpu"  # of the weights of a policy that you bring, such as cuda
    task: str = ""  # empty: the only task that the checkpoint knows
    instruction: str = ""  # for a policy that reads language; empty: what the robot says of the task, else its name
    text_encoder: str = ""  # FILE.py:function, the frozen encoder of the checkpoint, which new sentences need
    # commands per second, and rate of the recorded episodes; 0: the rate of the checkpoint, else that of the robot
    hz: float = 0.0
    n_episodes: int = 1  # in a comparison: the largest number of pairs
    alpha: float = 0.1  # largest probability that a comparison of equal policies ever becomes clear
    max_steps: int = 150  # commands of an episode
    n_action_steps: int = 4  # steps of a chunk after which the next plan is started
    n_denoising_steps: int | None = None  # of the policy; null: as many as its own sampler takes
    seed: int = 0  # of the policy's sampling noise
    max_late: int = 5  # commands in a row for which a plan is late or an image too old; one more stops the robot
    success: Literal["robot", "key", "read_out"] = "robot"  # judged by the robot, by a typed s, or by the model
    # file of `deploy CHECKPOINT calibrate`, for success=read_out; empty: a success from a probability of 0.5 on
    calibration: str = ""
    dry_run: bool = False  # print the commands, send none
    stop_file: str = "STOP"  # the robot stops when this file exists
    episodes: str = ""  # folder to record to; empty: runs/robot/NAME OF THE ROBOT
    person: str = ""  # device of a person who may take over: FILE.py:Class, module:Class or a teleoperator of LeRobot
    person_params: dict[str, Any] = field(default_factory=dict)  # arguments of its constructor
    # the robot's name of an action -> the device's, if they differ, or {name, scale, offset}: scale * device's + offset
    person_names: dict[str, Any] = field(default_factory=dict)
    dataset: str = ""  # folder of a LeRobot dataset to record to as well, with a video of each camera; empty: none
    rerun: str = ""  # watch it live in Rerun: spawn, a file NAME.rrd, or the url of a viewer; empty: do not
    limits: Limits = field(default_factory=Limits)
    map: RobotMap = field(default_factory=RobotMap)

    def check(self) -> None:
        """Refuse an empty robot name and invalid counts."""
        if not self.robot:
            raise UserError("robot=: expected fake, sim, rosbridge, the name of a robot of LeRobot, or FILE.py:Class")
        at_least(self, 1, "n_episodes", "max_steps", "n_action_steps", "n_denoising_steps")
        between_0_1(self, "alpha")
        if self.calibration and self.success != "read_out":
            raise UserError(
                f"calibration={self.calibration}: success={self.success} does not use it; add success=read_out, or "
                "leave it out"
            )
        check_where(self.rerun)
        at_least(self, 0, "hz", "seed", "max_late")
