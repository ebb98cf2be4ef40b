"""What a process saves of itself, so that a resumed run draws the same random numbers."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from rl.envs.sim import SimEnv
from rl.rounds.process_state import ProcessState


def part(sim: SimEnv) -> ProcessState:
    """The state of a process that has nothing but a simulator."""
    ppo, eval_envs = SimpleNamespace(generator=torch.Generator()), SimpleNamespace(envs=[])
    return ProcessState(ppo, sim, eval_envs, None, SimpleNamespace(real=None))  # type: ignore[arg-type]


def test_the_next_episodes_are_the_same_where_none_had_begun() -> None:
    sim, resumed = (SimEnv("Pendulum-v1", 2, n_context_frames=1, seed=seed) for seed in (0, 1))
    for _ in range(3):
        sim.reset()
    sim.begun = False  # as after a change of its tasks
    saved = part(sim).state_dict()
    assert saved["sim"] is None
    part(resumed).load_state_dict(saved)
    assert torch.equal(sim.reset()["state"], resumed.reset()["state"])
    assert torch.equal(sim.episode_seed, resumed.episode_seed)
    del saved["sim_generator"]
    part(resumed).load_state_dict(saved)  # of an older version
