"""Imitation beside PPO: the anchor to demonstrations, and the control that imitates collected successes."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.buffer import Rollout
from world_model.episodes import Episode
from world_model.losses import policy_loss
from world_model.model import WorldActionModel
from world_model.windows import Windows


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
        self.demonstrations = None
        if demo_coef > 0:
            config = model.config
            self.demonstrations = Windows(demonstrations, model.spec.tasks, config.n_context_frames, config.chunk_size)
        self._successes: tuple[Tensor, Tensor, Tensor] | None = None  # context frames, task, actions of whole chunks

    def loss(self, generator: torch.Generator) -> Tensor | None:
        """Draw the weighted loss; None when there is nothing to imitate."""
        parts = []
        if self.demonstrations is not None:
            batch = self.demonstrations.sample(self.batch_size, generator)
            parts.append(self.demo_coef * policy_loss(self.model, batch.context, batch.task, batch.actions, generator))
        if self.success_coef > 0 and self._successes is not None:
            frames, task, actions = self._successes
            index = torch.randint(len(task), (self.batch_size,), generator=generator)
            parts.append(
                self.success_coef * policy_loss(self.model, frames[index], task[index], actions[index], generator)
            )
        return torch.stack(parts).sum() if parts else None

    def add_successes(self, rollout: Rollout) -> None:
        """Keep the chunks of a rollout that led to a success in the same episode."""
        if self.success_coef == 0:
            return
        kept = leads_to_success(rollout.success, rollout.terminated | rollout.truncated)
        if not kept.any():
            return
        new = (rollout.state[kept], rollout.task[kept], rollout.actions[kept])
        old = self._successes or tuple(part[:0] for part in new)
        frames, task, actions = (torch.cat(pair) for pair in zip(old, new, strict=True))
        self._successes = frames, task, actions


def leads_to_success(success: Tensor, done: Tensor) -> Tensor:
    """Mark the chunks (n_steps, num_envs) after which, or in which, their episode succeeded within the rollout."""
    marks = torch.zeros_like(success)
    later = torch.zeros_like(success[0])
    for i in reversed(range(len(success))):
        later = success[i] | (later & ~done[i])
        marks[i] = later
    return marks
