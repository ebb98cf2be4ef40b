"""Imitation beside PPO: the anchor to demonstrations, and the control that imitates collected successes."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.buffer import Rollout, concatenate
from world_model.episodes import Episode
from world_model.losses import policy_loss
from world_model.model import Context, WorldActionModel
from world_model.windows import Windows

MOST = 20_000
"""Chunks of successes that are kept, the newest ones: 15 kB each with what the encoder made of them."""


Examples = tuple[Context, Tensor]
"""Contexts of n rows, and the actions taken there (n, chunk_size, action_dim)."""


class Imitation:
    """Loss of imitating demonstrations and, where asked for, the successes of the policy itself (filtered BC).

    Args:
        model: whose action decoder imitates.
        demonstrations: episodes of the tasks that are trained.
        demo_coef, success_coef: weights of the two parts; the caller adds the sum to its own loss.
        batch_size: windows drawn of each.
    """

    def __init__(
        self,
        model: WorldActionModel,
        demonstrations: list[Episode],
        demo_coef: float,
        success_coef: float,
        batch_size: int,
    ) -> None:
        self.model, self.demo_coef, self.success_coef, self.batch_size = model, demo_coef, success_coef, batch_size
        # The encoder is frozen, so every context is encoded once.
        self._demonstrations: Examples | None = None
        self.successes: Examples | None = None
        if demo_coef > 0:
            config = model.config
            windows = Windows(demonstrations, model.spec.tasks, config.n_context_frames, config.chunk_size)
            batch = windows.at(torch.arange(len(windows)))
            with torch.no_grad():
                self._demonstrations = model.encode(batch.context, batch.task), batch.actions

    def loss(self, generator: torch.Generator) -> Tensor | None:
        """Draw the weighted loss; None when there is nothing to imitate."""
        parts = [
            coef * self._draw(*examples, generator)
            for coef, examples in ((self.demo_coef, self._demonstrations), (self.success_coef, self.successes))
            if coef > 0 and examples is not None
        ]
        return torch.stack(parts).sum() if parts else None

    def add_successes(self, rollout: Rollout) -> None:
        """Keep the chunks of a rollout that led to a success in the same episode."""
        if self.success_coef == 0:
            return
        kept = leads_to_success(rollout.success, rollout.terminated | rollout.truncated).flatten().nonzero().squeeze(1)
        if len(kept):
            self._keep(concatenate(rollout.context)[kept], rollout.actions.flatten(0, 1)[kept])

    def add_episodes(self, episodes: list[Episode]) -> None:
        """Keep the chunks of recorded successes, one after the other and the last one up to the end."""
        size = self.model.config.chunk_size
        successes = [e for e in episodes if e.is_success and e.length >= size]
        if self.success_coef == 0 or not successes:
            return
        windows = Windows(successes, self.model.spec.tasks, self.model.config.n_context_frames, size)
        kept, first = [], 0
        for last in (e.length - size for e in successes):
            kept += [first + t for t in sorted({*range(0, last, size), last})]
            first += last + 1
        batch = windows.at(torch.tensor(kept))
        with torch.no_grad():
            self._keep(self.model.encode(batch.context, batch.task), batch.actions)

    def _keep(self, context: Context, actions: Tensor) -> None:
        if self.successes is not None:
            old_context, old_actions = self.successes
            context, actions = concatenate([old_context, context]), torch.cat([old_actions, actions])
        self.successes = context[-MOST:], actions[-MOST:]

    def _draw(self, context: Context, actions: Tensor, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(actions), (self.batch_size,), generator=generator)
        return policy_loss(self.model, context[index], actions[index], generator)


def leads_to_success(success: Tensor, done: Tensor) -> Tensor:
    """Mark the chunks (n_steps, num_envs) after which, or in which, their episode succeeded within the rollout."""
    marks = torch.zeros_like(success)
    later = torch.zeros_like(success[0])
    for i in reversed(range(len(success))):
        later = success[i] | (later & ~done[i])
        marks[i] = later
    return marks
