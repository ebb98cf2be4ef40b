"""Use a reward term of this project in a task config of Isaac Lab, so that both compute the same reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from isaaclab.managers import ManagerTermBase, RewardTermCfg
from torch import Tensor

from rewards import RewardManager
from rewards.transitions import ACTION_HISTORY, chunk_transition, first_past
from rl.envs.isaac.launch import widths


def isaac_term(
    func: str, weight: float, params: Mapping[str, Any] | None = None, group: str = "policy", success: str = "success"
) -> RewardTermCfg:
    """Build a term for the `rewards` of a manager-based task.

    `cfg.rewards.smooth = isaac_term("action_jerk", -0.05)`. Isaac Lab multiplies it by the seconds of a step, as it
    does with its own; `wamtune train` does not.

    Args:
        func: a built-in name, `module:function` or `path.py:function`, as in `rewards:` of our configs.
        weight: of the term.
        params: of the term.
        group: observation group whose vectors are the state; its terms are the named slices.
        success: the termination term that counts as success, if there is one.
    """
    terms = {"term": {"func": func, "weight": 1.0, "params": dict(params or {})}}
    return RewardTermCfg(func=_OurTerm, weight=weight, params={"terms": terms, "group": group, "success": success})


class _OurTerm(ManagerTermBase):
    """Builds a transition in the middle of Isaac Lab's step: after its terminations, before its resets."""

    def __init__(self, cfg: RewardTermCfg, env: Any) -> None:
        super().__init__(cfg, env)
        n_actions = env.action_manager.total_action_dim
        self.past = torch.zeros(env.num_envs, ACTION_HISTORY - 1, n_actions, device=env.device)
        self.fresh = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
        self.manager: RewardManager | None = None  # built at the first step, since it needs the observation manager
        self.slices: dict[str, slice] = {}

    def reset(self, env_ids: Any = None) -> None:
        """Forget the actions of the episodes that ended."""
        self.fresh[slice(None) if env_ids is None else env_ids] = True
        if self.manager is not None:
            self.manager.reset(self.fresh)

    def __call__(self, env: Any, terms: Mapping[str, Any], group: str, success: str) -> Tensor:
        """Return the reward of each environment. Shape: (num_envs,)."""
        now = env.observation_manager.compute_group(group)
        if self.manager is None:
            self._build(env, terms, group, {group: now})
        # A transition of one step: frames before and after it, and the actions that came before (see `first_past`).
        action = env.action_manager.action
        actions = action.unsqueeze(1)
        past = torch.where(self.fresh[:, None, None], first_past(actions), self.past)
        self.past = torch.cat([past[:, 1:], actions], dim=1)
        ends = env.termination_manager
        never = torch.zeros_like(self.fresh)
        transition = chunk_transition(
            frames={"state": torch.stack([env.obs_buf[group], now], dim=1)},
            actions=actions,
            past=past,
            success=ends.get_term(success) if success in ends.active_terms else never,
            terminated=ends.terminated.clone(),
            elapsed=env.episode_length_buf.clone(),
            task=torch.zeros_like(env.episode_length_buf),
            slices=self.slices,
        )
        self.fresh[:] = False
        assert self.manager is not None
        return self.manager.compute(transition).total

    def _build(self, env: Any, terms: Mapping[str, Any], group: str, obs: Mapping[str, Any]) -> None:
        at = 0
        for name, width in widths(env, obs, group):
            self.slices[name] = slice(at, at + width)
            at += width
        self.manager = RewardManager(terms, self.slices, "sim")
