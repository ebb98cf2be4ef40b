"""`wamtune sweep`: what it refuses, how trials end, and a sweep whose worker is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rewards.errors import UserError
from rl.verbs import sweep
from rl.verbs.words import sweep_words
from tests.rl.conftest import Call

pytest.importorskip("optuna", reason="needs the extra sweep")

ROOT = Path(__file__).resolve().parents[3]
RATE = "space.ppo.learning_rate=log:1e-5..1e-3"

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sim"], "nothing to search"),
        (["sim", "space.ppo.learning_rat=1..2"], "did you mean 'ppo.learning_rate'"),
        (["sim", "space.ppo.clip_range=0.1,big"], "ppo.clip_range='big'"),
        (["sim", RATE, "n_trails=3"], "unknown key 'n_trails'"),
        (["sim", RATE, "gate.enabled=false"], "the run has no gates"),
        (["sim", RATE, "metric=TYPO"], "metric=TYPO: expected gate, or a key of the log"),
        (["nowhere", RATE], "unknown preset 'nowhere'"),
        (["metaworld-tuned", RATE], "metaworld-tuned is a checkpoint"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(words: list[str], line: str, call: Call) -> None:
    code, _, err = call("sweep", *words)
    assert code == 2 and err.count("\n") == 1 and line in err, err
    assert not Path("sweeps").exists()


def test_words_are_those_of_the_sweep_or_of_the_training() -> None:
    assert sweep_words([RATE, "n_trials=3", "env.n_workers=2", "seed=1", "n_workers=2"]) == (
        [RATE, "n_trials=3", "n_workers=2"],
        ["env.n_workers=2", "seed=1"],
    )


class Trainings:
    """Stands in for `train`: each run logs two gates, by the script of its trial, and writes them as a run does."""

    def __init__(self, *scripts: Any) -> None:
        self.scripts, self.calls = list(scripts), list[list[str]]()

    def __call__(self, words: Sequence[str], root: Path, watch: Any) -> SimpleNamespace:
        self.calls.append(list(words))
        name = next((word.partition("=")[2] for word in words if word.startswith("name=")), "")
        folder = root / name / "20260101-000000-s0" if name else Path(words[0])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text("")
        for step in self.scripts.pop(0):
            if isinstance(step, BaseException):
                raise step
            row = {"gate/accepted": 1.0, "gate/challenger": step, "gate/champion": 0.0}
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            watch(folder, {"train/approx_kl": 0.1})
            watch(folder, row)
        return SimpleNamespace(folder=folder)


def test_trials_are_compared_by_their_last_gate(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = UserError("ppo.batch_size=512 exceeds a rollout")
    trainings = Trainings([0.1, 0.5], [0.2, 0.4], [0.3, 0.7], [0.4, 0.6], [0.0], [bad])
    monkeypatch.setattr(sweep, "train", trainings)
    code, out, err = call("sweep", "sim", "env.tasks=push", "n_trials=6", RATE)
    assert code == 0, err
    (folder,) = Path("sweeps/sim").iterdir()
    rows = [line.split(",")[:3] for line in (folder / "trials.csv").read_text().splitlines()]
    assert rows[1:] == [
        ["2", "complete", "0.7"],
        ["3", "complete", "0.6"],
        ["0", "complete", "0.5"],
        ["1", "complete", "0.4"],
        ["4", "pruned", "0.0"],
        ["5", "failed", ""],
    ]
    assert f"best: trial-002, {folder / 'trial-002' / '20260101-000000-s0'}" in out
    assert "again: wamtune train sim env.tasks=push ppo.learning_rate=" in out
    words = trainings.calls[0]
    assert words[:3] == ["sim", "controls=[]", "env.tasks=push"] and words[-1] == "name=trial-000"
    # It goes on with more trials, and nothing else may change.
    trainings.scripts += [[0.5, 0.9]]
    assert call("sweep", str(folder), "n_trials=7")[0] == 0
    assert (folder / "trials.csv").read_text().splitlines()[1].startswith("6,complete,0.9")
    assert "a sweep goes on with its own keys" in call("sweep", str(folder), "seed=3")[2]


def test_a_trial_whose_worker_died_goes_on_in_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = Trainings([0.1, KeyboardInterrupt()], [0.3])
    monkeypatch.setattr(sweep, "train", trainings)
    of = sweep.open_sweep(["sim", "env.tasks=push", "n_trials=1", RATE])
    with pytest.raises(KeyboardInterrupt):
        sweep.work(of)
    sweep.work(sweep.open_sweep([str(of.folder)]))
    assert trainings.calls[1] == [str(of.folder / "trial-000" / "20260101-000000-s0")]
    assert [(row.state, row.value) for row in of.study.rows()] == [("complete", 0.3)]


def test_a_sweep_without_a_good_trial_says_why(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "train", Trainings(*[[UserError("no such simulator")]] * 2))
    code, out, err = call("sweep", "sim", "env.tasks=push", "n_trials=2", RATE)
    assert code == 2 and "no trial has ended well; the first one: no such simulator" in err and "failed" in out


def test_a_metric_that_is_not_logged_ends_the_sweep_at_its_first_trial(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = Trainings([0.1], [0.2])
    monkeypatch.setattr(sweep, "train", trainings)
    code, _, err = call("sweep", "sim", "env.tasks=push", "n_trials=2", "metric=gate/chalenger", RATE)
    assert code == 2 and len(trainings.calls) == 1
    assert err == (
        "wamtune: sweep: the first trial ended without a value: its run has not logged metric=gate/chalenger; did you "
        "mean 'gate/challenger'?\n"
    )


@pytest.mark.slow
def test_a_sweep_of_20_trials_whose_worker_is_killed_finishes(checkpoint: Path, tiny: list[str]) -> None:
    """Real trainings, two workers; one is killed with a trial under way."""
    keys = [*tiny, "total_timesteps=256", "eval.n_episodes=2", "eval.n_paired=0", "ppo.imitation_steps=0"]
    command = [sys.executable, "-m", "rl.cli", "sweep", "sim", *keys, RATE, "n_trials=20", "n_workers=2"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    while not list(Path("sweeps").glob("sim/*/trial-004/*/config.yaml")):
        assert process.poll() is None
        time.sleep(0.2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert "a worker ended with code -9; its trial is taken up again" in out
    (folder,) = Path("sweeps/sim").iterdir()
    states = [line.split(",")[1] for line in (folder / "trials.csv").read_text().splitlines()[1:]]
    assert len(states) == 20 and set(states) <= {"complete", "pruned"} and "best: trial-" in out
