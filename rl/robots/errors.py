"""Why a robot is made to stand still, and what Python raises at numbers that are none."""

from __future__ import annotations

NOT_NUMBERS = (TypeError, ValueError, OverflowError)
"""What is raised where something is no list of numbers, or one of them is too large for a float64."""


class Stop(Exception):
    """The robot is to stand still; the message says why."""
