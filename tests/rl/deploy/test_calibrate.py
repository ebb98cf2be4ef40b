"""The read-out of success against labels: what is fitted, what it is said to change, and what is left as it was."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewards.errors import UserError
from rl import cli
from rl.deploy.calibrate import Errors, calibrate, platt, score_of
from rl.deploy.calibration import Calibration, load_calibration, save_calibration
from rl.deploy.robot_config import RobotConfig
from rl.deploy.session import make_judge
from rl.deploy.stops import Stops
from rl.policies.wam import ModelPilot
from world_model.data.episodes import Episode, EpisodeStore
from world_model.wam.model import WorldActionModel


def p(x: float) -> float:
    """Return the probability with the logit `x`."""
    return 1 / (1 + math.exp(-x))


def test_the_fit_is_that_of_platts_targets() -> None:
    # 3 solved at 4, 3 failed at 2: the targets are 4/5 and 1/5, and a line through two points meets both of them:
    # 4 a + b = ln 4, 2 a + b = -ln 4.
    slope, offset = platt(np.array([4.0] * 3 + [2.0] * 3), np.array([True] * 3 + [False] * 3))
    assert slope == pytest.approx(math.log(4), abs=1e-3)
    assert offset == pytest.approx(-3 * math.log(4), abs=1e-3)


def test_a_read_out_that_is_too_sure_gets_a_higher_threshold() -> None:
    # 5 solved at 4, 5 failed at 2: the threshold is in the middle. Without one of the solved the targets are 5/6 and
    # 1/7, and the threshold is 2 + ln 6 / ((ln 5 + ln 6) / 2) = 3.05, so 4 is still solved; the same at the other side.
    found = calibrate([p(4)] * 5 + [p(2)] * 5, [True] * 5 + [False] * 5, "here")
    assert found.fitted == pytest.approx(p(3), abs=1e-4)
    assert found.before == Errors(false=5, missed=0) and found.after == Errors(false=0, missed=0)
    assert found.is_better and found.threshold == found.fitted
    assert (found.n_solved, found.n_failed) == (5, 5)


def test_an_episode_is_judged_without_its_own_label() -> None:
    # One more that failed, at 4. There the targets are 5 x 6/7 and 1 x 1/8, in the mean 0.7351; at 2 it is 1/8. The
    # line through ln(0.7351 / 0.2649) = 1.0208 and -ln 7 = -1.9459 is 0 at 2 + 1.9459 / 1.4833 = 3.3118.
    # Left out, the one at 4 is judged by the others, which put it among the solved.
    found = calibrate([p(4)] * 6 + [p(2)] * 5, [True] * 5 + [False] * 6, "here")
    assert found.fitted == pytest.approx(p(3.3118), abs=1e-4)
    assert found.before == Errors(false=6, missed=0) and found.after == Errors(false=1, missed=0)


def test_a_read_out_that_is_too_careful_gets_a_lower_threshold() -> None:
    found = calibrate([p(-2)] * 5 + [p(-4)] * 5, [True] * 5 + [False] * 5, "here")
    assert found.threshold == pytest.approx(p(-3), abs=1e-4)
    assert found.before == Errors(false=0, missed=5) and found.after == Errors(false=0, missed=0)


@pytest.mark.parametrize(
    ("solved", "failed", "tells"),
    [
        ([p(3)] * 5, [p(-2)] * 5, True),  # right before: nothing is gained
        ([p(3)] * 5, [p(3)] * 5, False),  # all alike
        ([p(1)] * 5, [p(3)] * 5, False),  # the wrong way round
        ([p(3)] * 2, [p(3)] * 4 + [p(2)] * 4, False),  # "never solved" has the fewest errors, and judges nothing
        ([1.0] * 5, [1.0] * 5, False),  # infinite logits
    ],
)
def test_the_threshold_stays_where_another_is_no_better(solved: list[float], failed: list[float], tells: bool) -> None:
    found = calibrate(solved + failed, [True] * len(solved) + [False] * len(failed), "here")
    assert found.threshold == 0.5 and not found.is_better and found.tells == tells


@pytest.mark.parametrize(("n_solved", "n_failed"), [(12, 0), (0, 12), (11, 1), (4, 5)])
def test_too_few_labels_are_refused(n_solved: int, n_failed: int) -> None:
    line = f"^here: {n_solved} solved and {n_failed} failed by label; a calibration needs 10 episodes, at least 2 of "
    with pytest.raises(UserError, match=line):
        calibrate([0.5] * (n_solved + n_failed), [True] * n_solved + [False] * n_failed, "here")


def episode(values: list[float], solved: bool, source: str = "robot, success by key") -> Episode:
    """Return an episode of the task reach, in whose frames the first number of the state is one of `values`."""
    state = torch.zeros(len(values), 4)
    state[:, 0] = torch.tensor(values)
    success = torch.zeros(len(values) - 1, dtype=torch.bool)
    success[-1] = solved
    return Episode({"state": state}, torch.zeros(len(success), 2), success, "reach", source, seed=0)


def reads_state(self: WorldActionModel, frames: dict[str, Any], task: Any) -> tuple[Any, Any]:
    """Stand in for the read-out: the first number of the state is the probability."""
    assert task.tolist() == [0]
    return frames["state"][..., 0], frames["state"][..., 0]


def test_the_score_is_what_two_frames_in_a_row_reach(trained: WorldActionModel, monkeypatch: Any) -> None:
    monkeypatch.setattr(WorldActionModel, "success_and_progress", reads_state)
    # Pairs: 0.1, 0.2, 0.2, 0.6, 0.5. A single frame of 0.9 is not enough.
    values = [0.1, 0.9, 0.2, 0.7, 0.6, 0.5]
    assert score_of(episode(values, solved=True), trained) == pytest.approx(0.6)
    for threshold, solved in ((0.59, True), (0.61, False)):
        calibration = Calibration(threshold, ModelPilot(trained, 2).read_out_id("reach"), 5, 5)
        judge = make_judge("read_out", ModelPilot(trained, 2), "reach", Stops(Path("STOP"), False), calibration)
        judged = [judge({"state": frame}, {}) for frame in episode(values, solved=True).state.numpy()]
        assert any(judged) == solved  # a session judges the same frames in the same way


def test_a_calibration_is_of_one_read_out(trained: WorldActionModel) -> None:
    pilot, stops = ModelPilot(trained, 2), Stops(Path("STOP"), False)
    calibration = Calibration(0.9, pilot.read_out_id("reach"), 5, 5)
    with torch.no_grad():
        trained.value.mlp[1].weight += 1.0  # the critic: nothing that the read-out depends on
    make_judge("read_out", pilot, "reach", stops, calibration)
    with torch.no_grad():
        trained.read_out.embed.weight += 1.0
    with pytest.raises(UserError, match=r"^calibration: it is of another read-out of reach, or of another sentence; "):
        make_judge("read_out", pilot, "reach", stops, calibration)


def test_a_file_keeps_the_tasks_that_it_has(tmp_path: Path) -> None:
    path, first, second = tmp_path / "read_out.json", Calibration(0.7, "a", 3, 4), Calibration(0.8, "b", 5, 6)
    save_calibration(path, "push", first)
    save_calibration(path, "pull", second)
    assert load_calibration(path, "push") == first and load_calibration(path, "pull") == second
    with pytest.raises(UserError, match="it has no task lift, it has push, pull; calibrate this one too"):
        load_calibration(path, "lift")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"push": 0.7}',
        '{"push": {"threshold": 1.5, "read_out": "a", "n_solved": 1, "n_failed": 1}}',
        '{"push": {"threshold": true, "read_out": "a", "n_solved": 1, "n_failed": 1}}',
        '{"push": {"threshold": 0.5, "read_out": 3, "n_solved": 1, "n_failed": 1}}',
        '{"push": {"threshold": 0.5, "read_out": "a", "n_solved": -1, "n_failed": 1}}',
        '{"push": {"threshold": NaN, "read_out": "a", "n_solved": 1, "n_failed": 1}}',
    ],
)
def test_a_damaged_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "read_out.json"
    path.write_text(text)
    with pytest.raises(UserError, match="it is no calibration of a read-out; expected a file that wamtune deploy"):
        load_calibration(path, "push")


def test_a_calibration_that_nobody_would_read_is_refused() -> None:
    with pytest.raises(UserError, match=r"calibration=a\.json: success=key does not use it; add success=read_out"):
        RobotConfig(robot="fake", success="key", calibration="a.json").check()


def test_calibrate_from_the_command_line(
    trained: WorldActionModel, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(WorldActionModel, "success_and_progress", reads_state)
    monkeypatch.setattr("rl.verbs.calibrate.load_pilot", lambda name: ModelPilot(trained))
    monkeypatch.setattr("rl.verbs.calibrate.refuse_own_class", lambda name: None)
    monkeypatch.chdir(tmp_path)
    store, words = EpisodeStore("recorded"), ["deploy", "metaworld-tuned", "calibrate", "recorded"]
    spec = replace(trained.spec, control_hz=25.0)  # of a session with `hz=25`
    own = episode([0.9, 0.9], solved=True, source="robot, success by read_out")
    failed = [episode([0.0, p(2), p(2)], solved=False)] * 10
    store.append([*failed, own], spec)
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert "recorded, task reach: 0 solved and 10 failed by label" in printed.err
    assert not Path("recorded/read_out.json").exists()

    store.append([episode([0.0, p(4), p(4)], solved=True)] * 10, spec)
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    assert "20 from robot, success by key; 1 left out, labelled by a read-out itself" in printed.out
    # Wilson: 10 of 10 is at least 1 / (1 + 3.84 / 10) = 72 %, 0 of 10 at most 28 %.
    assert "10 of 10: 100 % [72, 100]" in printed.out and printed.out.count("0 of 10: 0 % [0, 28]") == 3
    assert "threshold: 0.5 -> 0.953 " in printed.out
    found = load_calibration("recorded/read_out.json", "reach")
    assert found.threshold == pytest.approx(p(3), abs=1e-4) and (found.n_solved, found.n_failed) == (10, 10)
    assert found.read_out == ModelPilot(trained, 2).read_out_id("reach")
