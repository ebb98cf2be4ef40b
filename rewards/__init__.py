"""Reward terms: plain functions on a batched `Transition`, the same in simulator, dream and recorded episodes.

The names below are imported on first use, because `rewards.errors` is needed everywhere and must load without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewards.api import Transition, reward
    from rewards.errors import UserError
    from rewards.manager import RewardManager, RewardStep

__all__ = ["RewardManager", "RewardStep", "Transition", "UserError", "reward"]

_HOMES = {
    "RewardManager": "rewards.manager",
    "RewardStep": "rewards.manager",
    "Transition": "rewards.api",
    "UserError": "rewards.errors",
    "reward": "rewards.api",
}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
