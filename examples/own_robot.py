"""A robot of your own in one file: any class with these members, which are those of LeRobot's `Robot`.

    wamtune deploy metaworld-tuned run robot-sim task=push robot=examples/own_robot.py:MyRobot params.speed=0.8

This one is a hand that follows its commands in a program of ten lines; replace what stands below "your driver" by calls
of yours. The preset `robot-sim` is used for its limits alone; with a robot of your own give your own.
"""

import time

SIZES = {
    **{"hand_pos": 3, "gripper": 1, "object_pos": 3, "object_quat": 4},
    **{"object2_pos": 3, "object2_quat": 4, "goal_pos": 3},
}


class MyRobot:
    """A hand above a table with an object that never moves.

    Args:
        speed: how much of a command is carried out.
        task: parameters with this name get the task of the session.
    """

    control_hz = 80.0  # compared with the rate of the policy, where it is given

    def __init__(self, speed: float = 1.0, task: str = "") -> None:
        self.speed, self.task = speed, task
        self.is_connected = False
        self.values = {f"{name}.{i}": 0.0 for name, size in SIZES.items() for i in range(size)}

    @property
    def observation_features(self) -> dict[str, type]:
        """Name of each number that is observed -> float; the config key `map.state` translates other names."""
        return dict.fromkeys(self.values, float)

    @property
    def action_features(self) -> dict[str, type]:
        """Name of each number that is commanded -> float; the config key `map.action` translates other names."""
        return {f"action.{i}": float for i in range(4)}

    def connect(self) -> None:
        """Open the connection, calibrate and configure."""
        self.is_connected = True  # your driver

    def reset(self, scene: int) -> None:
        """Make it ready for an episode (optional); where possible, the same scene begins at the same place."""
        start = {"hand_pos.1": 0.6, "hand_pos.2": 0.2, "object_pos.0": 0.01 * (scene % 10), "object_pos.1": 0.7}
        self.values.update(start)  # your driver

    def get_observation(self) -> dict[str, float]:
        """Return the newest number of each name, and when it was taken, in seconds of `time.monotonic`."""
        return {**self.values, "timestamp": time.monotonic()}  # your driver

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        """Command it, and return what was really sent: that is what is recorded."""
        for i in range(3):  # your driver: an action of 1 moves the hand by 1 cm
            self.values[f"hand_pos.{i}"] += 0.01 * self.speed * action[f"action.{i}"]
        return action

    def disconnect(self) -> None:
        """Close the connection; the robot stands still by then."""
        self.is_connected = False  # your driver
