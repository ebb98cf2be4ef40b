"""The exception that stops a robot, and the exceptions that Python raises for values that are not numbers."""

from __future__ import annotations

NOT_NUMBERS = (TypeError, ValueError, OverflowError)
"""Raised by a conversion to float64 if a value is not a list of numbers, or a number is too large."""


class Stop(Exception):
    """Raised to make the robot stand still; the message is the reason."""
