"""Every built-in term against numbers worked out by hand."""

from dataclasses import replace

import pytest
import torch

from rewards import RewardManager, Transition, UserError
from rewards.builtin import BUILTIN

PROVIDES = {"hand_pos", "gripper", "object_pos", "progress", "task_reward"}

# Actions of the three environments, oldest first: (0,0) (0,0) (1,2) | (1,1) three times | (0,0) (1,0) (0,.5).
EXPECTED = {
    "success": [0.0, 1.0, 0.0],
    "progress": [0.25, 0.5, -0.25],
    "task_reward": [0.1, 10.0, -1.0],
    "time_cost": [1.0, 1.0, 1.0],
    "action_l2": [5.0, 2.0, 0.25],  # 1+4, 1+1, 0+.25
    "action_rate": [5.0, 0.0, 1.25],  # (1,2), (0,0), (-1,.5)
    "action_jerk": [5.0, 0.0, 4.25],  # (1,2), (0,0), (0-2+0, .5-0+0) = (-2,.5)
    "workspace_limit": [0.0, 1.0, 5.0],  # the box is [-1, 1]^3: (2,0,0) is 1 out, (4,-5,.5) is (3,-4,0) out
}
PARAMS = {"workspace_limit": {"low": [-1, -1, -1], "high": [1.0, 1.0, 1.0]}}


def test_every_builtin_has_an_expected_value() -> None:
    assert {*EXPECTED, "goal_image"} == set(BUILTIN)  # that one needs a model with cameras, and has a test of its own


@pytest.mark.parametrize("name", EXPECTED)
def test_builtin(name: str, t: Transition) -> None:
    manager = RewardManager({name: {"weight": -2.0, "params": PARAMS.get(name)}}, PROVIDES, "sim")
    paid = manager.compute(t)
    expected = torch.tensor(EXPECTED[name])
    torch.testing.assert_close(paid.raw[name], expected)
    torch.testing.assert_close(paid.weighted[name], -2.0 * expected)
    torch.testing.assert_close(paid.total, -2.0 * expected)


class TwoCameras:
    """A model with two cameras whose goal is known."""

    n_cameras = 2

    def encode_file(self, path: str) -> torch.Tensor:
        return torch.tensor([[9.0, 9.0], [1.0, 2.0]])


def test_goal_image(t: Transition) -> None:
    seen = torch.tensor([[0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 4.0, 6.0], [0.0, 0.0, 1.0, 4.0]])
    t = replace(t, features={"latents": seen}, images=TwoCameras())
    manager = RewardManager({"goal_image": {"weight": -1.0, "params": {"path": "g", "view": 1}}}, {"latents"}, "dream")
    # (0,0), (3,4), (0,2): the root of 0, 25/2 and 4/2
    torch.testing.assert_close(manager.compute(t).raw["goal_image"], torch.tensor([0.0, 12.5**0.5, 2.0**0.5]))
    with pytest.raises(UserError, match="requires 'latents', which the sim cannot provide"):
        RewardManager({"goal_image": {"weight": -1.0, "params": {"path": "g"}}}, PROVIDES, "sim")


def test_progress_with_gamma(t: Transition) -> None:
    manager = RewardManager({"progress": {"weight": 1.0, "params": {"gamma": 0.5}}}, PROVIDES, "dream")
    torch.testing.assert_close(manager.compute(t).total, torch.tensor([0.0, 0.0, -0.375]))  # .5 * next - now


def test_workspace_limit_requires_the_slice_of_its_param(t: Transition) -> None:
    term = {"weight": -1.0, "params": {"low": [0.3] * 3, "high": [1.0] * 3, "slice_name": "object_pos"}}
    manager = RewardManager({"workspace_limit": term}, {"object_pos"}, "dream")
    assert manager.requires == {"object_pos"}
    # (.1, .2, .3) is (.2, .1, 0) below the box
    torch.testing.assert_close(manager.compute(t).raw["workspace_limit"], torch.tensor([0.05**0.5, 0.0, 0.0]))
    with pytest.raises(UserError, match="requires 'object_pos', which the sim cannot provide"):
        RewardManager({"workspace_limit": term}, {"hand_pos"}, "sim")


def test_workspace_limit_refuses_a_bad_box(t: Transition) -> None:
    def manager(low: list[float], high: list[float]) -> RewardManager:
        term = {"weight": -1.0, "params": {"low": low, "high": high}}
        return RewardManager({"workspace_limit": term}, PROVIDES, "sim")

    with pytest.raises(UserError, match="and not exceed it"):
        manager([1.0, 0.0, 0.0], [0.0, 1.0, 1.0])
    with pytest.raises(UserError, match="low and high have 2 numbers, the slice 'hand_pos' has 3"):
        manager([0.0, 0.0], [1.0, 1.0]).compute(t)
