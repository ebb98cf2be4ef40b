"""Trials that several workers share, of which some die."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.sweeps.space import Choice, Range
from rl.sweeps.study import MOST_ATTEMPTS, Study

pytest.importorskip("optuna", reason="needs the extra sweep")

SPACE = {"ppo.learning_rate": Range(1e-5, 1e-3, log=True), "ppo.n_epochs": Range(1, 8), "seed": Choice((0, 1))}


def study(folder: Path, n_trials: int = 3, prune: bool = False) -> Study:
    """As a new process opens it."""
    return Study(folder, SPACE, n_trials, prune, seed=0)


def test_two_workers_take_different_trials_until_there_are_no_more(tmp_path: Path) -> None:
    workers = study(tmp_path), study(tmp_path)
    taken = [workers[i % 2].take() for i in range(4)]
    assert [of and of.number for of in taken] == [0, 1, 2, None]
    for of in taken[:3]:
        assert of is not None and 1e-5 <= float(of.params["ppo.learning_rate"] or 0) <= 1e-3
        assert of.params["ppo.n_epochs"] in range(1, 9) and of.params["seed"] in (0, 1)
    assert taken[0] and taken[1] and taken[0].params != taken[1].params
    assert workers[0].n_open == 3


def test_the_trial_of_a_dead_worker_is_taken_up_again_and_fails_in_the_end(tmp_path: Path) -> None:
    first = study(tmp_path).take()
    assert first is not None
    for _ in range(MOST_ATTEMPTS - 1):
        first.close()  # the lock ends with the process
        again = study(tmp_path).take()
        assert again is not None and (again.number, again.params) == (first.number, first.params)
        first = again
    first.close()
    new = study(tmp_path).take()
    assert new is not None and new.number == 1
    failed = next(row for row in study(tmp_path).rows() if row.state == "failed")
    assert failed.number == 0 and failed.reason == "its worker died 3 times"


def test_the_table_has_the_best_trial_first(tmp_path: Path) -> None:
    of = study(tmp_path, n_trials=4)
    for value in (0.25, 0.75, 0.5):
        taken = of.take()
        assert taken is not None
        of.finish(taken.number, value)
        taken.close()
    bad = of.take()
    assert bad is not None
    of.fail(bad.number, "ppo.batch_size=512 exceeds a rollout")
    rows = study(tmp_path).rows()
    assert [(row.number, row.state, row.value) for row in rows[:3]] == [
        (1, "complete", 0.75),
        (2, "complete", 0.5),
        (0, "complete", 0.25),
    ]
    assert rows[3].reason.startswith("ppo.batch_size") and of.n_open == 0


def test_a_trial_below_the_median_is_hopeless(tmp_path: Path) -> None:
    of = study(tmp_path, n_trials=6, prune=True)
    ends = []
    for value in (0.5, 0.6, 0.7, 0.8, 0.1, 0.9):
        taken = of.take()
        assert taken is not None
        ends.append(taken.is_hopeless(1, value))
        if ends[-1]:
            of.prune(taken.number)
        else:
            of.finish(taken.number, value)
        taken.close()
    assert ends == [False, False, False, False, True, False]
    assert next(row for row in of.rows() if row.state == "pruned").value == 0.1
