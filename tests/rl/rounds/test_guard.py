"""The guard of single tasks in a gate: tests by hand, and which policy is rolled back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rl.compose import compose
from rl.config import TrainConfig
from rl.rounds.evaluate import EpisodeResult
from rl.rounds.gate import Side, Verdict, judge
from rl.rounds.guard import Guard, RunTasks, TaskPairs, by_task, worse
from rl.verbs.prepare import prepare

TASKS = ("assembly", "hammer", "push")


def pairs(task: str, won: int, lost: int, n: int = 16) -> TaskPairs:
    return TaskPairs(task, n, champion=lost, challenger=won, won=won, lost=lost)


def results(task: str, outcomes: Sequence[bool], first: int = 0) -> list[EpisodeResult]:
    return [EpisodeResult(task, first + i, bool(of), 10, 0.0) for i, of in enumerate(outcomes)]


def test_pairs_by_hand() -> None:
    champion = results("push", [True, True, False]) + results("hammer", [False])
    challenger = results("hammer", [True]) + results("push", [False, True, False])[::-1]
    assert by_task(champion, challenger) == [
        TaskPairs("push", 3, champion=2, challenger=1, won=0, lost=1),
        TaskPairs("hammer", 1, champion=0, challenger=1, won=1, lost=0),
    ]


def test_without_success_the_higher_reward_wins_a_pair() -> None:
    champion, challenger = (
        [EpisodeResult(task, seed, False, 10, reward, has_success=False) for task, seed, reward in side]
        for side in (
            [("push", 0, 1.0), ("push", 1, 2.0), ("push", 2, 3.0), ("hammer", 0, -1.0)],
            [("hammer", 0, -0.5), ("push", 2, 1.0), ("push", 1, 2.0), ("push", 0, 0.5)],
        )
    )
    assert by_task(champion, challenger) == [
        TaskPairs("push", 3, champion=2, challenger=0, won=0, lost=2),  # the rewards of seed 1 are equal
        TaskPairs("hammer", 1, champion=0, challenger=1, won=1, lost=0),
    ]


def test_a_task_is_worse_by_a_sign_test_with_holm() -> None:
    # 7 lost of 7: 2 ** -7 = .0078 < .05 / 3, but > .01 / 3; 4 of 5: 6 / 32
    found = [pairs("assembly", 0, 7), pairs("hammer", 1, 4), pairs("push", 3, 3)]
    assert worse(found, TASKS, alpha=0.05) == ["assembly"]
    assert worse(found, TASKS, alpha=0.01) == []
    # once assembly is rejected, 5 lost of 5 has to be below .1 / 2: 2 ** -5 = .03
    found[1] = pairs("hammer", 0, 5)
    assert worse(found, TASKS, alpha=0.1) == ["assembly", "hammer"]
    assert worse(found, ["hammer", "push"], alpha=0.1) == ["hammer"]  # assembly was cleared: .03 < .1 / 3


def player(solved: dict[str, float], noise: np.random.Generator, seen: list[tuple[list[int], list[str]]]) -> RunTasks:
    """Solve each task with its probability; note what was asked."""

    def run(seeds: list[int], tasks: Sequence[str]) -> list[EpisodeResult]:
        seen.append((seeds, list(tasks)))
        return [EpisodeResult(t, s, bool(noise.random() < solved[t]), 10, 0.0) for t in tasks for s in seeds]

    return run


def test_looks_in_two_halves_and_clears_tasks_after_the_first() -> None:
    noise, seen = np.random.default_rng(0), []  # type: ignore[var-annotated]
    champion = player({"push": 1.0, "hammer": 0.0}, noise, [])
    challenger = player({"push": 0.0, "hammer": 0.0}, noise, seen)
    found, lost = Guard(champion, challenger, first_seed=100, n_pairs=8, alpha=0.05).look(["push", "hammer"])
    assert seen == [([*range(100, 104)], ["push", "hammer"]), ([*range(104, 108)], ["push"])]
    assert [(of.task, of.n, of.won, of.lost) for of in found] == [("push", 8, 0, 8), ("hammer", 4, 0, 0)]
    assert lost == ["push"]


def test_false_alarms_are_rarer_than_alpha_and_a_lost_task_is_found() -> None:
    """Of 50 tasks that are the same for both, none is called worse in more than 10 % of gates; a lost one mostly is."""
    noise, names = np.random.default_rng(1), [f"task {i}" for i in range(50)]
    same = dict.fromkeys(names, 0.5)

    def alarms(challenger: dict[str, float], n: int) -> int:
        guards = (Guard(player(same, noise, []), player(challenger, noise, []), 0, 16, 0.1) for _ in range(n))
        return sum(bool(guard.look(names)[1]) for guard in guards)

    assert alarms(same, 200) <= 26  # 20 expected at most, standard deviation 4.2; it is far below
    noise = np.random.default_rng(2)
    sure, lost = dict.fromkeys(names, 0.9), dict.fromkeys(names, 0.9) | {"task 7": 0.0}
    found = [Guard(player(sure, noise, []), player(lost, noise, []), 0, 16, 0.1).look(names)[1] for _ in range(20)]
    assert sum(of == ["task 7"] for of in found) >= 18


def gate(challenger: dict[str, bool], guarded: bool, n_pairs: int = 16) -> Verdict:
    """Judge a challenger that solves whole tasks; the champion solves hammer alone. Seed i has task i mod 3."""

    def side(solved: dict[str, bool]) -> tuple[Side, RunTasks]:
        def run(seeds: list[int], tasks: Sequence[str] | None = None) -> list[EpisodeResult]:
            of = [(s, TASKS[s % 3]) for s in seeds] if tasks is None else [(s, t) for t in tasks for s in seeds]
            return [EpisodeResult(task, seed, solved[task], 10, 0.0) for seed, task in of]

        return Side(run), run

    (old, run_old), (new, run_new) = side({"assembly": False, "hammer": True, "push": False}), side(challenger)
    guard = Guard(run_old, run_new, first_seed=1000, n_pairs=n_pairs, alpha=0.05) if guarded else None
    return judge(old, new, 0, block=12, most=24, alpha=0.05, z_loss=0.0, cycle=3, guard=guard)


def test_a_gain_in_the_mean_does_not_pay_for_a_lost_task() -> None:
    challenger = {"assembly": True, "hammer": False, "push": True}
    assert gate(challenger, guarded=False).accepted
    verdict = gate(challenger, guarded=True)
    assert not verdict.accepted and verdict.worse == ["hammer"] and verdict.challenger > verdict.champion
    assert verdict.looked_at == [TaskPairs("hammer", 16, champion=16, challenger=0, won=0, lost=16)]
    assert "tasks looked at again: 1, rolled back for hammer (won 0, lost 16 of 16)" in str(verdict)
    assert verdict.numbers()["tasks_worse"] == 1.0 and verdict.numbers()["task_pairs"] == 16.0


@pytest.mark.parametrize("hammer", [True, False])
def test_no_pair_is_spent_without_need(hammer: bool) -> None:
    """A gain on all tasks leaves nothing to look at; a loss in the mean is rolled back anyway."""
    verdict = gate({"assembly": hammer, "hammer": hammer, "push": False}, guarded=True)
    assert verdict.accepted == hammer and verdict.looked_at == [] and "looked at" not in str(verdict)
    assert "tasks_worse" not in verdict.numbers()


def test_one_simulator_with_the_episodes_of_all_tasks_has_no_guard(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a simulator, as that of recorded episodes, cannot run the episodes of one task.

    All pairs are then for the mean.
    """
    words = ["env.tasks=[button-press-topdown,push]", "gate.n_episodes=3", "gate.max_episodes=192", "n_rounds=1"]
    words += ["budget_steps=null", "budget_episodes=120", "gate.n_guard=16"]
    post = prepare(compose("dream", [*tiny, *words], TrainConfig))
    seen: list[tuple[bool, int, int, int]] = []

    def judged(**given: Any) -> Verdict:
        seen.append((given["guard"] is None, given["cycle"], given["block"], given["most"]))
        return Verdict(True, 0.5, 0.5, 0, 0, 6)

    monkeypatch.setattr("rl.rounds.loop.judge", judged)
    try:
        post.gate("dream", 0)
        others, post.eval_envs.envs = post.eval_envs.envs[1:], post.eval_envs.envs[:1]
        post.gate("dream", 0)
        post.eval_envs.envs += others
    finally:
        post.close()
    # 240 episodes for two gates are 60 pairs each, 14 of each task for the guard; then 228 are left, 57 pairs each
    assert seen == [(False, 2, 4, 60 - 2 * 14), (True, 1, 3, 57)]
