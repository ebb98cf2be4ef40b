"""A robot of your own in one file: any class with these members, which are those of LeRobot's `Robot`.

    wamtune deploy metaworld-tuned run robot-sim task=push robot=examples/own_robot.py:MyRobot params.speed=0.8

This robot is a simulated hand that follows its commands. Replace each line marked "your driver" by a call of your own
driver. The command uses the preset `robot-sim` only for its limits; write limits of your own for your robot.
"""

import time

SIZES = {
    **{"hand_pos": 3, "gripper": 1, "object_pos": 3, "object_quat": 4},
    **{"object2_pos": 3, "object2_quat": 4, "goal_pos": 3},
}


class MyRobot:
    """A hand above a table with an object that never moves.

    Args:
        speed: share of each command that is executed.
        task: a parameter with this name receives the task of the session.
    """

    control_hz = 80.0  # optional; if given, it is compared with the rate of the policy

    def __init__(self, speed: float = 1.0, task: str = "") -> None:
        self.speed, self.task = speed, task
        self.is_connected = False
        self.values = {f"{name}.{i}": 0.0 for name, size in SIZES.items() for i in range(size)}

    @property
    def observation_features(self) -> dict[str, type]:
        """Return name -> float for each observed number; if your names differ, set the config key `map.state`."""
        return dict.fromkeys(self.values, float)

    @property
    def action_features(self) -> dict[str, type]:
        """Return name -> float for each commanded number; if your names differ, set the config key `map.action`."""
        return {f"action.{i}": float for i in range(4)}

    def connect(self) -> None:
        """Open the connection, calibrate and configure."""
        self.is_connected = True  # your driver

    def reset(self, scene: int) -> None:
        """Prepare an episode (optional); if possible, the same scene number gives the same start."""
        start = {"hand_pos.1": 0.6, "hand_pos.2": 0.2, "object_pos.0": 0.01 * (scene % 10), "object_pos.1": 0.7}
        self.values.update(start)  # your driver

    def get_observation(self) -> dict[str, float]:
        """Return the newest numbers by name, and their time in seconds of `time.monotonic`."""
        return {**self.values, "timestamp": time.monotonic()}  # your driver

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        """Send a command; return the action that was really sent, since that one is recorded."""
        for i in range(3):  # your driver: an action of 1 moves the hand by 1 cm
            self.values[f"hand_pos.{i}"] += 0.01 * self.speed * action[f"action.{i}"]
        return action

    def disconnect(self) -> None:
        """Close the connection; the robot stands still by then."""
        self.is_connected = False  # your driver
