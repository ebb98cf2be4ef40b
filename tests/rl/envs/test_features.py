"""What an environment gives to a policy, of what the simulator has."""

import pytest
import torch

from rewards.errors import UserError
from rl.envs.features import given_spec, state_columns
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
