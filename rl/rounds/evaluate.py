"""Measure the success of a policy on named episodes; the results do not depend on the batch they run in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.build import SAME
from rl.envs.simulator import IDLE, Simulator
from rl.policies.api import Policy, TrainablePolicy
from rl.statistics import success_rate
from world_model.api import WorldModel
from world_model.dream_env import DreamEnv, StartStates
from world_model.env import BatchedEnv
from world_model.tree import Tree, join, rows


@dataclass(frozen=True)
class EpisodeResult:
    """One evaluated episode."""

    task: str
    seed: int
    success: bool
    n_steps: int
    reward: float  # sum over the episode of the simulator's own reward; in a dream of the configured reward
    has_success: bool = True  # False: the simulator reports no success, and `success` means nothing

    def to_row(self) -> dict[str, Any]:
        """Return a row of `eval.jsonl`; `has_success` is in it where it is False."""
        row = asdict(self)
        if self.has_success:
            del row["has_success"]
        return row


def have_success(*groups: Sequence[EpisodeResult]) -> bool:
    """Whether the simulator reports success in any of these episodes; if not, there is no success rate."""
    return any(result.has_success for group in groups for result in group)


def outcomes(champion: Sequence[EpisodeResult], challenger: Sequence[EpisodeResult]) -> NDArray[np.float64]:
    """Return the outcomes of n pairs for both policies (2, n): their success, or without any who got more reward.

    In the latter case the higher reward of a pair is 1 and the lower one 0; both are 0.5 if they are equal.
    """
    if have_success(champion, challenger):
        return np.array([[float(result.success) for result in side] for side in (champion, challenger)])
    old, new = (np.array([result.reward for result in side]) for side in (champion, challenger))
    return np.stack([old > new, new > old]) + 0.5 * (old == new)


def logged(results: Sequence[EpisodeResult]) -> dict[str, float]:
    """Return what a run logs of an evaluation: its success rate, or without one the mean reward of an episode."""
    if have_success(results):
        return {"eval/success": success_rate(results)}
    return {"eval/reward": mean_reward(results)}


def mean_reward(results: Sequence[EpisodeResult]) -> float:
    """Return the mean reward of an episode."""
    return sum(result.reward for result in results) / len(results)


class Exploring:
    """A policy that samples with exploration noise from `generator`, although the caller asks it to `decide`."""

    def __init__(self, policy: TrainablePolicy, generator: torch.Generator) -> None:
        self.encode, self.policy, self.generator = policy.encode, policy, generator

    def decide(self, encoded: Tree, seed: Tensor, counter: Tensor) -> Tensor:
        """Sample actions with exploration; `seed` and `counter` are ignored."""
        return self.policy.sample(encoded, self.generator).actions


def evaluate_sim(
    policy: Policy, env: Simulator, seeds: Sequence[int], tick: Callable[[float, int], None] | None = None
) -> list[EpisodeResult]:
    """Run the episodes named by `seeds` without exploration; return results in the order of `seeds`.

    The noise of each decision depends on (episode seed, step) only, so each episode can be repeated on its own. `tick`
    is called after every chunk with (finished, total), where an episode under way counts by its share of `max_steps`.
    All environments of `env` must run the same task.
    """
    results: dict[int, EpisodeResult] = {}

    def count() -> None:
        if tick is not None:
            under_way = env.elapsed[env.episode_seed != IDLE].sum() / env.max_steps
            tick(min(len(results) + float(under_way), len(set(seeds))), len(set(seeds)))

    size = env.wave or len(seeds) or 1  # a simulator may limit how many episodes can be named at once
    for first in range(0, len(seeds), size):
        wave = seeds[first : first + size]
        env.set_episode_seeds(wave)
        for result, _ in _episodes(policy, env, count):
            if result.seed != IDLE:
                results[result.seed] = result
            if all(seed in results for seed in wave):
                break
    if tick is not None:
        tick(len(results), len(set(seeds)))
    env.set_episode_seeds([])
    env.begun = False  # discard unfinished episodes; the next rollout must reset
    has_success = env.reports_success()
    return [replace(results[seed], has_success=has_success) for seed in seeds]


def evaluate_dream(
    policy: Policy, env: DreamEnv, tick: Callable[[int, int], None] | None = None
) -> list[EpisodeResult]:
    """Dream one episode from each of the first `num_envs` starts of `env`, which must be built with `in_order`.

    `tick` is called with (finished, total).
    """
    results: dict[int, EpisodeResult] = {}
    # Only the first episode of each environment counts; one that ends early begins another meanwhile.
    for result, index in _episodes(policy, env):
        results.setdefault(index, result)
        if tick is not None:
            tick(len(results), env.num_envs)
        if len(results) == env.num_envs:
            break
    return [results[i] for i in range(env.num_envs)]


def whole_episodes(model: WorldModel, sim: Simulator, policy: TrainablePolicy, starts: StartStates) -> DreamEnv:
    """Build a dream of one whole episode from each start, in order, with the settings of the simulator.

    It is for measuring a policy: nothing but success or the step limit ends an episode.
    """
    return DreamEnv(
        model,
        len(starts),
        starts,
        horizon=-(-sim.max_steps // policy.n_action_steps),
        in_order=True,
        images=policy.images,
        **{name: getattr(sim, name) for name in SAME},
    )


def first_states(env: Simulator, seeds: Sequence[int]) -> StartStates:
    """Return the states in which the episodes named by `seeds` begin, to dream these same episodes."""
    env.set_episode_seeds(seeds)
    parts = []
    for _ in range(-(-len(seeds) // env.num_envs)):
        env.reset()
        parts.append(StartStates.of(env))
    env.set_episode_seeds([])
    env.begun = False  # rows beyond `seeds` have no episode, and nothing may go on from them
    starts = rows(join(parts), slice(len(seeds)))
    return replace(starts, seed=torch.tensor(seeds, device=env.device))


def _episodes(
    policy: Policy, env: BatchedEnv, stepped: Callable[[], None] = lambda: None
) -> Iterator[tuple[EpisodeResult, int]]:
    """Step without end; yield each episode as it ends, with the index of its environment.

    `stepped` is called after every chunk, when its episodes have been yielded.
    """
    obs = env.reset()
    reward = torch.zeros(env.num_envs, device=env.device)
    succeeded = torch.zeros(env.num_envs, dtype=torch.bool, device=env.device)
    while True:
        # Copy these before the step: an environment that ends restarts within it (SAME_STEP autoreset).
        seed, task, elapsed = env.episode_seed.clone(), env.task.clone(), env.elapsed.clone()
        with torch.inference_mode():
            actions = policy.decide(policy.encode(obs), seed, elapsed)
        step = env.step_chunk(actions)
        obs = step.obs
        reward += (step.reward if step.task_reward is None else step.task_reward).sum(1)
        succeeded |= step.is_success
        done = step.terminated | step.truncated
        n_steps = elapsed + step.executed.sum(1)
        for j in done.nonzero().squeeze(1).tolist():
            name = env.spec.tasks[int(task[j])]
            yield EpisodeResult(name, int(seed[j]), bool(succeeded[j]), int(n_steps[j]), float(reward[j])), j
        reward[done], succeeded[done] = 0.0, False
        stepped()
