"""The search space of a sweep: what values each key of the config may take, as plain text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.errors import UserError
from rl.compose import parse

RANGE = re.compile(r"(log:)?([^,:]+?)\.\.([^,:]+)")
"""`LOW..HIGH`, or `log:LOW..HIGH` for an even spread over orders of magnitude."""

EXPECTED = "expected LOW..HIGH, log:LOW..HIGH, or values with commas, such as 1e-5..1e-3 or 128,256"

Scalar = bool | int | float | str | None


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`; integers if both ends are."""

    low: float
    high: float
    log: bool = False

    @property
    def is_int(self) -> bool:
        """Whether the values are integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def examples(self) -> tuple[Scalar, ...]:
        """Values that must fit the config if all do."""
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Scalar, ...]

    @property
    def examples(self) -> tuple[Scalar, ...]:
        """Values that must fit the config if all do."""
        return self.values


Space = dict[str, Range | Choice]
"""Key of the config, such as `ppo.learning_rate` -> its values."""


def read_space(written: Mapping[str, Any]) -> Space:
    """Return the search space of nested groups `{ppo: {learning_rate: "log:1e-5..1e-3"}}`.

    Raises:
        UserError: there is none, or a key has something else than a range or a list of values.
    """
    space = {key: _read(key, value) for key, value in _leaves(written)}
    if not space:
        raise UserError(
            "space: nothing to search; name at least one key, such as space.ppo.learning_rate=log:1e-5..1e-3"
        )
    return space


def written(value: Scalar) -> str:
    """Return a value as the command line has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _leaves(group: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in group.items():
        key = f"{prefix}{name}"
        found += _leaves(value, f"{key}.") if isinstance(value, Mapping) else [(key, value)]
    return found


def _read(key: str, value: Any) -> Range | Choice:
    if isinstance(value, str) and (match := RANGE.fullmatch(value.strip())):
        return _range(key, value, match)
    if isinstance(value, str):
        value = [_scalar(key, part) for part in value.split(",")]
    if not isinstance(value, list) or len(value) < 2:
        raise UserError(f"space.{key}={value!r}: {EXPECTED}")
    if not all(item is None or isinstance(item, bool | int | float | str) for item in value):
        raise UserError(f"space.{key}={value!r}: expected single values, no lists or groups")
    if len(set(map(repr, value))) < len(value):
        raise UserError(f"space.{key}={value!r}: a value is there twice")
    return Choice(tuple(value))


def _range(key: str, text: str, match: re.Match[str]) -> Range:
    low, high = (_scalar(key, end) for end in match.groups()[1:])
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)):
        raise UserError(f"space.{key}={text}: expected numbers at both ends")
    assert isinstance(low, int | float) and isinstance(high, int | float)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"space.{key}={text}: expected a low end that is less than the high one")
    if match[1] and low <= 0:
        raise UserError(f"space.{key}={text}: a logarithmic range begins above 0")
    return Range(low, high, bool(match[1]))


def _scalar(key: str, text: str) -> Scalar:
    value: Scalar = parse(f"value: {text.strip()}", f"in space.{key}").get("value")
    return value
