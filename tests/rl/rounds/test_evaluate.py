"""Evaluation: the same episodes every time."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rl.envs.sim import SimEnv
from rl.envs.simulator import IDLE
from rl.policies.wam import flow_policy
from rl.rounds.evaluate import EpisodeResult, Exploring, evaluate_dream, evaluate_sim, first_states
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


def assert_same(found: list[EpisodeResult], expected: list[EpisodeResult]) -> None:
    assert [(r.seed, r.success, r.n_steps) for r in found] == [(r.seed, r.success, r.n_steps) for r in expected]
    # Another row of another batch may round a matrix product differently.
    assert [r.reward for r in found] == pytest.approx([r.reward for r in expected], rel=1e-3)


def test_repeats_exactly(tiny_model: WorldActionModel, sim: SimEnv) -> None:
    policy = flow_policy(tiny_model, sim)
    first = evaluate_sim(policy, sim, SEEDS)
    assert [r.seed for r in first] == SEEDS
    assert len({r.reward for r in first}) == len(SEEDS)  # six different episodes
    assert evaluate_sim(policy, sim, SEEDS) == first


def test_progress_is_told_before_the_first_episode_ends(tiny_model: WorldActionModel, sim: SimEnv) -> None:
    """Six episodes of at most 64 steps in chunks of 8, three at a time: at first 3 * 8 / 64 of 6 are done."""
    told: list[tuple[float, int]] = []
    results = evaluate_sim(flow_policy(tiny_model, sim), sim, SEEDS, lambda n, total: told.append((n, total)))
    assert told[0] == (pytest.approx(3 * 8 / 64), 6) and told[-1] == (6, 6)
    assert len(told) >= max(result.n_steps for result in results) / 8


def test_does_not_depend_on_order_and_num_envs(tiny_model: WorldActionModel, sim: SimEnv) -> None:
    expected = evaluate_sim(flow_policy(tiny_model, sim), sim, SEEDS)
    assert_same(evaluate_sim(flow_policy(tiny_model, sim), sim, SEEDS[::-1]), expected[::-1])
    assert_same(evaluate_sim(flow_policy(tiny_model, sim), sim, SEEDS[4:5]), expected[4:5])
    for n_envs in (1, 4):
        env = make_sim(tiny_model, n_envs)
        assert_same(evaluate_sim(flow_policy(tiny_model, env), env, SEEDS), expected)
        env.close()


def test_an_episode_is_run_once_however_many_environments_there_are(tiny_model: WorldActionModel) -> None:
    env = make_sim(tiny_model, 4)
    policy = flow_policy(tiny_model, env)
    env.record(True)
    evaluate_sim(Exploring(policy, torch.Generator().manual_seed(0)), env, SEEDS[:1])
    assert [e.seed for e in env.record(False) if e.seed != IDLE] == SEEDS[:1]
    env.close()


def test_observation_noise_repeats_with_the_episode(tiny_model: WorldActionModel) -> None:
    env = make_sim(tiny_model, 3)
    env.obs_noise = 0.01
    policy = flow_policy(tiny_model, env)
    first = evaluate_sim(policy, env, SEEDS)
    assert_same(evaluate_sim(policy, env, SEEDS[::-1]), first[::-1])
    env.close()


def test_tick_counts_episodes(tiny_model: WorldActionModel, sim: SimEnv) -> None:
    seen: list[tuple[int, int]] = []
    evaluate_sim(flow_policy(tiny_model, sim), sim, SEEDS[:3], lambda n, total: seen.append((n, total)))
    assert seen[-1] == (3, 3)


def test_first_states_are_those_of_the_episodes(tiny_model: WorldActionModel, sim: SimEnv) -> None:
    starts = first_states(sim, SEEDS[:4])  # not a multiple of the environments
    assert not sim.begun  # the other environments have no episode that could be saved or go on
    assert len(starts) == 4 and starts.context["state"].shape == (4, 2, 21)
    for i, seed in enumerate(SEEDS[:4]):
        sim.set_episode_seeds([seed])
        assert torch.equal(sim.reset()["state"][0], starts.context["state"][i])
    sim.set_episode_seeds([])


def test_dream_begins_from_those_starts_and_repeats(tiny_model: WorldActionModel, sim: SimEnv) -> None:
    starts = first_states(sim, SEEDS)

    def dreamed() -> list[EpisodeResult]:
        env = DreamEnv(tiny_model, len(SEEDS), starts, horizon=8, max_steps=64, in_order=True)
        assert torch.equal(env.reset()["state"], starts.context["state"])
        env.reset(seed=0)
        return evaluate_dream(flow_policy(tiny_model, sim), env)

    first = dreamed()
    assert len(first) == len(SEEDS) and all(0 < r.n_steps <= 64 for r in first)
    assert {r.task for r in first} == {"button-press-topdown"}
    assert [r.seed for r in first] == SEEDS  # so that a decision is drawn as in the simulator
    assert dreamed() == first
