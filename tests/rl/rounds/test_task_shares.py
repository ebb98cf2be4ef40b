"""Shares of tasks by hand, and that dreams and simulators follow them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rl.envs.sim import SimEnv
from rl.ppo.distributed import Distributed
from rl.rounds.outcome import RunState
from rl.rounds.task_shares import KEPT, TaskShares, divided, shares
from world_model.dream_env import DreamEnv, StartStates

TASKS = ["button-press-topdown", "drawer-open", "push"]


class Counted:
    """A rollout of which only the ends are known."""

    def __init__(self, *rows: tuple[int, int]) -> None:
        self.rows = torch.tensor(rows, dtype=torch.float32)

    def ends_by_task(self, n_tasks: int, fresh: bool) -> torch.Tensor:
        assert n_tasks == len(self.rows)
        return self.rows


def make(steer: float = 0.5, trained: list[str] = TASKS) -> TaskShares:
    state = RunState({}, ref_kl_coef=0.0, critic_is_new=False)
    return TaskShares(TASKS, trained, steer, state, Distributed())


def test_shares_by_hand() -> None:
    # (s + 1) / (n + 2): 1 / 10, 5 / 10, 9 / 10, so p (1 - p) is .09, .25, .09 and .43 together
    seen = torch.tensor([[8.0, 0.0], [8.0, 4.0], [8.0, 8.0]])
    assert shares(seen, steer=1.0).tolist() == pytest.approx([9 / 43, 25 / 43, 9 / 43])
    assert shares(seen, steer=0.0).tolist() == pytest.approx([1 / 3] * 3)
    assert shares(seen, steer=0.5).tolist() == pytest.approx([1 / 6 + 9 / 86, 1 / 6 + 25 / 86, 1 / 6 + 9 / 86])


def test_a_task_without_an_episode_counts_as_open() -> None:
    # p = 1 / 2 without an episode; 101 / 102 after 100 successes
    found = shares(torch.tensor([[0.0, 0.0], [100.0, 100.0]]), steer=1.0)
    assert found[0] / found[1] == pytest.approx(0.25 / (101 / 102 / 102), rel=1e-4)


def test_environments_are_divided_by_largest_remainders() -> None:
    # quotas 4.2, 2.6, 1.2: 4 + 2 + 1 rounded down, and the one that is left goes to the second
    assert divided(torch.tensor([0.525, 0.325, 0.15]), 8) == [4, 3, 1]
    assert divided(torch.tensor([1 / 3, 1 / 3, 1 / 3]), 7) == [3, 2, 2]
    assert divided(torch.tensor([0.98, 0.01, 0.01]), 2) == [2, 0, 0]


def test_earlier_episodes_lose_weight_and_places_are_apart() -> None:
    tasks = make()
    assert tasks.share_in("sim") is None  # nothing to steer by yet
    logged = tasks.count("sim", Counted((4, 1), (0, 0), (2, 2)), fresh=False)  # type: ignore[arg-type]
    assert logged == {"rollout/sim_success/button-press-topdown": 0.25, "rollout/sim_success/push": 1.0}
    tasks.count("sim", Counted((1, 1), (1, 0), (0, 0)), fresh=False)  # type: ignore[arg-type]
    expected = [[4 * KEPT + 1, KEPT + 1], [1.0, 0.0], [2 * KEPT, 2 * KEPT]]
    assert tasks.state.tasks_seen["sim"].tolist() == [pytest.approx(row) for row in expected]
    assert tasks.share_in("dream") is None


def test_a_run_with_one_task_counts_and_steers_nothing() -> None:
    tasks = make(trained=["push"])
    assert tasks.count("sim", Counted((4, 1), (0, 0), (2, 2)), fresh=False) == {}  # type: ignore[arg-type]
    assert tasks.state.tasks_seen == {} and tasks.share_in("sim") is None


def test_tasks_outside_the_run_get_nothing() -> None:
    tasks = make(trained=["push", "drawer-open"])
    tasks.count("dream", Counted((9, 5), (8, 4), (8, 0)), fresh=True)  # type: ignore[arg-type]
    dream: Any = type("Dream", (), {})()
    tasks.steer_dream(dream)
    assert dream.task_shares[0] == 0 and dream.task_shares.sum() == pytest.approx(1.0)
    assert dream.task_shares[1] > dream.task_shares[2] > 0


def test_branches_of_a_dream_begin_by_the_shares(make_dream: Callable[..., DreamEnv]) -> None:
    dream = make_dream(4000)
    dream.task_shares = torch.tensor([0.8, 0.2])
    dream.reset()
    # three of four starts have task 1, and the shares count all the same
    assert float((dream.task == 1).float().mean()) == pytest.approx(0.2, abs=0.03)
    dream.task_shares = None
    dream.reset()
    assert float((dream.task == 1).float().mean()) == pytest.approx(0.75, abs=0.03)


@pytest.fixture
def make_dream(model: Any, make_point: Callable[..., Any]) -> Callable[[int], DreamEnv]:
    def made(n: int) -> DreamEnv:
        env = make_point(4)
        env.reset()
        starts = StartStates.of(env)
        starts.task = torch.tensor([0, 1, 1, 1])
        return DreamEnv(model, n, starts)

    return made


def test_the_environments_of_a_simulator_get_other_tasks_and_a_saved_state_has_them() -> None:
    sim = SimEnv("metaworld", 4, TASKS, task_names=TASKS, max_steps=16)
    assert sim.task_of_env == [*TASKS, "button-press-topdown"]
    tasks = make(steer=1.0)
    # p (1 - p): 1/102 * 101/102, 1/4, the same as the first: nearly all four environments for drawer-open
    tasks.count("sim", Counted((100, 0), (100, 50), (100, 100)), fresh=False)  # type: ignore[arg-type]
    sim.reset()
    tasks.steer_sim(sim)
    assert sim.task_of_env == ["drawer-open"] * 4 and not sim.begun
    obs = sim.reset()
    assert obs["task"].tolist() == [1] * 4
    sim.step_chunk(torch.zeros(4, 8, 4))
    saved = sim.state_dict()
    again = SimEnv("metaworld", 4, TASKS, task_names=TASKS, max_steps=16)
    again.load_state_dict(saved)
    for env in (sim, again):
        step = env.step_chunk(torch.full((4, 8, 4), 0.3))
        assert step.obs["task"].tolist() == [1] * 4
    assert torch.equal(sim.context["state"], again.context["state"])
    sim.close()
    again.close()
