"""Physics on a CPU is recorded and replayed: faster, and to the bit what Isaac Lab computes without."""

from contextlib import closing

import pytest
import torch
from isaaclab_newton.physics import NewtonManager

from rl.envs.isaac.env import IsaacEnv

AS_SHIPPED = "env.sim.physics.use_cuda_graph=false"
N = 8


def lived(env: IsaacEnv) -> list[torch.Tensor]:
    """Frames and rewards of some chunks, in which episodes end and begin, and of two after a state was restored."""
    env.reset(seed=3)
    generator = torch.Generator().manual_seed(0)
    steps, state = [], env.state_dict()
    for i in range(14):
        if i == 12:
            env.load_state_dict(state)
        actions = torch.rand(N, 8, env.spec.action_dim, generator=generator) * 2 - 1
        steps.append(env.step_chunk(actions.sign() if i < 8 else actions))
    assert any((s.terminated | s.truncated).any() for s in steps)
    return [part for s in steps for part in (s.frames["state"], s.reward, s.obs["state"])]


@pytest.mark.parametrize(("task", "success"), [("Isaac-Cartpole", "time_out"), ("Isaac-Push-Puck", "success")])
def test_replayed_physics_is_that_of_isaac_lab(task: str, success: str) -> None:
    seen = []
    simulate = NewtonManager._simulate_physics_only.__func__
    for overrides in ([], [AS_SHIPPED]):
        with closing(IsaacEnv(task, N, success=success, overrides=overrides, max_steps=60)) as env:
            seen.append(lived(env))
            assert (NewtonManager._graph is None) == bool(overrides)
        assert NewtonManager._simulate_physics_only.__func__ is simulate  # others in this process have it as it was
    for replayed, computed in zip(*seen, strict=True):
        assert torch.equal(replayed, computed)
