"""How much of what was dreamed an update may believe: less where trust is low, nothing of a success that flips."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.ppo.buffer import Rollout
from world_model.dream_env import DreamEnv, StartStates
from world_model.wam.model import WorldActionModel


def trust_weights(expected_error: Tensor) -> Tensor:
    """Weights of chunks (any shape): half of the largest at the median of the expected error, with a mean of 1."""
    weights = 1 / (1 + expected_error / expected_error.median().clamp(min=1e-12))
    return weights / weights.mean()


@torch.no_grad()
def flipped(model: WorldActionModel, rollout: Rollout, n_denoising_steps: int, seed: int, action_delay: int) -> Tensor:
    """Dream each success of a dreamed rollout again, with the same actions, new noise and one more denoising step.

    Returns (n_steps, num_envs) bool: chunks that led to a success which was not seen again in as many chunks.
    """
    marks = torch.zeros_like(rollout.success)
    last, env = rollout.success.nonzero().unbind(1)
    if len(last) == 0:
        return marks
    first = _first_chunks(rollout.terminated | rollout.truncated)[last, env]
    n, longest = len(last), int((last - first).max()) + 1
    seeds = seed + torch.arange(n, device=first.device)
    starts = StartStates(rollout.frames[first, env], rollout.task[first, env], seeds)
    most = longest * model.config.chunk_size
    dream = DreamEnv(model, n, starts, longest, n_denoising_steps + 1, most, in_order=True, action_delay=action_delay)
    dream.reset()
    again = torch.zeros_like(first, dtype=torch.bool)
    for t in range(longest):
        step = dream.step_chunk(rollout.actions[(first + t).clamp(max=last), env])
        again |= step.is_success & (first + t <= last)
    for i in (~again).nonzero().squeeze(1):
        marks[first[i] : last[i] + 1, env[i]] = True
    return marks


def _first_chunks(done: Tensor) -> Tensor:
    """Index of the chunk that each chunk's episode began with, from ends (n_steps, num_envs)."""
    n_steps = len(done)
    number = torch.arange(n_steps, device=done.device).unsqueeze(1).expand_as(done)
    begins = torch.cat([torch.ones_like(done[:1]), done[:-1]])
    return torch.where(begins, number, 0).cummax(0).values
