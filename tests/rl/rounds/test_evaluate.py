"""Evaluation: the same episodes every time, and intervals against known numbers."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rl.envs.sim import SimEnv
from rl.envs.simulator import IDLE
from rl.policies.wam import FlowPolicy
from rl.rounds.evaluate import (
    EpisodeResult,
    Exploring,
    describe,
    evaluate_dream,
    evaluate_sim,
    first_states,
    paired_gain,
    success_rate,
    wilson,
)
from world_model.dream_env import DreamEnv
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model

SEEDS = list(range(2_000_000, 2_000_006))


@pytest.fixture(scope="module")
def tiny_model(checkpoint: Path) -> WorldActionModel:
    return load_model(checkpoint)


@pytest.fixture(scope="module")
def sim(tiny_model: WorldActionModel) -> Iterator[SimEnv]:
    env = make_sim(tiny_model, 3)
    yield env
    env.close()


def make_sim(model: WorldActionModel, n_envs: int) -> SimEnv:
    return SimEnv("metaworld", n_envs, ["button-press-topdown"], max_steps=64, task_names=model.spec.tasks)


def results(outcomes: str) -> list[EpisodeResult]:
    return [EpisodeResult("push", i, outcome == "1", 10, 0.0) for i, outcome in enumerate(outcomes)]


def assert_same(found: list[EpisodeResult], expected: list[EpisodeResult]) -> None:
    assert [(r.seed, r.success, r.n_steps) for r in found] == [(r.seed, r.success, r.n_steps) for r in expected]
    # Another row of another batch may round a matrix product differently.
    assert [r.reward for r in found] == pytest.approx([r.reward for r in expected], rel=1e-3)


def test_repeats_exactly(tiny_model: WorldActionModel, sim: SimEnv) -> None:
    policy = FlowPolicy(tiny_model, sim)
    first = evaluate_sim(policy, sim, SEEDS)
    assert [r.seed for r in first] == SEEDS
    assert len({r.reward for r in first}) == len(SEEDS)  # six different episodes
    assert evaluate_sim(policy, sim, SEEDS) == first


def test_does_not_depend_on_order_and_num_envs(tiny_model: WorldActionModel, sim: SimEnv) -> None:
    expected = evaluate_sim(FlowPolicy(tiny_model, sim), sim, SEEDS)
    assert_same(evaluate_sim(FlowPolicy(tiny_model, sim), sim, SEEDS[::-1]), expected[::-1])
    assert_same(evaluate_sim(FlowPolicy(tiny_model, sim), sim, SEEDS[4:5]), expected[4:5])
    for n_envs in (1, 4):
        env = make_sim(tiny_model, n_envs)
        assert_same(evaluate_sim(FlowPolicy(tiny_model, env), env, SEEDS), expected)
        env.close()


def test_an_episode_is_run_once_however_many_environments_there_are(tiny_model: WorldActionModel) -> None:
    env = make_sim(tiny_model, 4)
    policy = FlowPolicy(tiny_model, env)
    env.record(True)
    evaluate_sim(Exploring(policy, torch.Generator().manual_seed(0)), env, SEEDS[:1])
    assert [e.seed for e in env.record(False) if e.seed != IDLE] == SEEDS[:1]
    env.close()


def test_observation_noise_repeats_with_the_episode(tiny_model: WorldActionModel) -> None:
    env = make_sim(tiny_model, 3)
    env.obs_noise = 0.01
    policy = FlowPolicy(tiny_model, env)
    first = evaluate_sim(policy, env, SEEDS)
    assert_same(evaluate_sim(policy, env, SEEDS[::-1]), first[::-1])
    env.close()


def test_tick_counts_episodes(tiny_model: WorldActionModel, sim: SimEnv) -> None:
    seen: list[tuple[int, int]] = []
    evaluate_sim(FlowPolicy(tiny_model, sim), sim, SEEDS[:3], lambda n, total: seen.append((n, total)))
    assert seen[-1] == (3, 3)


def test_first_states_are_those_of_the_episodes(tiny_model: WorldActionModel, sim: SimEnv) -> None:
    starts = first_states(sim, SEEDS[:4])  # not a multiple of the environments
    assert len(starts) == 4 and starts.context.shape == (4, 2, 21)
    for i, seed in enumerate(SEEDS[:4]):
        sim.set_episode_seeds([seed])
        assert torch.equal(sim.reset()["state"][0], starts.context[i])
    sim.set_episode_seeds([])


def test_dream_begins_from_those_starts_and_repeats(tiny_model: WorldActionModel, sim: SimEnv) -> None:
    starts = first_states(sim, SEEDS)

    def dreamed() -> list[EpisodeResult]:
        env = DreamEnv(tiny_model, len(SEEDS), starts, horizon=8, max_steps=64, in_order=True)
        assert torch.equal(env.reset()["state"], starts.context)
        env.reset(seed=0)
        return evaluate_dream(FlowPolicy(tiny_model, sim), env)

    first = dreamed()
    assert len(first) == len(SEEDS) and all(0 < r.n_steps <= 64 for r in first)
    assert {r.task for r in first} == {"button-press-topdown"}
    assert [r.seed for r in first] == SEEDS  # so that a decision is drawn as in the simulator
    assert dreamed() == first


def test_wilson_against_known_numbers() -> None:
    # p = 0.1, n = 10: middle (0.1 + 3.8415 / 20) / 1.38415 = 0.2110, half 0.1932
    assert wilson(1, 10) == pytest.approx((0.01788, 0.40415), abs=1e-4)
    assert wilson(50, 100) == pytest.approx((0.40383, 0.59617), abs=1e-4)
    low, high = wilson(0, 20)
    assert low == pytest.approx(0.0, abs=1e-12) and high == pytest.approx(0.16113, abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_paired_gain_by_hand() -> None:
    # differences 1, 0, 0, -1, 1, 1 -> mean 1/3, variance (3 * (2/3)^2 + 2 * (1/3)^2 + (4/3)^2) / 5 = 2/3
    gain, low, high = paired_gain(results("010100"), results("110011"))
    assert gain == pytest.approx(1 / 3)
    assert high - gain == pytest.approx(1.959964 * math.sqrt(2 / 3 / 6))
    assert gain - low == pytest.approx(high - gain)
    with pytest.raises(ValueError):
        paired_gain(results("01"), results("011"))


def test_describe() -> None:
    assert success_rate(results("1100")) == 0.5
    assert describe(results("1" * 50 + "0" * 50)) == "50.0 % [40.4, 59.6] of 100"
