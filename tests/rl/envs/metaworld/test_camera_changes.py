"""Cameras that differ from the simulator's: their position, light and delay, as events change them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from rewards.errors import UserError
from rl.envs.cameras import CameraUse
from rl.envs.metaworld.camera_changes import UNCHANGED, changed, values_of
from rl.envs.metaworld.events import NOTHING, Event, Perturbed, Quantity
from rl.envs.metaworld.robot import PERTURBATION, Arm, SimRobot
from rl.envs.metaworld.scene import Scene
from rl.envs.metaworld.tasks import MetaWorldTask
from rl.envs.names import MetaWorldOptions, typed_options
from rl.envs.sim import SimEnv
from rl.envs.workers import Group
from world_model.view import View

TASK, SIZE = "door-open", 24
FRONT = CameraUse(View(), SIZE, SIZE)
UP = np.array([0.3, -0.5, 0.5, 0.0], np.float32)


def event(quantity: Any, value: float, camera: str = "") -> Event:
    return Event(quantity, "startup", value, value, camera=camera)


def seen(events: dict[str, Event], n_steps: int = 0, **cameras: CameraUse) -> dict[str, np.ndarray]:
    """Return the images of an arm after some steps."""
    task = Perturbed(MetaWorldTask(TASK, looked_at=True), events)
    task.reset(3)
    for _ in range(n_steps):
        task.step(UP)
    return task.images(cameras or {"images.front": FRONT})


def test_events_know_every_quantity() -> None:
    assert [*get_args(Quantity)] == [*NOTHING, *UNCHANGED]


def test_a_camera_moves_as_its_view_would() -> None:
    values = {"azimuth": 8.0, "elevation": -5.0, "lookat_x": 0.05, "lookat_y": -0.04, "distance": 1.2}
    there = replace(FRONT, view=View(lookat=(0.05, 0.66, 0.1), distance=0.85 * 1.2, azimuth=158.0, elevation=-40.0))
    moved = seen({name: event(name, value) for name, value in values.items()})["images.front"]
    assert np.array_equal(moved, seen({}, **{"images.front": there})["images.front"])
    assert np.abs(moved.astype(int) - seen({})["images.front"]).mean() > 10


def test_light_changes_brightness_and_colours() -> None:
    plain = seen({})["images.front"].astype(float)
    dark = seen({"a": event("light", 0.5), "b": event("red", 1.4), "c": event("blue", 0.6)})["images.front"]
    lit = (plain > 40).all(2)
    # Factors of the light: 0.7, 0.5, 0.3. Where lights overlap they saturate, and a part of a material glows by itself.
    assert (dark[lit] / plain[lit]).mean(0) == pytest.approx([0.80, 0.59, 0.39], abs=0.02)


def test_an_event_of_one_camera_leaves_the_other_alone() -> None:
    both = {"images.front": FRONT, "images.side": replace(FRONT, view=View(azimuth=90.0))}
    plain, other = seen({}, **both), seen({"a": event("azimuth", 20.0, "side")}, **both)
    assert np.array_equal(plain["images.front"], other["images.front"])
    assert not np.array_equal(plain["images.side"], other["images.side"])
    all_but_one = values_of("side", {"light": 0.5, "side.light": 0.8, "front.red": 2.0})
    assert all_but_one == UNCHANGED | {"light": 0.8}


def test_images_are_late_by_whole_steps() -> None:
    late = {"a": event("image_delay", 3)}
    for n_steps, shown in ((0, 0), (2, 0), (3, 0), (7, 4)):
        assert np.array_equal(seen(late, n_steps)["images.front"], seen({}, shown)["images.front"])
    assert not np.array_equal(seen({}, 7)["images.front"], seen({}, 4)["images.front"])


def test_a_late_image_does_not_change_the_physics_and_repeats_from_the_seed() -> None:
    cameras = {"images.front": FRONT}
    events = {"d": Event("image_delay", "reset", 1, 4), "a": Event("azimuth", "reset", -10, 10)}
    plain, late = Group("metaworld", [TASK], {}, cameras), Group("metaworld", [TASK], events, cameras)
    actions = np.tile(UP, (1, 8, 1))
    given = {"limit": np.array([8]), "stop_on_success": False, "elapsed": np.zeros(1, int)}
    shown = []
    for _ in range(2):
        frames = [group.reset({0: 5})[0] for group in (plain, late)]
        assert np.array_equal(*frames)
        steps = [group.advance(actions, **given) for group in (plain, late)]
        assert np.array_equal(steps[0].frames, steps[1].frames)
        shown.append(steps[1].images[0][-1][1]["images.front"])
    assert np.array_equal(*shown)
    late.reset({0: 6})
    assert not np.array_equal(late.advance(actions, **given).images[0][-1][1]["images.front"], shown[0])


def test_what_events_refuse() -> None:
    def check(**given: Any) -> None:
        typed_options("metaworld", {"events": {"x": {"low": 1.0, "high": 1.0, **given}}}, MetaWorldOptions)

    check(func="azimuth", low=-5.0, camera="front")
    with pytest.raises(UserError, match=r"events\.x\.camera='front': func=mass changes no camera; leave it out"):
        check(func="mass", camera="front")
    with pytest.raises(UserError, match=r"events\.x\.low=-5\.0, high=1\.0: expected 0\.001 <= low"):
        check(func="light", low=-5.0)
    fixed = CameraUse(View(camera="gripperPOV"), SIZE, SIZE)
    assert changed(fixed, UNCHANGED | {"light": 0.5}).light == (0.5, 0.5, 0.5)
    with pytest.raises(UserError, match="camera 'gripperPOV' is fixed to the model, so events cannot move it"):
        changed(fixed, UNCHANGED | {"azimuth": 1.0})


def test_an_event_of_a_camera_that_nobody_reads() -> None:
    line = "env.options.events.a.camera='side': the policy reads no images; name one of its cameras, or leave the event"
    with pytest.raises(UserError, match=line):
        SimEnv("metaworld", 1, [TASK], events={"a": event("azimuth", 5.0, "side")})


def test_the_simulated_robot_has_another_camera() -> None:
    """Without pacing; with pacing, `test_robot_cameras.py`."""
    cameras = {"front": {"azimuth": 160.0, "light": 0.8, "red": 1.2, "latency_s": 0.05}}
    robot = SimRobot(TASK, hz=80.0, paced=False, cameras=cameras, image_size=SIZE)
    robot.connect()
    try:
        robot.reset(3)
        for _ in range(7):
            robot.send_action(dict(zip(robot.action, UP, strict=True)))
        found = robot.get_observation()["front"]
    finally:
        robot.disconnect()
    arm = Arm(TASK, 0, 80.0, False, dict(PERTURBATION), cameras={}, filmed=True)
    arm.reset(3)
    for _ in range(3):  # 0.05 s are four steps
        arm.act(UP)
    use = CameraUse(View(azimuth=160.0), SIZE, SIZE, light=(0.96, 0.8, 0.8))
    assert np.array_equal(found, arm.simulated.images({"front": use})["front"])
    for wrong, line in (
        ({"latency_s": -1.0}, "latency_s=-1 of a camera, expected 0 to 2"),
        ({"light": 0.0}, "light=0 of a camera, expected above 0, at most 10"),
        ({"blue": float("nan")}, "blue=nan of a camera, expected above 0, at most 10"),
    ):
        with pytest.raises(TypeError, match=line):
            SimRobot(TASK, cameras={"front": wrong})


def test_a_scene_at_the_start_of_an_episode_has_all_poses() -> None:
    """Stock moves the drawer at a reset, and computes where its parts are in the first step only."""
    task, front = MetaWorldTask("drawer-open", looked_at=True), {"images.front": FRONT}
    for seed in (1, 2):
        task.reset(seed)
        stale, scene = Scene(task.data).read(), task.scene()
        assert not np.array_equal(stale, scene)
        shown = [task.images(front, given)["images.front"] for given in (None, scene, stale)]
        assert np.array_equal(shown[0], shown[1])
    assert not np.array_equal(shown[1], shown[2])
