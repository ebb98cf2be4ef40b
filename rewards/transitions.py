"""The one builder of transitions, so that they are the same in simulators, in dreams and on recorded episodes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rewards.api import PictureCodec, Transition

ACTION_HISTORY = 3
"""Actions that a `Transition` remembers, the current one included: enough for a second difference."""


def chunk_transition(
    *,
    frames: Tensor,
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
    codec: PictureCodec | None = None,
) -> Transition:
    """Return the steps of a chunk of `k` actions in `n` environments as one transition of n * k rows.

    One call of the reward terms for a whole chunk is much faster than one for each step.

    Args:
        frames: (n, k + 1, state_dim), the first one before the first action.
        actions: (n, k, action_dim).
        past: (n, ACTION_HISTORY - 1, action_dim), the actions before them, see `first_past`.
        success: (n, k) bool, whether the task is solved after each step.
        terminated: (n, k) bool, whether the episode ends there.
        elapsed: (n, k) int64, steps since the episode began, 1 after its first action.
        task: (n,) int64.
        slices: named parts of the state.
        progress: (n, k + 1), of each frame.
        task_reward: (n, k).
        own_rewards: name of a term -> (n, k).
        codec: of the slice `image`.
    """
    k = actions.shape[1]
    history = torch.cat([past, actions], dim=1).unfold(1, ACTION_HISTORY, 1).transpose(2, 3)
    return Transition(
        state=frames[:, :-1].flatten(0, 1),
        next_state=frames[:, 1:].flatten(0, 1),
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
        codec=codec,
    )


def first_past(actions: Tensor) -> Tensor:
    """Return the past (n, ACTION_HISTORY - 1, action_dim) of an episode that begins with `actions` (n, k, action_dim).

    An episode starts as if its first action had always been applied, so that beginning costs no jerk.
    """
    return actions[:, :1].expand(-1, ACTION_HISTORY - 1, -1)
