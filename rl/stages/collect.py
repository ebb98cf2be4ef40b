"""Record episodes in the simulator: of scripted experts (clean or noisy), of random motion, or of a policy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rl.build import build_simulator, find_simulator
from rl.config import SimulatorConfig
from rl.envs.simulator import Simulator
from rl.policies.api import TrainablePolicy
from rl.seeds import OF_SOURCE, POLICY
from world_model.data.episodes import Episode
from world_model.env import Obs
from world_model.spec import periods

AFTER_SUCCESS = 8
"""Steps recorded beyond the first success, so that a model also learns what a solved task looks like a moment later."""

SOURCES = ("expert", "noisy", "random")

Act = Callable[[Obs], Tensor]
"""Observation of `num_envs` environments -> actions (num_envs, k, action_dim)."""


def collect_scripted(
    source: str,
    tasks: Sequence[str],
    n_episodes: int,
    seed: int | None = None,
    where: SimulatorConfig = SimulatorConfig(),  # noqa: B008 - it is frozen
) -> list[Episode]:
    """Record `n_episodes` of each task in the simulator of `where`, by default Meta-World; see `collect_from`."""
    env = build_simulator(
        where,
        tasks,
        len(tasks),
        model=None,
        known_tasks=tasks,
        n_context_frames=2,
        max_steps=find_simulator(where).max_steps,
        terminate_on_success=False,
    )
    with contextlib.closing(env):
        return collect_from(env, len(tasks), source, n_episodes, seed)


def collect_from(env: Simulator, n_tasks: int, source: str, n_episodes: int, seed: int | None = None) -> list[Episode]:
    """Record `n_episodes` of each task of `env`.

    Args:
        env: its environments run the tasks in turn, and do not end an episode at its first success.
        n_tasks: number of its tasks.
        source: "expert" (scripted), "noisy" (the expert with noise) or "random" (random motion). The noise is white
            plus slowly drifting, with a strength drawn for each episode, so that errors of all sizes and the expert's
            corrections are recorded.
        n_episodes: of each task.
        seed: of the first episode; default: the first one of the source in `rl.seeds`.
    """
    first = OF_SOURCE[source].start if seed is None else seed
    generator = torch.Generator(env.device).manual_seed(first)
    episodes: list[Episode] = []
    at_once = env.num_envs // n_tasks
    for i in range(0, n_episodes, at_once):
        env.set_episode_seeds([first + i + j // n_tasks for j in range(env.num_envs)])
        episodes += record(env, _scripted(source, env, generator), source)
    return episodes


def collect_policy(
    policy: TrainablePolicy, env: Simulator, n_episodes: int, explore: bool = True, seed: int | None = None
) -> list[Episode]:
    """Record at least `n_episodes` of a policy in `env`, which must be built with terminate_on_success=False."""
    first = POLICY.start if seed is None else seed
    generator = torch.Generator(env.device).manual_seed(first)
    episodes: list[Episode] = []

    @torch.no_grad()
    def act(obs: Obs) -> Tensor:
        context = policy.encode(obs)
        if explore:
            return policy.sample(context, generator).actions
        return policy.decide(context, env.episode_seed, env.elapsed)

    while len(episodes) < n_episodes:
        start = first + len(episodes)
        env.set_episode_seeds(range(start, start + env.num_envs))
        episodes += record(env, act, "policy")
    return episodes


def record(env: Simulator, act: Act, source: str) -> list[Episode]:
    """Run one episode in each environment and cut it at its end, or `AFTER_SUCCESS` steps after its first success."""
    obs = env.reset()
    seeds, tasks = env.episode_seed.tolist(), env.task.tolist()
    first_success = torch.full((env.num_envs,), env.max_steps, device=env.device)
    names = list(env.spec.features)
    frames, actions, success, rewards = [{name: obs[name][:, -1:] for name in names}], [], [], []
    steps, length = 0, torch.zeros_like(first_success)
    running = torch.ones_like(length, dtype=torch.bool)  # an environment that has ended is already in its next episode
    # Step until every environment has ended or has `AFTER_SUCCESS` steps beyond its first success.
    while bool((running & (first_success + AFTER_SUCCESS >= steps)).any()):
        action = act(obs)[:, : env.max_steps - steps]
        step = env.step_chunk(action)
        obs = step.obs
        frames.append(step.frames)
        actions.append(action.clamp(env.action_low, env.action_high))
        success.append(step.success)
        assert step.task_reward is not None  # every simulator has a reward of its own
        rewards.append(step.task_reward)
        hit = step.success.float().argmax(1) + steps
        first_success = torch.where(running & step.is_success, torch.minimum(first_success, hit), first_success)
        length += running * step.executed.sum(1)
        running &= ~(step.terminated | step.truncated)
        steps += action.shape[1]
    acted, succeeded, rewarded = (torch.cat(x, 1).cpu() for x in (actions, success, rewards))
    seen = {name: torch.cat([of[name] for of in frames], 1).cpu() for name in names}
    every = periods(env.spec.features)
    lengths = torch.minimum(first_success + 1 + AFTER_SUCCESS, length).tolist()
    return [
        Episode(
            obs={name: seen[name][j, [*range(0, n, every.get(name, 1)), n]] for name in names},
            action=acted[j, :n].clone(),
            success=succeeded[j, :n].clone(),
            task=env.spec.tasks[tasks[j]],
            source=source,
            seed=seeds[j],
            task_reward=rewarded[j, :n].float().clone(),
            every=every,
        )
        for j, n in enumerate(lengths)
    ]


def _scripted(source: str, env: Simulator, generator: torch.Generator) -> Act:
    """Return the actor of one episode per environment; the strengths of the noise are drawn here."""
    shape = (env.num_envs, env.spec.action_dim)
    strength = 0.1 + 0.7 * torch.rand(env.num_envs, 1, generator=generator, device=env.device)
    drift = torch.zeros(shape, device=env.device)
    middle, half = (env.action_low + env.action_high) / 2, (env.action_high - env.action_low) / 2

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator, device=env.device)

    def act(obs: Obs) -> Tensor:
        nonlocal drift
        # An autoregressive process whose variance tends to 1, since 0.8² + 0.6² = 1.
        drift = 0.8 * drift + 0.6 * normal()
        action = middle + half * drift if source == "random" else env.expert_actions()
        if source == "noisy":
            action = action + strength * (0.7 * drift + 0.3 * normal())
        return action.unsqueeze(1)

    return act
