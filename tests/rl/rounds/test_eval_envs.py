"""Evaluation environments: the same episodes with noise on observations, and without it again."""

from __future__ import annotations

from typing import Any

from rl.compose import compose
from rl.config import TrainConfig
from rl.rounds.eval_envs import count_simulators
from rl.rounds.loop import PostTraining
from world_model.wam.store import load_model


def build(tiny: list[str], *words: str) -> PostTraining:
    config = compose("sim", [*tiny, "eval.n_episodes=8", *words], TrainConfig)
    return PostTraining(config, load_model(config.checkpoint), None)


def test_an_evaluation_with_noise_is_that_of_an_environment_with_noise(tiny: list[str]) -> None:
    noisy, exact = build(tiny, "env.obs_noise=0.05"), build(tiny)
    of_noisy, before = noisy.evaluate(), exact.evaluate()
    with_noise, after = exact.evaluate(0.05), exact.evaluate()
    less: Any = noisy.evaluate(0.01)
    for post in noisy, exact:
        post.close()
    assert with_noise == of_noisy != before == after
    assert less == of_noisy  # an environment that has more noise keeps it


def test_a_run_is_evaluated_with_noise_unless_it_trains_with_as_much() -> None:
    def noise(*words: str) -> float:
        return compose("sim", list(words), TrainConfig).evaluated_noise

    assert noise() == 0.001 and noise("env.obs_noise=0.0005") == 0.001
    assert noise("env.obs_noise=0.001") == noise("eval.obs_noise=0") == 0


def test_a_simulator_of_which_there_can_be_one_serves_all_tasks() -> None:
    def count(*words: str) -> int:
        return count_simulators(compose("sim", list(words), TrainConfig), n_tasks=3)

    assert count() == 3 and count("env.id=recorded", "env.kind=dream") == 1
