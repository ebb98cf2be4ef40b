"""The only function that builds transitions, so that they are equal in simulators, dreams and recorded episodes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rewards.api import ImageModel, Transition

VECTORS = ("state", "environment_state")
"""Features that hold numbers of the simulator's state, in the order in which they are joined; `world_model.spec` has
the same names, which cannot be imported here."""

ACTION_HISTORY = 3
"""Number of actions in `Transition.action_history`, including the current one: enough for a second difference."""


def chunk_transition(
    *,
    frames: Mapping[str, Tensor],
    actions: Tensor,
    past: Tensor,
    success: Tensor,
    terminated: Tensor,
    elapsed: Tensor,
    task: Tensor,
    slices: dict[str, slice],
    progress: Tensor | None = None,
    task_reward: Tensor | None = None,
    own_rewards: Mapping[str, Tensor] | None = None,
    images: ImageModel | None = None,
) -> Transition:
    """Return the steps of a chunk of `k` actions in `n` environments as one transition with n * k rows.

    The rows of an environment are consecutive. One call of the reward terms for a whole chunk is much faster than one
    call per step.

    Args:
        frames: feature -> (n, k + 1, *shape), from before the first action to after the last. `environment_state`,
            if there is one, is joined to the state, so that a term finds all numbers in one vector.
        actions: (n, k, action_dim).
        past: (n, ACTION_HISTORY - 1, action_dim), the actions before the chunk, see `first_past`.
        success: (n, k) bool, whether the task is solved after each step.
        terminated: (n, k) bool, whether the episode ends there.
        elapsed: (n, k) int64, steps since the episode began, 1 after its first action.
        task: (n,) int64.
        slices: named parts of the joined state.
        progress: (n, k + 1), the model's estimate for each frame.
        task_reward: (n, k), the simulator's own reward.
        own_rewards: name of a term -> (n, k), computed by the simulator.
        images: the world model, if it reads images.
    """
    k = actions.shape[1]
    # A sliding window over past and current actions. Shape: (n, k, ACTION_HISTORY, action_dim).
    history = torch.cat([past, actions], dim=1).unfold(1, ACTION_HISTORY, 1).transpose(2, 3)
    state = torch.cat([frames[name] for name in VECTORS if name in frames], dim=-1)
    return Transition(
        state=state[:, :-1].flatten(0, 1),
        next_state=state[:, 1:].flatten(0, 1),
        action=actions.flatten(0, 1),
        action_history=history.flatten(0, 1),
        success=success.flatten(),
        terminated=terminated.flatten(),
        elapsed=elapsed.flatten(),
        task=task.repeat_interleave(k),
        slices=slices,
        progress=None if progress is None else progress[:, :-1].flatten(),
        next_progress=None if progress is None else progress[:, 1:].flatten(),
        task_reward=None if task_reward is None else task_reward.flatten(),
        own_rewards={name: value.flatten() for name, value in (own_rewards or {}).items()},
        features={name: values[:, 1:].flatten(0, 1) for name, values in frames.items() if name != "state"},
        images=images,
    )


def first_past(actions: Tensor) -> Tensor:
    """Return the past actions (n, ACTION_HISTORY - 1, action_dim) at the start of an episode.

    The first of `actions` (n, k, action_dim) is repeated, so that terms on action changes are 0 at the first step.
    """
    return actions[:, :1].expand(-1, ACTION_HISTORY - 1, -1)
