"""Rollout buffer: one row per chunk, and advantages over chunks of different length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from world_model.tree import Tree, join, rows, to


@dataclass
class Rollout:
    """`n_steps` chunks of `num_envs` environments. Tensors are (n_steps, num_envs, ...) unless said otherwise."""

    context: list[Tree]  # one per chunk, num_envs rows each: the encoded observation
    chain: Tensor  # from which the likelihood is computed again, see `TrainablePolicy`
    log_prob: Tensor  # (…, n_action_steps)
    value: Tensor
    reward: Tensor  # discounted sum over the executed steps of the chunk
    n_executed: Tensor  # steps executed, 1..k
    terminated: Tensor  # bool
    truncated: Tensor  # bool
    next_value: Tensor  # value of the state after the chunk, before any restart
    reference: Tensor  # of the chain, see `TrainablePolicy.reference`
    success: Tensor  # bool, success was seen in the chunk
    frames: dict[str, Tensor]  # context before the chunk, without noise: feature -> (…, n_context_frames, *shape)
    actions: Tensor  # as the policy chose them (…, k, action_dim)
    task: Tensor
    expected_error: Tensor  # error that the world model expects of the chunk; 0 in the simulator
    weight: Tensor  # weight of the chunk in an update
    terms: dict[str, float] = field(default_factory=dict)  # mean of each reward term per executed step

    def success_rate(self, fresh: bool, total: Callable[[Tensor], Tensor] = lambda values: values) -> float:
        """Return the share of successes among the episodes that ended; 0 if none did.

        If every episode began with the rollout (`fresh`), count only the first of each environment. A later one has
        too little time left: it may end with a quick success, but a failure would not end before the rollout does.
        `total` sums a tensor over the processes that collect together.
        """
        ended, hits, _ = self._ends(fresh)
        return float(total(hits.sum()) / total(ended.sum()).clamp(min=1))

    def ends_by_task(self, n_tasks: int, fresh: bool) -> Tensor:
        """Return the episodes that ended, and those of them that succeeded, by task, as `success_rate` counts them.

        Shape: (n_tasks, 2).
        """
        ended, hits, task = self._ends(fresh)
        return torch.stack([torch.bincount(task[of], minlength=n_tasks) for of in (ended, hits)], dim=1).float()

    def _ends(self, fresh: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return ends and successful ends, both bool, and tasks, all of the same shape; see `success_rate`."""
        ends = self.terminated | self.truncated
        if not fresh:
            return ends, self.success & ends, self.task
        first = ends.long().cumsum(0) - ends.long() == 0  # no end before this chunk
        return ends.any(0), (self.success & first).any(0) & ends.any(0), self.task[0]

    def advantages(self, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
        """Return generalised advantages and returns over chunks. Shape: (n_steps, num_envs) each."""
        return chunk_gae(
            reward=self.reward,
            value=self.value,
            next_value=self.next_value,
            n_executed=self.n_executed,
            terminated=self.terminated,
            done=self.terminated | self.truncated,
            gamma=gamma,
            gae_lambda=gae_lambda,
        )


@dataclass
class Samples:
    """Rollouts flattened for the update: `n` rows; a `Tree`."""

    context: Tree
    chain: Tensor
    log_prob: Tensor  # (…, n_action_steps)
    value: Tensor
    advantage: Tensor
    returns: Tensor
    reference: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.log_prob)

    def __getitem__(self, index: Tensor) -> Samples:
        """Select the rows `index`."""
        return rows(self, index)

    def to(self, device: torch.device) -> Samples:
        """Move all tensors to a device."""
        return to(self, device)

    @staticmethod
    def from_rollout(rollout: Rollout, gamma: float, gae_lambda: float) -> Samples:
        """Compute advantages and returns, and flatten steps and environments to n_steps * num_envs rows."""
        advantage, returns = rollout.advantages(gamma, gae_lambda)
        return Samples(
            context=join(rollout.context),
            chain=rollout.chain.flatten(0, 1),
            log_prob=rollout.log_prob.flatten(0, 1),
            value=rollout.value.flatten(),
            advantage=advantage.flatten(),
            returns=returns.flatten(),
            reference=rollout.reference.flatten(0, 1),
            weight=rollout.weight.flatten(),
        )


def chunk_gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    n_executed: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantages (GAE, Schulman et al., 1506.02438) where a chunk lasts `n_executed` environment steps.

    A chunk is an action of a semi-Markov decision process: an option (Sutton, Precup and Singh, 1999). With `gamma` the
    discount of one environment step, k the executed steps and R their discounted rewards, equation 16 becomes

        delta_i = R_i + gamma ** k_i * V(s after the chunk) - V(s_i)
        advantage_i = delta_i + gamma ** k_i * gae_lambda * advantage_(i+1)

    So `gae_lambda` counts decisions, `gamma` steps. All input tensors and both outputs (advantages, returns) are
    (n_steps, num_envs).
    """
    discount = gamma ** n_executed.to(value.dtype)
    # A time-out bootstraps from `next_value`: the episode did not end, we stopped watching (Pardo et al., 1712.00378).
    delta = reward + discount * next_value * (~terminated) - value
    advantage = torch.zeros_like(value)
    running = torch.zeros_like(value[0])
    for i in reversed(range(len(value))):
        # Both kinds of end cut the sum: the next row belongs to another episode.
        running = delta[i] + discount[i] * gae_lambda * (~done[i]) * running
        advantage[i] = running
    return advantage, advantage + value  # returns: the TD(lambda) targets of the critic, as in SB3


def explained_variance(prediction: Tensor, target: Tensor) -> float:
    """Return 1 - Var(target - prediction) / Var(target), or 0 if the target is constant."""
    variance = target.var(correction=0)
    return float(1 - (target - prediction).var(correction=0) / variance) if variance > 1e-12 else 0.0
