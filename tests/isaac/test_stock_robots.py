"""Tasks of Isaac Lab whose robots the newton wheel carries: they run as they are, without a network."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rewards.errors import UserError
from rl.envs.isaac import assets as isaac_assets
from rl.envs.isaac.assets import ROBOTS, Robot, lay_out
from rl.envs.isaac.env import IsaacEnv

SIZES = {"Isaac-Ant": (60, 8), "Isaac-Humanoid": (87, 21)}
"""Numbers of the state and of an action, as Isaac Lab documents them."""


@pytest.fixture(scope="module", params=list(SIZES))
def env(request) -> Iterator[IsaacEnv]:
    env = IsaacEnv(request.param, 4, success=None, terminate_on_success=False)
    yield env
    env.close()


def test_a_stock_robot_walks_a_few_steps(env) -> None:
    assert (env.spec.state_dim, env.spec.action_dim) == SIZES[env.env_id]
    env.reset(seed=0)
    before = env.context["state"][:, -1].clone()
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        actions = 2 * torch.rand(4, 4, env.spec.action_dim, generator=generator) - 1
        step = env.step_chunk(actions)
    assert step.frames["state"].isfinite().all() and step.task_reward.isfinite().all()
    assert ((step.frames["state"][:, -1] - before).abs().amax(1) > 0.01).all()
    assert not step.terminated.any()  # it stands where its config puts it, and has not fallen within 8 steps


def test_a_robot_that_is_called_otherwise_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isaac_assets, "ROBOTS", (Robot("ant.usda", "ant.usd", {"no such text": "nor this"}),))
    with pytest.raises(UserError, match=r"ant\.usda: expected no such text in it"):
        lay_out(tmp_path)
    monkeypatch.setattr(isaac_assets, "ROBOTS", (Robot("bee.usda", "bee.usd"),))
    with pytest.raises(UserError, match=r"bee\.usda: cannot read it \(No such file or directory\)"):
        lay_out(tmp_path)


def test_all_robots_are_laid_out(tmp_path: Path) -> None:
    lay_out(tmp_path)
    assert all((tmp_path / robot.target).stat().st_size > 1000 for robot in ROBOTS)
