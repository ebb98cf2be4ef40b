"""The all-in budget: who gets how much, that no outcome exceeds it, and that gates that share it decide validly."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rewards.errors import UserError
from rl.compose import compose
from rl.config import TrainConfig
from rl.envs.sim import SimEnv
from rl.envs.simulator import IDLE
from rl.rounds.budget import GateBudget, check_budget, checked_plan, gate_budget, pairs_of_gate, with_guard
from rl.rounds.gate import HIGHEST, LOWEST, decide, evidence
from rl.rounds.loop import PostTraining
from rl.rounds.outcome import RunState
from rl.sequential import corrected, log_evidence, plain
from rl.verbs.prepare import control_config
from world_model.wam.store import load_model

CHUNK = 8


def test_gates_share_what_is_left_equally() -> None:
    # 60,000 steps and 5 gates: 12,000 each, a pair takes up to 300
    steps = GateBudget(steps=60_000, max_steps=150)
    assert steps.pairs(0, 0, n_gates=5) == 40
    assert steps.pairs(6_000, 40, n_gates=4) == 45  # the first used half of its share, so 13,500 are left for each
    assert steps.pairs(59_800, 200, n_gates=1) == 0
    # 150 episodes and 4 gates: 37.5 each
    episodes = GateBudget(episodes=150, max_steps=150)
    assert episodes.pairs(0, 0, n_gates=4) == 18
    assert episodes.pairs(0, 8, n_gates=3) == 22  # 134 episodes are left
    assert GateBudget(10_000, 40, 150).pairs(0, 0, 1) == 20 and GateBudget(1_000, 40, 150).pairs(0, 0, 1) == 3
    assert GateBudget().pairs(0, 0, 1) == math.inf


def test_a_guard_gets_at_most_half_of_what_a_block_leaves() -> None:
    assert with_guard(100, block=8, n_simulators=1, n_guard=16) == (100, 0)
    # 32 are left, 16 for the guard, 8 of each task
    assert with_guard(40, block=8, n_simulators=2, n_guard=16) == (24, 8)
    assert with_guard(200, block=8, n_simulators=2, n_guard=16) == (168, 16)
    assert with_guard(9, block=8, n_simulators=2, n_guard=16) == (9, 0)
    assert with_guard(math.inf, block=8, n_simulators=50, n_guard=16) == (math.inf, 16)


def test_one_simulator_for_all_tasks_has_no_guard_to_keep_pairs_for() -> None:
    words = ["budget_steps=null", "budget_episodes=60", "gate.n_episodes=8", "gate.n_guard=16"]
    config = compose("dream", words, TrainConfig)
    begun = RunState(champion={}, ref_kl_coef=0.0, critic_is_new=False)
    # 2 tasks have 120 episodes, 60 pairs: one block of 8, and half of the other 52 for the guard, 13 of each task
    assert pairs_of_gate(config, CHUNK, 2, begun, n_gates=1, n_simulators=2) == (34, 13)
    assert pairs_of_gate(config, CHUNK, 2, begun, n_gates=1, n_simulators=1) == (60, 0)
    assert pairs_of_gate(config, CHUNK, 1, begun, n_gates=1, n_simulators=1) == (30, 0)


@pytest.mark.parametrize(
    ("preset", "most"), [("dream", 60_000), ("pixels", 60_000), ("mix", 100_000), ("demo", 100_000)]
)
def test_a_shipped_preset_stays_within_its_budget_whatever_happens(preset: str, most: int) -> None:
    config, rng = compose(preset, [], TrainConfig), np.random.default_rng(0)
    check_budget(config, CHUNK, n_tasks=1, n_simulators=1, can_imitate=True)
    budget, n_gates = gate_budget(config, CHUNK, 1), config.n_gates(True)
    training = most - budget.steps
    explored = config.dream.n_episodes * config.n_rounds * config.env.max_steps
    assert training == (explored if config.env.kind == "dream" else config.total_timesteps + 64 * 19 * 8 / 2)
    for use in (1.0, *rng.random(50)):  # the share of its pairs and steps that each gate uses; first all of them
        used = pairs = 0
        for left in range(n_gates, 0, -1):
            n = min(budget.pairs(used, pairs, left), config.gate.max_episodes)
            assert n >= config.gate.n_episodes
            n = math.ceil(use * n)
            pairs, used = pairs + n, used + int(use * 2 * n * config.env.max_steps)
        assert training + used <= most
    for control in ("anchor", "filtered_bc"):
        assert control_config(config, control).budget_steps == most


@pytest.mark.parametrize(
    ("preset", "words", "least", "complaint"),
    [
        ("dream", "budget_steps={}", 5 * 8 * 300, "training takes up to 0 steps, and 5 gates at least 12,000 (8 pairs"),
        ("dream", "budget_steps=null budget_episodes={}", 5 * 16, "up to 0 episodes, and 5 gates at least 80 (8 pairs"),
        ("dream", "dream.n_episodes=50 budget_episodes={}", 280, "training takes up to 200 episodes, and 5 gates"),
        # 48,000 + 4,864 steps are 352.4 episodes of 150
        ("mix", "budget_episodes={}", 353 + 80, "training takes up to 353 episodes, and 5 gates at least 80 (8 pairs"),
        ("unsafe_dream", "dream.n_episodes=50 budget_steps={}", 30_000, "up to 30,000 steps, and 0 gates at least 0"),
    ],
)
def test_a_budget_that_is_too_small_is_refused(preset: str, words: str, least: int, complaint: str) -> None:
    def config(budget: int) -> TrainConfig:
        return compose(preset, words.format(budget).split(), TrainConfig)

    check_budget(config(least), CHUNK, n_tasks=1, n_simulators=1, can_imitate=True)
    with pytest.raises(UserError) as error:
        check_budget(config(least - 1), CHUNK, n_tasks=1, n_simulators=1, can_imitate=True)
    assert complaint in str(error.value) and f"expected at least {least}; raise it" in str(error.value)


def test_a_budget_of_episodes_is_that_of_each_task() -> None:
    config = compose("dream", ["budget_episodes=30"], TrainConfig)
    assert gate_budget(config, CHUNK, 3).episodes == 90
    with pytest.raises(
        UserError, match=r"budget_episodes=30: .* 0 episodes on 3 tasks.* 108 \(9 pairs each\).* least 36;"
    ):
        check_budget(replace(config, n_rounds=5), CHUNK, n_tasks=3, n_simulators=3, can_imitate=True)
    # One simulator for all tasks has blocks of 8, so six gates need 96 episodes.
    with pytest.raises(UserError, match=r"budget_episodes=30: .* 96 \(8 pairs each\).* least 32;"):
        check_budget(replace(config, n_rounds=5), CHUNK, n_tasks=3, n_simulators=1, can_imitate=True)
    check_budget(replace(config, n_rounds=5, budget_episodes=32), CHUNK, n_tasks=3, n_simulators=1, can_imitate=True)


def test_the_plan_is_said_in_words() -> None:
    assert checked_plan(compose("mix", [], TrainConfig), CHUNK, n_tasks=1, n_simulators=1, can_imitate=True) == (
        "budget: at most 100,000 steps in the simulator, of them up to 52,864 to train and the rest for 5 gates; "
        "evaluation is not counted"
    )
    recorded = compose("dream", ["env.simulator=recorded"], TrainConfig)
    plan = checked_plan(recorded, CHUNK, n_tasks=1, n_simulators=1, can_imitate=True)
    assert plan.startswith("budget: at most 60,000 steps in a dream of what was recorded, of them up to 0 to train")
    assert checked_plan(compose("sim", [], TrainConfig), CHUNK, n_tasks=1, n_simulators=1, can_imitate=True) == ""


@pytest.mark.parametrize("preset", ["dream", "mix"])
def test_a_run_executes_no_more_steps_than_its_budget(
    preset: str, tiny: list[str], demonstrations: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step of a simulator is counted here, apart from those of evaluations and of the trial of the rewards."""
    words = ["n_rounds=2", "gate.max_episodes=64", "dream.n_episodes=2", "budget_steps=4000", "gate.n_dreams=0"]
    config = compose(preset, [*tiny, *words], TrainConfig)
    buttons = [e for e in demonstrations if e.task == "button-press-topdown"]
    post = PostTraining(config, load_model(config.checkpoint), buttons)
    counted, counts = [0], [False]
    step_chunk, evaluate = SimEnv.step_chunk, post.evaluate

    def counting(env: SimEnv, actions: torch.Tensor) -> Any:
        named = env.episode_seed != IDLE
        result = step_chunk(env, actions)
        counted[0] += counts[0] * int(result.executed[named].sum())
        return result

    def uncounted(obs_noise: float = 0.0) -> Any:
        counts[0] = False
        results = evaluate(obs_noise)
        counts[0] = True
        return results

    monkeypatch.setattr(SimEnv, "step_chunk", counting)
    monkeypatch.setattr(post, "evaluate", uncounted)
    outcome = post.run()
    post.close()
    n_pairs = [result.verdict.n_episodes for result in outcome.results if result.verdict is not None]
    assert len(n_pairs) == 3 and min(n_pairs) >= 4 and max(n_pairs) < 64
    assert outcome.gate_steps > 0 and outcome.sim_steps > 0
    assert counted[0] == outcome.sim_steps + outcome.gate_steps <= 4000
    assert [r.seed for r in outcome.with_noise] == [r.seed for r in outcome.after]


def test_a_run_runs_no_more_episodes_than_its_budget(tiny: list[str], demonstrations: list[Any]) -> None:
    words = ["n_rounds=2", "gate.max_episodes=64", "dream.n_episodes=3", "budget_episodes=40", "gate.n_dreams=0"]
    config = compose("dream", [*tiny, *words], TrainConfig)
    buttons = [e for e in demonstrations if e.task == "button-press-topdown"]
    post = PostTraining(config, load_model(config.checkpoint), buttons)
    post.run()
    post.close()
    assert post.dreams is not None
    # All episodes are data of the dream: 6 that explored, and both sides of all gates.
    assert len(post.dreams.episodes) == post.state.explored + 2 * post.state.gate_episodes <= 40
    assert post.state.explored == 6 and post.state.gate_episodes >= 12


@pytest.mark.parametrize("copies", [None, 0.0, 1.0])
def test_gates_that_share_a_budget_keep_their_levels(copies: float | None) -> None:
    """1,000 runs of five gates, no policy is better; a success takes 60 steps, a failure 150, so sizes depend on luck.

    At most 20 % of the runs may call anything clear, and at least 95 % of the intervals hold the true gain, 0.
    `copies`: how often a dream copies an outcome; None: there are no twins.
    """
    rng, alpha, n_gates, n_runs = np.random.default_rng(1), 0.2 / 5, 5, 1000
    budget, longest = GateBudget(steps=60_000, max_steps=150), 192
    used, pairs, clear = np.zeros(n_runs, int), np.zeros(n_runs, int), np.zeros(n_runs, bool)
    covered = []
    for left in range(n_gates, 0, -1):
        most = np.array([min(budget.pairs(u, p, left), longest) for u, p in zip(used, pairs, strict=True)], int)
        assert most.min() >= 8
        old, new, dream_old, dream_new = (rng.random((n_runs, longest, 5)) < 0.5 for _ in range(4))
        gains, own = new[..., 0] * 1.0 - old[..., 0], dream_new * 1.0 - dream_old
        twins, others = np.where(rng.random(gains.shape) < (copies or 0), gains, own[..., 0]), own[..., 1:]
        given = (gains,) if copies is None else (gains, twins, others)
        found = evidence(*given, alpha=alpha)
        n = np.zeros(n_runs, int)
        for size in np.unique(most):
            looks = np.array([min(i, size) for i in range(8, size + 8, 8)])
            of = most == size
            cut = replace(found, **{name: values[of][:, looks - 1] for name, values in vars(found).items()})
            decision = decide(cut, looks, int(size), alpha, 0.0)
            first = (decision.reason != "").argmax(1)
            n[of] = looks[first]
            clear[of] |= np.char.startswith(np.take_along_axis(decision.reason, first[:, None], 1)[:, 0], "clear")
        processes = [plain(gains, LOWEST, HIGHEST)]
        if copies is not None:
            processes.append(corrected(gains, twins, others, LOWEST, HIGHEST))
        at = n[:, None] - 1
        worst = np.maximum(*(log_evidence(processes, 0.0, above, 0.05) for above in (True, False)))
        covered.append(np.take_along_axis(worst, at, 1)[:, 0] < math.log(2 / 0.05))
        lengths = np.cumsum(np.where(old[..., 0], 60, 150) + np.where(new[..., 0], 60, 150), axis=1)
        used += np.take_along_axis(lengths, at, 1)[:, 0]
        pairs += n
    assert used.max() <= 60_000
    assert 0 < clear.mean() <= 0.2
    assert np.mean(covered) >= 0.95
