"""Config of the column names of a LeRobot dataset, in its own module because it must load without numpy."""

from __future__ import annotations

from dataclasses import dataclass, field

from rewards.checks import at_least
from rewards.errors import UserError

ALL, NONE = "all", "none"
"""Values of `ColumnsConfig.success` that label all episodes instead of naming a column."""


@dataclass(frozen=True)
class ColumnsConfig:
    """Names of the columns that hold state, action, success and images in a dataset."""

    state: tuple[str, ...] = ("observation.state",)  # columns that are joined to the state, in this order
    action: tuple[str, ...] = ("action",)  # columns that are joined to the action, in this order
    success: str = ""  # column of frames or episodes; all: every episode; none: no episode; empty: next.success
    success_steps: int = 8  # steps at the end of a successful episode that count, if success is given per episode
    # camera -> column, {front: observation.images.front}; {}: none
    images: dict[str, str] = field(default_factory=dict)
    # pixels of each side: the square in the middle, scaled down; 0: as they are; own exports keep their size
    image_size: int = 64

    def check(self) -> None:
        """Raise `UserError` if no column is named, or a number is below 1."""
        for name in ("state", "action"):
            if not getattr(self, name):
                raise UserError(f"{name}=[]: expected at least one column of the dataset")
        at_least(self, 1, "success_steps")
        at_least(self, 0, "image_size")
