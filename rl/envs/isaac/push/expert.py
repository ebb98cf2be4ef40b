"""A scripted expert for the puck task: go around the puck, then push it along the line to the goal."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BEHIND = 0.075
"""Metres behind the puck where a push begins: the radii of both and some air."""

STEP = 0.02
"""Metres that an action of 1 asks for."""


def push_puck(state: Mapping[str, Tensor]) -> Tensor:
    """Actions (n, 2) within ± 1, for the positions (n, 3) of finger, puck and goal."""
    finger, puck, goal = (state[name][:, :2] for name in ("hand_pos", "object_pos", "goal_pos"))
    line = torch.nn.functional.normalize(goal - puck, dim=1)
    side = torch.stack([-line[:, 1], line[:, 0]], dim=1)
    along, across = ((finger - puck) * line).sum(1, keepdim=True), ((finger - puck) * side).sum(1, keepdim=True)
    sign = torch.where(across >= 0, 1.0, -1.0)
    around = puck + side * sign * BEHIND - line * BEHIND * (along < 0.5 * BEHIND)
    behind = puck - line * BEHIND
    # In line behind the puck: push. Behind it but off the line: get into line. Else: around it, not through it.
    in_line = (along < 0) & (across.abs() < 0.012)
    target = torch.where(in_line, puck + line * 0.03, torch.where(along < -0.6 * BEHIND, behind, around))
    return ((target - finger) / STEP).clamp(-1, 1)
