"""Measure the error of a dream against Isaac Lab by step, from the same restored states and with the same actions.

    ISAACSIM_ASSET_ROOT=.venv-isaac/assets .venv-isaac/bin/python benchmarks/isaac_dream.py [CHECKPOINT]

The noisy expert moves every environment to some state, which is saved. From it Isaac Lab runs 4 chunks of new noisy
actions, is restored, and runs them again: the difference is the error of restoring. The model dreams the same chunks
from the same frames. Errors are millimetres of the object's position, in 256 environments.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from rl.envs.isaac.env import IsaacEnv
from world_model.wam import modes
from world_model.wam.store import load_model
from world_model.wam.trust import HORIZON, position_error

TASK, N, BEFORE = "Isaac-Push-Puck", 256, 30


def main() -> None:
    torch.set_num_threads(1)
    model = load_model(sys.argv[1] if len(sys.argv) > 1 else "runs/isaac-push-tuned")
    size = model.config.chunk_size
    env = IsaacEnv(TASK, N, n_context_frames=model.config.n_context_frames, terminate_on_success=False, max_steps=120)
    generator = torch.Generator().manual_seed(0)
    env.reset(seed=0)
    for _ in range(BEFORE):
        env.step((env.expert_actions() + 0.5 * torch.randn(N, 2, generator=generator)).clamp(-1, 1))
    state = env.state_dict()
    context, task = env.context["state"].clone(), env.task.clone()
    actions: list[Tensor] = []
    first = torch.cat([context[:, -1:], *(run(env, actions, generator) for _ in range(HORIZON * size))], dim=1)
    env.load_state_dict(state)
    again = torch.cat([context[:, -1:], *(env.step(a).frames["state"] for a in actions)], dim=1)
    env.close()
    with torch.no_grad():
        dreams = modes.dream_on(model, context, task, torch.stack(actions, 1), torch.arange(N), 1)
        dream = torch.cat([context[:, -1:], *(frames for _, _, frames in dreams)], dim=1)
    print("| step | dream | Isaac Lab once more | nothing moves |\n| ---: | ---: | ---: | ---: |")
    for step in range(size // 2, HORIZON * size + 1, size // 2):
        still = first[:, :1].expand_as(first)
        errors = (1000 * float(position_error(model, first, other)[:, step].mean()) for other in (dream, again, still))
        print(f"| {step} | " + " | ".join(f"{error:.2f}" for error in errors) + " |")


def run(env: IsaacEnv, actions: list[Tensor], generator: torch.Generator) -> Tensor:
    """Take one noisy step of the expert and keep its action; returns the frame (N, 1, state_dim)."""
    actions.append((env.expert_actions() + 0.5 * torch.randn(N, 2, generator=generator)).clamp(-1, 1))
    return env.step(actions[-1]).frames["state"]


if __name__ == "__main__":
    main()
