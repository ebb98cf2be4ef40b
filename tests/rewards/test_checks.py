"""Each check accepts its own range, ends as they are meant, and refuses the rest in one line with name and value."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from rewards.checks import (
    at_least,
    between_0_1,
    named_or_only,
    not_negative_finite,
    positive,
    positive_finite,
    require,
    within_0_1,
)
from rewards.errors import UserError

Check = Callable[..., None]

RANGES: tuple[tuple[Check, list[float], list[float], str], ...] = (
    (lambda c, *names: at_least(c, 2, *names), [2, 3, math.inf], [1.999, -1, math.nan], "at least 2"),
    (positive, [1e-9, math.inf], [0, -1, math.nan], "more than 0"),
    (positive_finite, [1e-9, 1e300], [0, -1, math.inf, math.nan], "a finite number above 0"),
    (not_negative_finite, [0, 1e300], [-1e-9, math.inf, math.nan], "a finite number, at least 0"),
    (within_0_1, [0, 0.5, 1], [-1e-9, 1.001, math.nan], "between 0 and 1"),
    (between_0_1, [1e-9, 0.5, 0.999], [0, 1, math.nan], "between 0 and 1"),
)


@pytest.mark.parametrize(("check", "good", "bad", "expected"), RANGES)
def test_a_check_accepts_its_range_and_names_the_first_value_outside(
    check: Check, good: list[float], bad: list[float], expected: str
) -> None:
    for value in good:
        check(SimpleNamespace(rate=value), "rate")
    for value in bad:
        with pytest.raises(UserError) as error:
            check(SimpleNamespace(fine=good[0], rate=value, later=value), "fine", "rate", "later")
        assert str(error.value) == f"rate={value}: expected {expected}"


def test_require_says_what_the_caller_expects() -> None:
    require(SimpleNamespace(every=1), ("every",), lambda value: value >= 1, "at least 1 step")
    with pytest.raises(UserError, match=r"^every=0: expected at least 1 step$"):
        require(SimpleNamespace(every=0), ("every",), lambda value: value >= 1, "at least 1 step")


def test_a_name_may_be_left_out_where_there_is_one() -> None:
    assert named_or_only("task", "", ["push"]) == named_or_only("task", "push", ("reach", "push")) == "push"
    for name, known, line in (
        ("", ["push", "reach"], "task=NAME is missing: expected one of push, reach"),
        ("lift", ["push"], "task=lift: expected one of push"),
    ):
        with pytest.raises(UserError) as error:
            named_or_only("task", name, known)
        assert str(error.value) == line
