"""A number of the config that changes over the training: its values by hand, and what cannot be one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rewards.errors import UserError
from rl.compose import compose, to_yaml
from rl.config import TrainConfig
from rl.ppo.schedules import load_schedule, schedule_file

OWN = "def steps(high, low):\n    return lambda progress_remaining: high if progress_remaining > 0.5 else low\n"


def linear(**params: Any) -> dict[str, Any]:
    return {"func": "linear", "params": params}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3e-4, [3e-4, 3e-4, 3e-4, 3e-4]),
        (linear(start=1e-3, end=2e-4), [1e-3, 8e-4, 6e-4, 2e-4]),
        (linear(start=1e-3, end=2e-4, end_fraction=0.5), [1e-3, 6e-4, 2e-4, 2e-4]),  # half of the way at a quarter
        ({"func": "own.py:steps", "params": {"high": 1.0, "low": 0.5}}, [1.0, 1.0, 0.5, 0.5]),
    ],
)
def test_values_by_hand(value: Any, expected: list[float]) -> None:
    schedule = load_schedule("ppo.learning_rate", value)
    assert [schedule(remaining) for remaining in (1.0, 0.75, 0.5, 0.0)] == pytest.approx(expected)


def test_the_source_of_an_own_one_is_known() -> None:
    assert schedule_file("ppo.clip_range", {"func": "own.py:steps"}) == Path("own.py").resolve()
    assert (
        schedule_file("ppo.clip_range", linear(start=1, end=0)) is None and schedule_file("ppo.clip_range", 1) is None
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"params": {}}, "ppo.learning_rate.func=None: expected linear, module:function or path.py:function"),
        (
            {"func": "linaer"},
            "ppo.learning_rate: unknown func 'linaer'; did you mean 'linear'?; known: linear; "
            "for your own write func: path.py:name or module:name",
        ),
        (
            linear(start=1.0),
            "ppo.learning_rate: params of linear: missing a required argument: 'end'; "
            "it takes start, end, end_fraction",
        ),
        (
            linear(start=1.0, end=-1.0),
            "ppo.learning_rate: linear gives -0.2 at progress_remaining=0.4, "
            "expected a finite number of at least 0; change its params",
        ),
        (
            {"func": "own.py:steps", "params": {"high": 1, "low": float("nan")}},
            "ppo.learning_rate: own.py:steps gives nan at progress_remaining=0.5, "
            "expected a finite number of at least 0; change its params",
        ),
        (
            {"func": "own.py:steps", "params": {"high": None, "low": 1}},
            "ppo.learning_rate raised TypeError: float() argument must be a string or a real number, not 'NoneType'; "
            "see ",
        ),
    ],
)
def test_what_no_schedule_can_be(value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_schedule("ppo.learning_rate", value)
    line = str(caught.value)
    assert line.startswith(message) if message.endswith("see ") else line == message


def test_the_command_line_takes_a_number_or_a_schedule(tmp_path: Path) -> None:
    word = "ppo.learning_rate={func: linear, params: {start: 1.0e-3, end: 0}}"
    config = compose("sim", [word], TrainConfig)
    assert config.ppo.learning_rate == linear(start=1e-3, end=0)
    Path("copy.yaml").write_text(to_yaml(config))
    assert compose("copy.yaml", [], TrainConfig) == config
    assert compose("copy.yaml", ["ppo.learning_rate.params.start=1"], TrainConfig).ppo.learning_rate["params"] == {
        "start": 1,
        "end": 0,
    }
    assert compose("copy.yaml", ["ppo.learning_rate=1e-4"], TrainConfig).ppo.learning_rate == 1e-4
    expected = "unknown key 'ppo.clip_range.fun' on the command line; did you mean 'ppo.clip_range.func'?"
    with pytest.raises(UserError) as caught:
        compose("sim", ["ppo.clip_range={fun: linear}"], TrainConfig)
    assert str(caught.value) == expected
