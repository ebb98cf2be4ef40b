"""Cameras of the simulated arm in a process of their own: what they draw, when, and what a dead one looks like."""

from __future__ import annotations

import time

import mujoco
import numpy as np
import pytest

from rl.envs.cameras import CameraUse
from rl.envs.metaworld.camera import Camera
from rl.envs.metaworld.robot import PERTURBATION, Arm, SimRobot
from rl.envs.metaworld.scene import Scene
from world_model.view import View


def test_a_scene_that_was_copied_is_drawn_to_the_pixel() -> None:
    use = CameraUse(View(), 48, 48)
    arm = Arm("push", 0, 80.0, False, dict(PERTURBATION), cameras={"front": use}, filmed=True)
    model = arm.simulated.model
    camera, copied = Camera(model, use.view, 48, 48), mujoco.MjData(model)
    drawn = []
    for seed in (0, 5):
        arm.reset(seed)
        for _ in range(5):
            arm.act(np.array([1, -1, 0.5, 1], np.float32))
        Scene(copied).write(Scene(arm.simulated.data).read())
        drawn.append(camera.render(copied))
        assert np.array_equal(drawn[-1], arm.observe()[3]["front"])
    assert (drawn[0] != drawn[1]).any()


def test_cameras_have_their_own_rates_and_times() -> None:
    cameras = {"front": {"hz": 30.0}, "side": {"azimuth": 90.0, "hz": 4.0, "latency_s": 0.2}}
    robot = SimRobot("push", hz=20.0, cameras=cameras, image_size=32)
    assert robot.observation_features["side"] == (32, 32, 3)
    robot.connect()
    try:
        begun = time.monotonic()
        robot.reset(1)
        first = robot.get_observation()
        assert min(first["timestamps"].values()) >= begun  # no image of the episode before
        seen: dict[str, set[float]] = {"front": set(), "side": set()}
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            robot.send_action(dict.fromkeys(robot.action, 0.5))
            observation = robot.get_observation()
            for name, at in observation["timestamps"].items():
                assert at <= time.monotonic() - (0.2 if name == "side" else 0.0)  # an image arrives late
                seen[name].add(at)
            time.sleep(0.01)
        # A busy machine draws fewer images, never more than the rate of the camera.
        assert 2 <= len(seen["side"]) <= 10 and len(seen["front"]) > len(seen["side"])
        assert (observation["front"] != first["front"]).any() and (observation["front"] != observation["side"]).any()
        assert robot._cameras is not None
        robot._cameras._process.kill()
        robot._cameras._process.wait()
        newest = robot.get_observation()["timestamps"]
        time.sleep(0.1)
        assert robot.get_observation()["timestamps"] == newest  # they get old, which the guard sees
        with pytest.raises(ConnectionError, match="the cameras of the simulated robot give no images"):
            robot.reset(2)
    finally:
        robot.disconnect()


@pytest.mark.parametrize(("given", "line"), [({"hz": 0}, "hz=0 of a camera"), ({"zoom": 2}, "unexpected keyword")])
def test_a_camera_that_cannot_be_is_refused(given: dict[str, float], line: str) -> None:
    with pytest.raises(TypeError, match=line):
        SimRobot("push", cameras={"front": given})
