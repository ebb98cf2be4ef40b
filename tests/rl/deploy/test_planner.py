"""Chunks that are planned in time go on from each other; late ones are noticed. Time is counted by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from rl.deploy.frames import Frame
from rl.deploy.loop import Immediate
from rl.deploy.pilots import Decider
from rl.deploy.planner import Planner
from rl.policies.wam import ModelPilot
from world_model.wam import modes
from world_model.wam.model import WorldActionModel

CHUNK = 8


class Slow(Executor):
    """Gives the result of a call after so many steps of a clock."""

    def __init__(self, steps: float, period: float) -> None:
        self.now, self.steps, self.period = 0.0, steps, period
        self.open: list[tuple[float, Future[Any], Callable[[], Any]]] = []

    def clock(self) -> float:
        return self.now

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        begun = self.now

        def finish() -> Any:
            value, _ = fn(*args, **kwargs)
            return value, self.now - begun

        self.open.append((self.now + self.steps * self.period, future, finish))
        return future

    def tick(self) -> None:
        """One step of the clock."""
        self.now += self.period
        for item in [item for item in self.open if item[0] <= self.now + 1e-9]:
            self.open.remove(item)
            item[1].set_result(item[2]())


def at(step: int) -> Frame:
    """An observation that tells the step."""
    return {"state": np.full((2, 1), float(step))}


def run(decide: Any, latency: float, n_action_steps: int, n: int) -> tuple[list[Any], Planner]:
    executor = Slow(latency, period=0.05)
    planner = Planner(decide, n_action_steps, 0.05, executor, executor.clock)
    planner.begin(at(0))
    actions = []
    for k in range(n):
        actions.append(planner.step(k, at(k)))
        executor.tick()
    return actions, planner


def ramp(obs: Frame, held: np.ndarray) -> np.ndarray:
    """A policy that wants action t at step t: observations tell the step."""
    return obs["state"][-1, 0] + np.arange(CHUNK, dtype=float)[:, None]


@pytest.mark.parametrize("latency", [0.4, 1.0, 2.6, 3.0])
def test_every_step_has_the_action_that_was_meant_for_it(latency: float) -> None:
    actions, planner = run(ramp, latency, n_action_steps=2, n=40)
    assert [float(a[0]) for a in actions] == pytest.approx(list(range(40)))
    assert planner.n_held == int(np.ceil(latency))


def test_what_will_have_been_executed_is_held() -> None:
    given: list[tuple[float, list[float]]] = []

    def decide(obs: Frame, held: np.ndarray) -> np.ndarray:
        given.append((float(obs["state"][-1, 0]), held.ravel().tolist()))
        return ramp(obs, held)

    run(decide, latency=2.0, n_action_steps=4, n=20)
    plans = given[2:]  # the first two are those of the beginning
    assert plans[0] == (4.0, [])  # nothing is known of latencies yet
    assert plans[1] == (8.0, [8.0, 9.0])  # two steps long the old plan goes on, so the new one has to begin like it


def test_two_plans_that_disagree_are_blended_where_they_overlap() -> None:
    values = iter([0.0, 0.0, 7.0, 7.0, 7.0, 7.0, 7.0])

    def decide(obs: Frame, held: np.ndarray) -> np.ndarray:
        return np.full((CHUNK, 1), next(values))

    actions, _ = run(decide, latency=1.0, n_action_steps=4, n=12)
    # A plan of step 4 is there at step 5, where the old one has 3 steps left: shares of 3/4, 2/4, 1/4.
    assert [float(a[0]) for a in actions[:10]] == [0, 0, 0, 0, 0, 1.75, 3.5, 5.25, 7, 7]


def test_the_last_action_of_a_plan_that_is_at_its_end_stands_for_it() -> None:
    values = iter([0.0, 0.0, 8.0, 8.0, 8.0])

    def decide(obs: Frame, held: np.ndarray) -> np.ndarray:
        return np.full((CHUNK, 1), next(values))

    actions, _ = run(decide, latency=4.0, n_action_steps=4, n=11)
    assert [float(a[0]) for a in actions[7:]] == pytest.approx(
        [0, 8 / 3, 16 / 3, 8]
    )  # there at step 8, where the old one ends


def test_a_plan_that_is_late_is_noticed_and_the_next_one_comes_in_time() -> None:
    actions, planner = run(ramp, latency=4.0, n_action_steps=5, n=60)
    missing = [k for k, a in enumerate(actions) if a is None]
    assert missing == [8]  # begun at 5, there at 9; from then on plans are begun a step earlier
    assert planner.n_held == 4


class OneWorker(Slow):
    """Begins a call when the one before it is finished."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        begun = max([self.now, *(ready for ready, _, _ in self.open)])
        future = super().submit(fn, *args, **kwargs)
        self.open[-1] = (begun + self.steps * self.period, *self.open[-1][1:])
        if begun == self.now:
            future.set_running_or_notify_cancel()
        return future


@pytest.mark.parametrize(
    ("n_action_steps", "drop", "missing"),
    [
        (4, 8, [8, 9, 10, 11]),  # the worker is free: the plan of step 9 is there at step 12
        (2, 6, [6, 7, 8, 9, 10]),  # it has the plan of step 5, so that of step 7 begins at 8
    ],
)
def test_after_a_dropped_plan_the_next_one_may_take_as_long_as_others(
    n_action_steps: int, drop: int, missing: list[int]
) -> None:
    executor = OneWorker(3.0, period=0.05)
    planner = Planner(ramp, n_action_steps, 0.05, executor, executor.clock)
    planner.begin(at(0))
    without = []
    for k in range(14):
        if k == drop:
            planner.forget(k)
        if k == drop or planner.step(k, at(k)) is None:
            without.append(k)
            assert not planner.is_late(k)
        executor.tick()
    assert without == missing


def test_a_plan_that_does_not_come_is_late() -> None:
    executor = OneWorker(3.0, period=0.05)
    planner = Planner(ramp, 2, 0.05, executor, executor.clock)
    planner.begin(at(0))
    for k in range(6):
        planner.step(k, at(k))
        executor.tick()
    assert planner.n_held == 3
    planner.forget(6)
    late = []
    for k in range(7, 16):  # the clock stands still
        assert planner.step(k, at(k)) is None
        late.append(planner.is_late(k))
    assert late == [False] * 6 + [True] * 3


def test_a_dropped_plan_that_waits_for_the_worker_is_not_computed() -> None:
    executor = OneWorker(3.0, period=0.05)
    planner = Planner(ramp, 2, 0.05, executor, executor.clock)
    planner.begin(at(0))
    for k in range(2, 5):
        planner.step(k, at(k))
        planner.forget(k)
    assert [future.cancelled() for _, future, _ in executor.open] == [False, True, True]


def test_the_first_plan_says_how_long_the_next_will_take() -> None:
    clock = partial(next, itertools.count(step=0.05))  # each plan takes a period
    planner = Planner(ramp, CHUNK, 0.05, Immediate(), clock)
    planner.begin(at(0))
    assert planner.n_held == 1
    assert all(planner.step(k, at(k)) is not None for k in range(20))


def test_held_actions_come_back_and_the_rest_goes_on_from_them(trained: WorldActionModel, windows: Any) -> None:
    frames = windows.sample(1, torch.Generator().manual_seed(0)).context["state"][0].numpy()
    obs = {"state": frames}
    decide = Decider(ModelPilot(trained, n_denoising_steps=4), "reach", seed=0)
    size = trained.config.chunk_size
    first = decide(obs, np.zeros((0, 0)))
    assert first.shape == (size, 2)
    held = np.clip(first[:2] + 0.3, -1, 1)
    again = decide(obs, held)
    assert again[:2] == pytest.approx(held, abs=1e-6) and np.isfinite(again).all()
    context = trained.encode(torch.tensor(frames)[None], torch.tensor([0]))
    noise = modes.action_noise(trained, 1, torch.Generator().manual_seed(1))
    free = modes.policy(trained, context, noise, 2)
    everything = modes.policy(trained, context, noise, 2, held=(free, torch.tensor([size])))
    torch.testing.assert_close(everything, free)
