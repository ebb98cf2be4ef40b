"""Exploring episodes of an unseen task act as on known tasks, until one has succeeded."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import rl.rounds.exploring
from rl.config import DreamConfig, TrainConfig
from rl.rounds.exploring import N_BEST, BorrowedTasks, explore
from rl.rounds.outcome import RunState

KNOWN = tuple(f"known-{i:02}" for i in range(12))
TASKS = (*KNOWN, "new", "newer")


class Recorded(SimpleNamespace):
    """What `BorrowedTasks` reads of an episode."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A state, recorded episodes, and returns that are the number of the task that an episode acted as."""
    monkeypatch.setattr(rl.rounds.exploring, "make_rewards", lambda *_: None)
    monkeypatch.setattr(rl.rounds.exploring, "step_rewards", lambda episode, *_: torch.tensor([episode.total]))
    spec = SimpleNamespace(tasks=TASKS)
    model = SimpleNamespace(
        spec=spec, predicted_spec=spec, unseen_tasks=("new", "newer"), frame_read_out=None, device="cpu"
    )
    return SimpleNamespace(model=model, dreams=SimpleNamespace(episodes=[]), state=RunState({}, 0.0, False))


def borrowed(run: SimpleNamespace, *tasks: str) -> BorrowedTasks:
    return BorrowedTasks(None, run.model, tasks, run.dreams, run.state)  # type: ignore[arg-type]


def test_each_known_task_is_tried_once_and_then_those_with_the_highest_returns(run: SimpleNamespace) -> None:
    tasks = borrowed(run, "new")
    assert tasks.plans(5) == {"new": list(KNOWN[:5])}
    run.state.tried["new"] = {task: [float(i)] for i, task in enumerate(KNOWN[:5])}
    # Seven known tasks and its own are left; the others are those of the best return, the best one first.
    assert tasks.plans(11)["new"] == [*KNOWN[5:], "new", KNOWN[4], KNOWN[3], KNOWN[2]]
    run.state.tried["new"] = {task: [float(i), -1.0] for i, task in enumerate((*KNOWN, "new"))}
    assert tasks.plans(2 * N_BEST)["new"] == 2 * ["new", *reversed(KNOWN[3:])]


def test_a_task_that_has_been_solved_acts_as_its_own_and_so_does_a_known_one(run: SimpleNamespace) -> None:
    tasks = borrowed(run, "new", "known-01", "newer")
    run.dreams.episodes += [Recorded(task="new", is_success=True), Recorded(task="newer", is_success=False)]
    assert list(tasks.plans(3)) == ["newer"]
    assert tasks.acted_as(tasks.plans(3), "new", 2) == "new"


class Told:
    """A policy that notes the tasks in the observations that it acts on."""

    def __init__(self) -> None:
        self.tasks: list[int] = []

    def encode(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        self.tasks += obs["task"].tolist()
        return obs

    def sample(self, encoded: dict[str, Tensor], generator: torch.Generator) -> Any:
        return SimpleNamespace(actions=torch.zeros(len(encoded["task"]), 8, 4))


def test_the_policy_gets_the_task_of_the_plan_and_the_episode_is_counted_there(run: SimpleNamespace) -> None:
    """Two tasks take turns; an environment without an episode, of seed -1, keeps its task."""
    policy, new, newer = Told(), TASKS.index("new"), TASKS.index("newer")
    ppo = SimpleNamespace(policy=policy, generator=torch.Generator())

    def record(acting: Any, seeds: Sequence[int], tick: Any) -> list[Any]:
        task = torch.tensor([new, newer, new, new])
        obs = {"task": task, "state": torch.zeros(4, 1, 2)}
        actions = acting.decide(acting.encode(obs), torch.tensor([*seeds[:3], -1]), torch.zeros(4))
        assert actions.shape == (4, 8, 4) and torch.equal(obs["task"], task)
        for seed, name, total in zip(seeds, ("new", "newer", "new"), (1.0, 2.0, 3.0), strict=True):
            run.dreams.episodes.append(Recorded(seed=seed, task=name, total=total, is_success=False))
        return [SimpleNamespace(n_steps=10)] * 3

    config = TrainConfig(dream=DreamConfig(n_episodes=3))
    hooks = SimpleNamespace(tick=lambda *_: None)
    explore(config, ppo, run.state, record, hooks, borrowed(run, "new", "newer"))  # type: ignore[arg-type]
    assert policy.tasks == [0, 0, 1, new]
    assert run.state.tried == {"new": {"known-00": [1.0], "known-01": [3.0]}, "newer": {"known-00": [2.0]}}
    assert (run.state.explored, run.state.sim_steps) == (3, 30)
