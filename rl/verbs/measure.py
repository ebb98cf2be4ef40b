"""Run episodes of a policy in the simulator, and dream episodes from its starts; for `eval` and `rank`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from rl.build import make_sim, tasks_of
from rl.config import EnvConfig, TrainConfig
from rl.envs.names import task_of_id
from rl.policies.api import Denoiser
from rl.policies.chain import ChainPolicy
from rl.policies.wam import WamDenoiser
from rl.rounds.evaluate import EpisodeResult, evaluate_dream, evaluate_sim, first_states, whole_episodes
from rl.sequential import Estimate, Floats, estimate, phi
from rl.verbs.options import EpisodeOptions
from world_model.api import WorldModel
from world_model.spec import Spec
from world_model.wam.model import WorldActionModel

MOST_DREAMS = 256
"""Dreamed together; how many does not change a result."""


@dataclass(frozen=True)
class Measured:
    """Episodes of one policy on one task, in the order of their seeds."""

    real: list[EpisodeResult] = field(default_factory=list)
    dreamed: list[EpisodeResult] = field(default_factory=list)


def measure(
    model: WorldModel | None,
    options: EpisodeOptions,
    task: str,
    real: Sequence[int],
    dreamed: Sequence[int],
    tick: Callable[[float], None] = lambda share: None,
    denoiser: Denoiser | None = None,
) -> Measured:
    """Run the episodes of the seeds `real`, and dream those of the seeds `dreamed` from the same first states.

    Args:
        model: dreams; its own policy acts unless there is a `denoiser`. None: nothing is dreamed.
        options: sizes and settings.
        task: of all episodes; "" if the simulator has one.
        real: seeds of real episodes; may be empty.
        dreamed: seeds of dreamed ones; may be empty.
        tick: called with the share that is done.
        denoiser: acts, if another policy than that of the model does.
    """
    n_envs = min(options.n_envs, max(len(real), len(dreamed)))
    env = make_sim(run_config(options), model, (task,), n_envs, rewards=False, denoiser=denoiser)
    n_all = len(real) + len(dreamed)
    try:
        if denoiser is None:
            assert isinstance(model, WorldActionModel)
            denoiser = WamDenoiser(model)
        policy = chain_policy(denoiser, env.spec, options)
        results = evaluate_sim(policy, env, real, lambda n, _: tick(n / n_all)) if real else []
        dreams: list[EpisodeResult] = []
        for first in range(0, len(dreamed), MOST_DREAMS):
            seeds, begun = dreamed[first : first + MOST_DREAMS], len(real) + first
            assert model is not None
            dream = whole_episodes(model, env, policy, first_states(env, seeds))

            def count(n: int, _: int, begun: int = begun) -> None:
                tick((begun + n) / n_all)

            dreams += evaluate_dream(policy, dream, count)
        return Measured(results, dreams)
    finally:
        env.close()


def chain_policy(denoiser: Denoiser, spec: Spec, options: EpisodeOptions) -> ChainPolicy:
    """Make the policy of a denoiser in an environment of `spec`; the denoiser keeps its own numbers of steps."""
    own = denoiser.n_action_steps, denoiser.n_denoising_steps
    policy = ChainPolicy(denoiser, spec, options.n_denoising_steps, n_action_steps=options.n_action_steps or None)
    # A `ChainPolicy` leaves the steps that it takes in the denoiser, to be saved; here the next caller has its own.
    denoiser.n_action_steps, denoiser.n_denoising_steps = own
    return policy


def run_config(options: EpisodeOptions) -> TrainConfig:
    """Return the config of a run with these options, for what is built from one."""
    env = EnvConfig(
        **vars(options.env), n_envs=options.n_envs, max_steps=options.max_steps, obs_noise=options.obs_noise
    )
    return TrainConfig(name="eval", env=env, policy=options.policy or "flow")


def evaluated_tasks(options: EpisodeOptions, model: WorldModel | None) -> tuple[str, ...]:
    """Return the tasks to run, each once; ("",) if the simulator has a single one without a name."""
    only = task_of_id(options.env.id, () if model is None else model.spec.tasks)
    return tuple(dict.fromkeys(tasks_of(run_config(options), model) or (only,)))


def in_percent(mean: float, low: float, high: float) -> str:
    """Return text with a share and its interval, in percent."""
    return f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def successes(results: Sequence[EpisodeResult]) -> Floats:
    """Return 1 for each success and 0 for each failure (n,)."""
    return np.array([float(result.success) for result in results])


@dataclass(frozen=True)
class TwinSuccess:
    """Success in the simulator, corrected by dreamed twins."""

    found: Estimate
    phi: float | None  # correlation of single episodes, each against its task; None: nothing to correlate
    n_dreams: int


def with_twins(real: Sequence[Floats], twins: Sequence[Floats], others: Sequence[Floats]) -> TwinSuccess:
    """Estimate the mean success over tasks, from the same number of episodes of each.

    Args:
        real: of each task, outcomes (n,).
        twins: of each task, those of the dreamed twins (n,).
        others: of each task, those of K dreams from fresh starts for each episode (n, K).
    """
    # One episode of each task in turn, so that the order does not depend on how many there are.
    y, t, o = (np.stack(list(of), axis=1).reshape(-1, *of[0].shape[1:]) for of in (real, twins, others))
    found = estimate(y, t, o, 0.0, 1.0, sizes=(len(y),), cycle=len(real))
    return TwinSuccess(found, phi(list(zip(real, twins, strict=True))), n_dreams=t.size + o.size)
