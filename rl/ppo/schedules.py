"""Schedules: config numbers that change during training, from Stable-Baselines3 or the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

from rewards.errors import UserError, blamed, file_of
from rewards.plugins import check_params, load, source_file

Schedule = Callable[[float], float]
"""Progress remaining (1 at the start of the training, 0 at its end) -> value."""

N_TRIED = 11
"""Number of progress values at which a schedule is tested before the run begins."""


def linear(start: float, end: float, end_fraction: float = 1.0) -> Schedule:
    """Change linearly from `start` to `end`; `end` is reached after `end_fraction` of the training."""
    return LinearSchedule(start, end, end_fraction)


BUILTIN: dict[str, Callable[..., Schedule]] = {"linear": linear}


def load_schedule(key: str, value: Any) -> Schedule:
    """Return the schedule that a config field describes.

    Args:
        key: full name of the field, for messages: "ppo.learning_rate".
        value: a constant number, or `{func, params}`, where calling `func` with these params returns the schedule.

    Raises:
        UserError: func or params do not fit, or a value of the schedule is not a finite number of at least 0.
    """
    if not isinstance(value, Mapping):
        return FloatSchedule(value)
    func, params = value.get("func"), dict(value.get("params") or {})
    if not isinstance(func, str):
        expected = f"{', '.join(BUILTIN)}, module:function or path.py:function"
        raise UserError(f"{key}.func={func!r}: expected {expected}")
    found = load("schedule", func, BUILTIN, who=key)
    check_params(key, func, found, params, n_given=0)
    with blamed(key, file_of(found)):
        schedule = FloatSchedule(found(**params))
        tried = {i / (N_TRIED - 1): schedule(i / (N_TRIED - 1)) for i in reversed(range(N_TRIED))}
    for progress_remaining, number in tried.items():
        if not (math.isfinite(number) and number >= 0):
            at = f"at progress_remaining={progress_remaining:g}"
            raise UserError(
                f"{key}: {func} gives {number:g} {at}, expected a finite number of at least 0; change its params"
            )
    return schedule


def schedule_file(key: str, value: Any) -> Path | None:
    """Return the source file of the schedule that the config field `key` names; None for a number or a built-in."""
    return source_file("schedule", value["func"], BUILTIN, who=key) if isinstance(value, Mapping) else None
