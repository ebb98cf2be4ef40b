"""What cannot be is one line, before and while an environment is there."""

import pytest
import torch

from rewards.errors import UserError
from rl.envs.isaac.env import IsaacEnv


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("Isaac-Cartpol", {}, "env.id=Isaac-Cartpol is no task of Isaac Lab"),
        (
            "Isaac-Cartpole",
            {"device": "cuda:0"},
            "env.options.device=cuda:0: torch cannot use that here; expected cpu, cuda:0, ... or auto",
        ),
    ],
)
def test_what_cannot_be_made(env_id, options, message) -> None:
    if options and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError) as caught:
        IsaacEnv(env_id, 16, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_direct_task_takes_no_reward_function_of_isaac_lab() -> None:
    direct = "rewards.fallen: Isaac-Cartpole-Direct is a direct task, without reward terms of Isaac Lab; set it to null"
    with pytest.raises(UserError, match=direct):
        IsaacEnv("Isaac-Cartpole-Direct", 16, success="time_out", own_rewards={"fallen": (torch.zeros_like, {})})


def test_an_asset_that_is_not_there_names_the_folder(capfd) -> None:
    nowhere = ["env.scene.robot.spawn.usd_path=/nowhere/cartpole.usd"]
    with pytest.raises(UserError, match=r"/nowhere/cartpole\.usd; assets come from NVIDIA's store or"):
        IsaacEnv("Isaac-Cartpole", 16, success="time_out", overrides=nowhere)
    assert "Traceback" not in "".join(capfd.readouterr())  # Isaac Lab's launcher prints what ends it


def test_a_termination_term_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UserError) as caught:
        IsaacEnv("Isaac-Cartpole", 16)
    assert str(caught.value) == (
        "env.options.success=success: Isaac-Cartpole has no such termination term; expected one of time_out, "
        "cart_out_of_bounds, or null where there is no success"
    )
