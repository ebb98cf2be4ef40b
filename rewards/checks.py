"""Checks for the values of a config, with one-line errors. They need no torch.

A config is any object with attributes. Names are checked in the given order; the error is about the first wrong one.
NaN fails every check, and None passes: it is the value of a key that is not set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from rewards.errors import UserError


def at_least(config: object, low: float, *names: str) -> None:
    """Raise `UserError` if one of these values is below `low`."""
    require(config, names, lambda value: value >= low, f"at least {low}")


def positive(config: object, *names: str) -> None:
    """Raise `UserError` if one of these values is 0 or less."""
    require(config, names, lambda value: value > 0, "more than 0")


def positive_finite(config: object, *names: str) -> None:
    """Raise `UserError` if one of these values is 0 or less, infinite or NaN."""
    require(config, names, lambda value: 0 < value < math.inf, "a finite number above 0")


def not_negative_finite(config: object, *names: str) -> None:
    """Raise `UserError` if one of these values is negative, infinite or NaN."""
    require(config, names, lambda value: 0 <= value < math.inf, "a finite number, at least 0")


def within_0_1(config: object, *names: str) -> None:
    """Raise `UserError` if one of these values is below 0 or above 1."""
    require(config, names, lambda value: 0 <= value <= 1, "between 0 and 1")


def between_0_1(config: object, *names: str) -> None:
    """Raise `UserError` if one of these values is not strictly between 0 and 1."""
    require(config, names, lambda value: 0 < value < 1, "between 0 and 1")


def require(config: object, names: tuple[str, ...], holds: Callable[[Any], bool], expected: str) -> None:
    """Raise `UserError` if `holds(value)` is false for one of these values; `expected` ends the message.

    Comparisons with NaN are false, so the checks above refuse NaN.
    """
    for name in names:
        if (value := getattr(config, name)) is not None and not holds(value):
            raise UserError(f"{name}={value}: expected {expected}")


def named_or_only(key: str, name: str, known: Sequence[str]) -> str:
    """Return `name` if it is one of the `known` names, and the only known one if it is empty.

    Raises:
        UserError: it is neither; the message begins with `key`.
    """
    if name in known or (not name and len(known) == 1):
        return name or known[0]
    raise UserError(f"{key}={name or 'NAME is missing'}: expected one of {', '.join(known)}")
