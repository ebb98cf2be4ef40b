"""Reward terms: plain functions on a batched `Transition`, the same in simulator, dream and recorded episodes."""

from rewards.api import Transition, reward
from rewards.errors import UserError
from rewards.manager import RewardManager, RewardStep

__all__ = ["RewardManager", "RewardStep", "Transition", "UserError", "reward"]
