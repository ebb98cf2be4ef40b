"""The schema of what a LeRobot dataset calls its columns, apart from reading them: no numpy is needed for it."""

from __future__ import annotations

from dataclasses import dataclass

from rewards.checks import at_least
from rewards.errors import UserError

ALL, NONE = "all", "none"
"""Values of `ColumnsConfig.success` that name no column."""


@dataclass(frozen=True)
class ColumnsConfig:
    """What a dataset calls its observations, actions and successes."""

    state: tuple[str, ...] = ("observation.state",)  # columns that make up the state, in this order
    action: tuple[str, ...] = ("action",)  # columns that make up an action, in this order
    success: str = ""  # column of frames or episodes; all: every episode; none: no episode; empty: next.success
    success_steps: int = 8  # last steps of an episode that count, where success is said of the episode alone

    def check(self) -> None:
        """Refuse values that mean nothing."""
        for name in ("state", "action"):
            if not getattr(self, name):
                raise UserError(f"{name}=[]: expected at least one column of the dataset")
        at_least(self, 1, "success_steps")
