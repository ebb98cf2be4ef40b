"""What may be written for a searched key, and what comes of it."""

from __future__ import annotations

from typing import Any

import pytest

from rewards.errors import UserError
from rl.compose import compose
from rl.sweeps.space import Choice, Range, read_space, written
from rl.verbs.options import SweepOptions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.1..0.3", Range(0.1, 0.3)),
        ("log:1e-5..1e-3", Range(1e-5, 1e-3, log=True)),
        ("2..8", Range(2, 8)),
        ("-1..1", Range(-1, 1)),
        ("128,256", Choice((128, 256))),
        ("true,false", Choice((True, False))),
        ("null,0.5", Choice((None, 0.5))),
        ("flow,gaussian", Choice(("flow", "gaussian"))),
        ("[1, 2]", Choice((1, 2))),
    ],
)
def test_what_is_written_on_the_command_line(text: str, expected: Range | Choice) -> None:
    options = compose(None, [f"space.ppo.x={text}"], SweepOptions)
    assert read_space(options.space) == {"ppo.x": expected}


def test_a_range_of_integers_has_integers() -> None:
    assert Range(2, 8).is_int and not Range(2, 8.0).is_int and not Range(0.5, 1).is_int


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("1e-3..1e-5", "expected a low end that is less"),
        ("log:0..1", "a logarithmic range begins above 0"),
        ("a..b", "expected numbers at both ends"),
        ("5", "expected LOW..HIGH"),
        (5, "expected LOW..HIGH"),
        ([[1], [2]], "expected single values"),
        ("1,1", "a value is there twice"),
    ],
)
def test_a_wrong_range_is_one_clear_line(value: Any, problem: str) -> None:
    with pytest.raises(UserError, match=f"space.ppo.x=.*{problem}"):
        read_space({"ppo": {"x": value}})


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to search"):
        read_space({})


def test_values_are_written_as_the_command_line_has_them() -> None:
    assert [written(value) for value in (1e-4, 0.123456, 7, True, None, "flow")] == [
        "0.0001",
        "0.1235",
        "7",
        "true",
        "null",
        "flow",
    ]
