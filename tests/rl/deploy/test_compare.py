"""Two policies on a robot: what the pairs show, when it is enough, and that a comparison can be taken up again."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.errors import UserError
from rl import cli
from rl.deploy import compare as comparing
from rl.deploy.compare import RESULTS, Score, compare
from rl.deploy.loop import Lived
from rl.deploy.robot_config import RobotConfig
from rl.deploy.safety import Limits
from rl.policies.wam import ModelPilot
from rl.seeds import COMPARE
from world_model.wam.model import WorldActionModel

LIMITS = Limits(low=(-1.0,) * 2, high=(1.0,) * 2, max_change=(0.5,) * 2, still=(0.0,) * 2)
NAMES = ("old", "new")


def test_evidence_is_that_of_hand() -> None:
    """Five wins and no loss: 2^5 times the integral of p^5 over 0..1."""
    assert comparing._evidence(5, 0) == pytest.approx(32 / 6)
    assert comparing._evidence(1, 1) == pytest.approx(4 / 6)
    assert comparing._evidence(3, 2) == pytest.approx(32 * math.factorial(3) * math.factorial(2) / math.factorial(6))
    assert Score(won=5).is_clear(0.2) and not Score(won=4).is_clear(0.2)
    assert Score(lost=8).is_clear(0.05) and not Score(lost=7).is_clear(0.05)
    assert not Score(both=100, neither=100).is_clear(0.2)


@pytest.mark.parametrize("score", [Score(), Score(won=3, lost=1, both=9), Score(won=2, lost=7)])
def test_so_many_pairs_more_and_no_fewer(score: Score) -> None:
    n = score.n_needed(0.1)
    assert n > 0

    def after(more: int) -> Score:
        return Score(max(score.won, score.lost) + more, min(score.won, score.lost))

    assert after(n).is_clear(0.1) and not after(n - 1).is_clear(0.1)


def test_looking_after_each_pair_is_paid_for() -> None:
    """Two equal policies, 400 comparisons of up to 60 pairs that tell: clear by luck in less than alpha of them."""
    random_ = random.Random(0)
    clear = 0
    for _ in range(400):
        score = Score()
        for _ in range(60):
            won = random_.random() < 0.5
            score = Score(score.won + won, score.lost + (not won))
            if score.is_clear(0.2):
                clear += 1
                break
    assert 0.02 < clear / 400 < 0.2


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[tuple[str, int]]]:
    """Replace the robot: `live(solve)` lists who ran where; solve(side, scene, n) may say None for a stop.

    "failed" is one for what the policy did.
    """
    monkeypatch.chdir(tmp_path)

    def install(champion: Any, solve: Callable[[str, int, int], bool | str | None]) -> list[tuple[str, int]]:
        ran: list[tuple[str, int]] = []

        class FakeSession(comparing.Session):
            def __enter__(self) -> FakeSession:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def run(self, pilot: Any, scene: int, name: str) -> Lived:
                side = "champion" if pilot is champion else "challenger"
                ran.append((side, scene))
                solved = solve(side, scene, len(ran))
                failed = solved == "failed"
                stopped = failed or solved is None
                return Lived(success=[False, solved is True], ended=not stopped, stopped=stopped, failed=failed)

        monkeypatch.setattr(comparing, "Session", FakeSession)
        return ran

    return install


def config(**changes: Any) -> RobotConfig:
    return RobotConfig(**{"robot": "fake", "task": "reach", "limits": LIMITS, "n_episodes": 20, **changes})


def test_it_ends_as_soon_as_it_is_clear(trained: WorldActionModel, live: Any, tmp_path: Path) -> None:
    old, new = ModelPilot(trained, 1), ModelPilot(trained, 1)
    begin = comparing.first_scene(NAMES)
    ran = live(old, lambda side, scene, n: side == "challenger" or scene == begin)
    said: list[str] = []
    score = compare(old, new, NAMES, config(alpha=0.1), say=said.append)
    assert score == Score(won=7, both=1)  # 2^7 / 8 = 16; 2^6 / 7 is not 10 yet
    line = "champion 14 %, challenger 100 % of 7 pairs (won 6, lost 0); at least 1 pair more until it can tell"
    assert said[-1] == line
    assert score.verdict(0.1) == "the challenger is better: champion 12 %, challenger 100 % of 8 pairs (won 7, lost 0)"
    scenes = [scene for _, scene in ran]
    assert scenes == [begin + i // 2 for i in range(16)]
    assert all({s for s, i in ran if i == begin + k} == {"champion", "challenger"} for k in range(8))
    first = {side for side, _ in ran[::2]}
    assert first == {"champion", "challenger"}  # by lot
    assert "champion" not in json.dumps([line for line in said if line.startswith("pair")])  # nobody is told who runs


def test_nobody_was_trained_on_its_scenes(trained: WorldActionModel, live: Any) -> None:
    old, new = ModelPilot(trained, 1), ModelPilot(trained, 1)
    firsts = []
    for i in range(5):
        ran = live(old, lambda side, scene, n: True)
        compare(old, new, ("old", f"new{i}"), config(n_episodes=1, episodes=f"{i}"), say=lambda line: None)
        assert ran[0][1] == ran[1][1] == json.loads(Path(f"{i}", RESULTS).read_text())["first_scene"]
        firsts.append(ran[0][1])
    assert min(firsts) >= COMPARE  # far beyond those of `run`
    assert np.diff(sorted(firsts)).min() > 1000  # and another comparison has others


def test_a_policy_that_its_guard_stops_has_not_solved_it(trained: WorldActionModel, live: Any) -> None:
    old, new = ModelPilot(trained, 1), ModelPilot(trained, 1)
    live(old, lambda side, scene, n: "failed" if side == "challenger" else True)
    for n in (1, 2, 3):  # each call ends with the stop of the challenger
        score = compare(old, new, NAMES, config(), say=lambda line: None)
        assert n - 1 <= score.lost <= n and score == Score(lost=score.lost)


def test_a_stop_ends_it_and_the_next_call_goes_on(trained: WorldActionModel, live: Any) -> None:
    old, new = ModelPilot(trained, 1), ModelPilot(trained, 1)

    def coin(side: str, scene: int, n: int) -> bool:
        return (scene * 7 + len(side)) % 3 == 0

    whole = live(old, coin)
    compare(old, new, NAMES, config(n_episodes=6), say=lambda line: None)
    expected = json.loads(Path("runs/robot/fake", RESULTS).read_text())
    Path("runs/robot/fake", RESULTS).unlink()
    stopped = live(old, lambda side, scene, n: None if n == 6 else coin(side, scene, n))
    compare(old, new, NAMES, config(n_episodes=6), say=lambda line: None)
    rest = live(old, coin)
    compare(old, new, NAMES, config(n_episodes=6), say=lambda line: None)
    assert [*itertools.islice(stopped, 5), *rest] == whole  # the stopped one is run again
    assert json.loads(Path("runs/robot/fake", RESULTS).read_text()) == expected
    Path("runs/robot/fake", RESULTS).write_text(json.dumps(expected | {"first_scene": 0}))
    with pytest.raises(UserError, match=r"compare.json: its pairs began in other scenes; move it away"):
        compare(old, new, NAMES, config(), say=lambda line: None)
    with pytest.raises(UserError, match=r"compare.json: it compares old with new; name another folder with episodes="):
        compare(old, new, ("old", "other"), config(), say=lambda line: None)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "cannot be read as the results of a comparison; move it away"),
        ('{"champion": "old", "challenger": "new", "pairs": [{"champion": 1}]}', "not what a comparison writes"),
        ('{"champion": "old", "challenger": "new", "pairs": [{}, {}]}', "not what a comparison writes"),
    ],
)
def test_results_of_something_else_are_kept(trained: WorldActionModel, live: Any, text: str, complaint: str) -> None:
    old = ModelPilot(trained, 1)
    live(old, lambda side, scene, n: True)
    path = Path("runs/robot/fake", RESULTS)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        compare(old, ModelPilot(trained, 1), NAMES, config(), say=lambda line: None)
    assert path.read_text() == text


def test_the_command_needs_two_policies_and_a_robot(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["compare"], ["compare", "b"], ["compare", "b", "alpha=0.1"]):
        assert cli.main(["deploy", "a", *words]) == 2
        line = "deploy a compare needs a challenger and a robot: a preset such as robot-sim, or robot=..."
        assert capsys.readouterr().err == f"wamtune: {line}\n"
