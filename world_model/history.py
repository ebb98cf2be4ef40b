"""Past steps of running episodes: commands not executed yet, and the actions that reward terms compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.transitions import ACTION_HISTORY, first_past


class ActionDelay:
    """Executes each action `n_steps` steps after its command; zeros are executed first.

    Args:
        num_envs: number of environments.
        n_steps: steps between a command and its execution; 0: none.
        action_dim: length of an action.
        device: of all tensors.
    """

    def __init__(self, num_envs: int, n_steps: int, action_dim: int, device: torch.device) -> None:
        self.n_steps = n_steps
        self.queue = torch.zeros(num_envs, n_steps, action_dim, device=device)  # commanded, not executed yet

    def __call__(self, actions: Tensor) -> Tensor:
        """Return the actions to execute now for the commanded `actions` (num_envs, k, action_dim). Same shape."""
        if self.n_steps == 0:
            return actions
        queue = torch.cat([self.queue, actions], dim=1)
        self.queue = queue[:, actions.shape[1] :].clone()
        return queue[:, : actions.shape[1]]

    def reset(self, mask: Tensor) -> None:
        """Forget the commands of the environments in `mask` (num_envs,) bool, where an episode begins."""
        self.queue[mask] = 0.0


class ActionHistory:
    """The last actions of each environment, for reward terms on changes of the action."""

    def __init__(self, num_envs: int, action_dim: int, device: torch.device) -> None:
        self.past = torch.zeros(num_envs, ACTION_HISTORY - 1, action_dim, device=device)  # the newest last
        self.is_empty = torch.ones(num_envs, dtype=torch.bool, device=device)  # no action yet in this episode

    def before(self, actions: Tensor) -> Tensor:
        """Return the actions before a chunk (num_envs, k, action_dim); at the start of an episode, see `first_past`.

        Shape: (num_envs, ACTION_HISTORY - 1, action_dim).
        """
        return torch.where(self.is_empty[:, None, None], first_past(actions), self.past)

    def add(self, actions: Tensor, n_executed: Tensor) -> None:
        """Add the first `n_executed` (num_envs,) of `actions` (num_envs, k, action_dim)."""
        self.past = window(torch.cat([self.before(actions), actions], dim=1), n_executed, ACTION_HISTORY - 1)
        self.is_empty = torch.zeros_like(self.is_empty)

    def reset(self, mask: Tensor) -> None:
        """Forget the actions of the environments in `mask` (num_envs,) bool, where an episode begins."""
        self.past[mask], self.is_empty[mask] = 0.0, True


def window(history: Tensor, shift: Tensor, length: int) -> Tensor:
    """Take `length` steps of `history` (n, steps, ...), starting at step `shift` (n,) of each row.

    With old and new steps concatenated, a shift by the number of new steps gives the newest `length` steps.
    """
    index = shift[:, None] + torch.arange(length, device=history.device)
    rows = torch.arange(len(history), device=history.device)[:, None]
    return history[rows, index]
