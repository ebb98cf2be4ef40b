"""What an environment gives to a policy, of what the simulator has."""

import re

import pytest
import torch

from rewards.errors import UserError
from rl.envs.features import given_spec, state_columns, vector_columns
from world_model.spec import Feature, Spec

IMAGE = Feature((8, 8, 3), dtype="uint8", every=4)
SLICES = {"hand_pos": (0, 3), "gripper": (3, 4), "object_pos": (4, 7)}


def spec(**features: Feature) -> Spec:
    state = Feature((7,), "m", SLICES)
    named = {f"images.{name}": feature for name, feature in features.items()}
    return Spec({"state": state, **named}, (-1.0,), (1.0,), ("push",), control_hz=20.0)


def test_without_a_policy_everything_is_given() -> None:
    simulated = spec(front=Feature((6, 8, 3), dtype="uint8"))
    assert given_spec(simulated, None) is simulated
    assert state_columns(simulated, simulated) is None


def test_a_policy_without_images_gets_the_state_alone() -> None:
    simulated = spec(front=IMAGE)
    for wanted in ({}, {"state": simulated.features["state"]}, {"state": Feature((3,), slices={"hand_pos": (0, 3)})}):
        given = given_spec(simulated, wanted)
        # All of the state, even if the policy reads another one: `Spec.check_fits` then says that it does not fit.
        assert given.features == {"state": simulated.features["state"]}
        assert state_columns(simulated, given) is None


def test_a_policy_with_images_gets_its_images_and_the_slices_that_it_knows() -> None:
    simulated = spec()
    wanted = {"state": Feature((4,), slices={"gripper": (0, 1), "hand_pos": (1, 4)}), "images.front": IMAGE}
    given = given_spec(simulated, wanted)
    assert given.features["images.front"] == IMAGE  # size and period are those of the policy
    assert given.features["state"] == Feature((4,), "m", {"gripper": (0, 1), "hand_pos": (1, 4)})
    assert (given.action_low, given.tasks, given.control_hz) == ((-1.0,), ("push",), 20.0)
    columns = state_columns(simulated, given)
    assert columns is not None and columns.tolist() == [3, 0, 1, 2]  # in the order of the policy
    for name, part in given.slices.items():
        assert torch.equal(columns[part], torch.arange(7)[simulated.slices[name]])


def test_a_policy_with_images_may_read_the_whole_state() -> None:
    simulated = spec()
    given = given_spec(simulated, {"state": Feature((7,)), "images.front": IMAGE})
    assert given.features["state"] == simulated.features["state"] and state_columns(simulated, given) is None


def test_a_policy_may_read_images_alone() -> None:
    simulated = spec()
    given = given_spec(simulated, {"state": Feature((0,)), "images.front": IMAGE})
    columns = state_columns(simulated, given)
    assert given.state_dim == 0 and columns is not None and columns.dtype == torch.long
    assert torch.zeros(2, 5, 7)[..., columns].shape == (2, 5, 0)


def test_a_simulator_that_renders_nothing_leaves_out_images_that_it_lacks() -> None:
    simulated = spec(front=Feature((8, 8, 3), dtype="uint8"), wide=Feature((4, 16, 3), dtype="uint8"))
    wanted = {"state": Feature((7,)), "images.front": IMAGE, "images.wide": IMAGE, "images.wrist": IMAGE}
    given = given_spec(simulated, wanted, renders=False)
    assert given.images == ("images.front",) and given.features["images.front"].every == 4
    assert given_spec(simulated, wanted).images == ("images.front", "images.wide", "images.wrist")
    reads = Spec(wanted, (-1.0,), (1.0,), ("push",), control_hz=20.0)
    with pytest.raises(UserError, match=r"reads 'images\.wide' of shape \[8, 8, 3\], the environment has none"):
        reads.check_fits(given, "here")


def test_a_slice_that_the_simulator_lacks_is_named() -> None:
    wanted = {"state": Feature((2,), slices={"wrist_pos": (0, 2)}), "images.front": IMAGE}
    with pytest.raises(UserError, match="the checkpoint reads 'wrist_pos', which the simulator does not have"):
        given_spec(spec(), wanted)


ROBOT = ("hand_pos", "gripper")


def whole(**slices: tuple[int, int]) -> Spec:
    """A state of 9 numbers, the last two of which have no name."""
    return Spec({"state": Feature((9,), "m", slices)}, (-1.0,), (1.0,), ("push",), control_hz=20.0)


def test_environment_state_is_what_is_not_the_robots() -> None:
    simulated = whole(hand_pos=(0, 3), gripper=(3, 4), object_pos=(4, 7))
    given = given_spec(simulated, {"state": Feature((4,)), "environment_state": Feature((5,))}, robot_slices=ROBOT)
    assert given.features == {
        "state": Feature((4,), "m", {"hand_pos": (0, 3), "gripper": (3, 4)}),
        "environment_state": Feature((5,), "m", {"object_pos": (0, 3)}),
    }
    columns = vector_columns(simulated, given)
    assert {name: of.tolist() for name, of in columns.items() if of is not None} == {
        "state": [0, 1, 2, 3],
        "environment_state": [4, 5, 6, 7, 8],
    }
    assert given.vector_slices == simulated.slices


def test_the_robots_slices_may_lie_anywhere() -> None:
    simulated = whole(goal_pos=(0, 2), gripper=(2, 3), object_pos=(3, 5), hand_pos=(5, 8))
    given = given_spec(simulated, {"environment_state": Feature((5,))}, robot_slices=("hand_pos", "wrist", "gripper"))
    assert given.features["state"].slices == {"hand_pos": (0, 3), "gripper": (3, 4)}
    assert given.features["environment_state"] == Feature((5,), "m", {"goal_pos": (0, 2), "object_pos": (2, 4)})
    columns = vector_columns(simulated, given)
    numbers = torch.arange(9)
    joined = torch.cat([numbers[of] for of in columns.values()])
    assert sorted(joined.tolist()) == list(range(9))
    for name, part in given.vector_slices.items():  # a name means the same numbers in both layouts
        assert torch.equal(joined[part], numbers[simulated.slices[name]])


def test_a_policy_that_knows_sizes_only_gets_the_robot_by_the_size_of_its_state() -> None:
    simulated, image = spec(), Feature((24, 40, 3), dtype="uint8")
    given = given_spec(simulated, {"state": Feature((4,)), "images.front": image}, robot_slices=ROBOT)
    assert given.features["state"] == Feature((4,), "m", {"hand_pos": (0, 3), "gripper": (3, 4)})
    assert given.features["images.front"] == image
    assert given_spec(simulated, {"state": Feature((4,))}, robot_slices=ROBOT).state_dim == 4
    # The whole state, named slices, and a simulator without a robot are as before.
    assert given_spec(simulated, {"state": Feature((7,))}, robot_slices=ROBOT).features == simulated.features
    named = {"state": Feature((4,), slices={"object_pos": (0, 3), "gripper": (3, 4)}), "images.front": image}
    assert list(given_spec(simulated, named, robot_slices=ROBOT).slices) == ["object_pos", "gripper"]
    assert given_spec(simulated, {"state": Feature((4,))}).features == simulated.features


def test_environment_state_of_a_simulator_without_a_robot_is_refused() -> None:
    wanted = {"state": Feature((4,)), "environment_state": Feature((3,))}
    for names in ((), ("wrist",)):
        with pytest.raises(UserError, match="does not say which part of its state is the robot's; choose another"):
            given_spec(spec(), wanted, robot_slices=names)
    reads = Spec(wanted | {"environment_state": Feature((39,))}, (-1.0,), (1.0,), ("push",), control_hz=20.0)
    given = given_spec(spec(), reads.features, robot_slices=ROBOT)
    with pytest.raises(UserError, match=r"reads 'environment_state' of shape \[39\], the environment has \[3\]"):
        reads.check_fits(given, "here")


@pytest.mark.parametrize(
    ("feature", "found"),
    [
        (Feature((3, 96, 96), dtype="uint8"), "uint8 of shape [3, 96, 96], every 1"),
        (Feature((96, 96, 3)), "float32 of shape [96, 96, 3], every 1"),
        (Feature((96, 96), dtype="uint8"), "uint8 of shape [96, 96], every 1"),
        (Feature((96, 0, 3), dtype="uint8"), "uint8 of shape [96, 0, 3], every 1"),
        (Feature((96, 96, 3), dtype="uint8", every=0), "uint8 of shape [96, 96, 3], every 0"),
    ],
)
def test_what_no_image_can_be_is_one_line(feature: Feature, found: str) -> None:
    line = f"the policy reads 'images.front' as {found} steps; expected uint8 of [height, width, 3], every 1 or more"
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        given_spec(spec(), {"state": Feature((7,)), "images.front": feature})
