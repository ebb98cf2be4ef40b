"""A scripted expert for the puck task: go around the puck, then push it along the line to the goal."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BEHIND = 0.075
"""Metres behind the puck where a push begins: the radii of puck and finger, and some clearance."""

STEP = 0.02
"""Metres that an action of 1 moves the finger's target."""


def push_puck(state: Mapping[str, Tensor]) -> Tensor:
    """Return actions (n, 2) within ± 1 for the positions (n, 3) of finger, puck and goal."""
    finger, puck, goal = (state[name][:, :2] for name in ("hand_pos", "object_pos", "goal_pos"))
    # Position of the finger relative to the puck: along the line to the goal, and across it.
    line = torch.nn.functional.normalize(goal - puck, dim=1)
    side = torch.stack([-line[:, 1], line[:, 0]], dim=1)
    along, across = ((finger - puck) * line).sum(1, keepdim=True), ((finger - puck) * side).sum(1, keepdim=True)
    sign = torch.where(across >= 0, 1.0, -1.0)
    around = puck + side * sign * BEHIND - line * BEHIND * (along < 0.5 * BEHIND)
    behind = puck - line * BEHIND
    # Behind the puck and on the line: push. Behind the puck but off the line: move onto the line. Else: go around it.
    in_line = (along < 0) & (across.abs() < 0.012)
    target = torch.where(in_line, puck + line * 0.03, torch.where(along < -0.6 * BEHIND, behind, around))
    return ((target - finger) / STEP).clamp(-1, 1)
