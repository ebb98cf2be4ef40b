"""Cameras of a robot as images of a policy: names, crops and sizes, compared before anything is sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rewards.errors import UserError
from rl.robots.api import Interface, RobotMap, differences
from rl.robots.errors import Stop
from rl.robots.fake import FakeRobot
from rl.robots.images import check_image, fitted_image
from world_model.spec import Feature, Spec

SPEC = Spec(
    {"state": Feature((1,)), "images.front": Feature((4, 4, 3), dtype="uint8")}, (-1.0,), (1.0,), ("push",), 10.0
)


def robot_with(*cameras: tuple[str, tuple[int, int]]) -> FakeRobot:
    robot = FakeRobot(SPEC)
    robot.images = {name: np.zeros((*size, 3), np.uint8) for name, size in cameras}
    return robot


@pytest.mark.parametrize(
    ("mapping", "row"),
    [
        (RobotMap(), ("images.front", "an image of 4 x 4", "no such; it has state.0, top, tiny")),
        (RobotMap(images={"front": "state.0"}), ("images.front", "an image of 4 x 4", "a number")),
        (RobotMap(images={"front": "tiny"}), ("images.front", "an image of at least 4 x 4", "3 x 9")),
        (
            RobotMap(images={"front": "top", "side": "top"}),
            ("map.images.side", "one of front", "no camera of the policy"),
        ),
        (
            RobotMap(images={"front": "top"}, crop={"wrist": [0, 0, 4, 4]}),
            ("map.crop.wrist", "one of front", "no camera of the policy"),
        ),
        (
            RobotMap(images={"front": "top"}, crop={"front": [0, 0, 3, 8]}),
            ("images.front", "an image of at least 4 x 4", "3 x 8"),
        ),
        *(
            (
                RobotMap(images={"front": "top"}, crop={"front": [*crop]}),
                ("map.crop.front", "top, left, height, width within 8 x 12", str(list(crop))),
            )
            for crop in ((1, 0, 8, 8), (0, 5, 8, 8), (-1, 0, 4, 4), (0, 0, 0, 4), (0, 0, 8))
        ),
    ],
)
def test_what_does_not_fit_is_one_row(mapping: RobotMap, row: tuple[str, str, str]) -> None:
    robot = robot_with(("top", (8, 12)), ("tiny", (3, 9)))
    assert differences(robot, SPEC, mapping, 10.0) == [row]
    with pytest.raises(UserError, match="nothing was sent: "):
        Interface(robot, SPEC, mapping, 10.0)


def test_a_policy_sees_the_part_that_is_named_scaled_down() -> None:
    robot = robot_with(("top", (16, 24)))
    robot.images["top"][2:10, 4:12] = [10, 20, 30]
    robot.images["top"][2:10, 4:12:2] += 2  # every second column is brighter by two
    mapping = RobotMap(images={"front": "top"}, crop={"front": [2, 4, 8, 8]})
    _, images, _, _ = Interface(robot, SPEC, mapping, 10.0).observe()
    # Two rows and two columns become one, with their mean.
    assert np.array_equal(images["images.front"], np.broadcast_to([11, 21, 31], (4, 4, 3)))


def test_without_a_crop_it_is_the_middle_square() -> None:
    image = np.arange(8 * 12, dtype=np.uint8).reshape(8, 12, 1).repeat(3, axis=2)
    found = fitted_image("images.front", image, (8, 8, 3))
    assert np.array_equal(found, image[:, 2:10])
    whole = fitted_image("images.front", image, image.shape)
    assert np.array_equal(whole, image) and whole is not image  # a robot may write to its own array


@pytest.mark.parametrize(
    "image",
    [
        None,
        "front",
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 5, 3), np.uint8),
        [[[0] * 3] * 4] * 4,
    ],
)
def test_an_image_of_another_kind_is_a_stop(image: Any) -> None:
    with pytest.raises(Stop, match=r"images.front of the observation is .*, expected \(4, 4, 3\) of uint8"):
        check_image("images.front", image, (4, 4, 3))
