"""Build the objects that a config names: simulator, policy, reward terms."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from rewards import RewardManager
from rewards.errors import UserError, closest_or_known
from rewards.manager import isaac_terms
from rewards.plugins import load
from rl.config import SimulatorConfig, TrainConfig
from rl.envs.features import given_spec
from rl.envs.names import BUILTIN, shown_name, simulator_name
from rl.envs.simulator import Request, Simulator
from rl.policies.api import ChunkPolicy
from rl.policies.gaussian import GaussianPolicy
from rl.policies.wam import FlowPolicy
from world_model.env import BatchedEnv
from world_model.spec import Spec
from world_model.wam.model import WorldActionModel

SAME = "max_steps", "terminate_on_success", "action_delay", "obs_noise"
"""Fields of `EnvConfig`, and attributes of every environment, that must be equal in simulator and dream."""


def find_simulator(env: SimulatorConfig) -> type[Simulator]:
    """Return the simulator class that a config names: built-in, `path.py:Class`, `module:Class` or entry point.

    Raises:
        UserError: it does not exist, or is not a subclass of `Simulator`.
    """
    name = simulator_name(env)
    found = load("simulator", name, BUILTIN, key="env.simulator")
    if not (inspect.isclass(found) and issubclass(found, Simulator)):
        raise UserError(f"env.simulator={name}: expected a subclass of rl.envs.simulator.Simulator, got {found!r:.80}")
    return found


def make_sim(
    config: TrainConfig, model: WorldActionModel | None, tasks: Sequence[str], n_envs: int, rewards: bool
) -> Simulator:
    """Build the simulator of the config for `tasks`; with `rewards` it gets the reward terms of the config.

    Raises:
        UserError: the checkpoint does not fit the environment; both sizes are named, or the unknown task.
    """
    env = config.env
    sim = build_simulator(
        env,
        tasks,
        n_envs,
        model=model,
        # A task must have the same index in every simulator of a run, even in one that runs this task only.
        known_tasks=env.tasks if model is None else model.spec.tasks,
        n_workers=env.n_workers or default_workers(),
        run=config,
        n_context_frames=1 if model is None else model.config.n_context_frames,
        read_out=None if model is None else model.success_and_progress,
        seed=config.seed,
        device=device_of(config),
        **{name: getattr(env, name) for name in SAME},
    )
    try:
        if rewards:
            sim.rewards = make_rewards(config, sim.spec, sim.place, model)
    except BaseException:
        sim.close()
        raise
    return sim


def build_simulator(
    env: SimulatorConfig,
    tasks: Sequence[str],
    n_envs: int,
    *,
    model: WorldActionModel | None,
    known_tasks: Sequence[str],
    n_workers: int = 0,
    run: TrainConfig | None = None,
    **others: Any,
) -> Simulator:
    """Build a simulator, and check that a model can act in it.

    Args:
        env: names simulator, id and options.
        tasks: to run; empty if the simulator has one task.
        n_envs: number of environments.
        model: acts in it; None for another policy.
        known_tasks: see `Request`; empty: `tasks`.
        n_workers: see `Request`.
        run: config of the run, if there is one.
        others: arguments of `BatchedEnv`.

    Raises:
        UserError: the checkpoint does not fit the environment; both sizes are named, or the unknown task.
    """
    simulator, where = find_simulator(env), shown_name(env)
    simulator.check_options(env.options)
    early = simulator.early_spec(id=env.id, tasks=tasks)
    if model is not None and early is not None:  # first, since a wrong state explains more than an unknown task
        model.spec.check_fits(given_spec(early, model.spec.features, robot_slices=simulator.robot_slices), where)
    if known_tasks and (unknown := sorted(set(tasks) - set(known_tasks))):
        hint = closest_or_known(unknown[0], known_tasks)
        raise UserError(f"{where}: task {unknown[0]!r} is unknown to the checkpoint; {hint}")
    tasks = tuple(tasks) or (early.tasks if early is not None else _only_task(env, known_tasks))
    request = Request(
        id=env.id,
        tasks=tasks,
        n_envs=n_envs,
        options=env.options,
        known_tasks=tuple(known_tasks) or tasks,
        n_workers=n_workers,
        features={} if model is None else model.spec.features,  # without a model: the state alone
        cameras={} if model is None else model.cameras,
        model=model,
        own_rewards=isaac_terms(run.rewards) if run is not None else {},
        run=run,
    )
    sim = simulator.build(request, **others)
    if env.instructions:
        sim.spec = replace(sim.spec, instructions=sim.spec.instructions | env.instructions)
    if model is not None:
        try:
            reads = model.predicted_spec if sim.place == "dream" else model.spec
            reads.check_fits(sim.spec, where)
            if sim.spec.tasks != model.spec.tasks:  # a task would have another index than in the model's training
                raise UserError(
                    f"{where}: its spec names the tasks {', '.join(sim.spec.tasks)}, the checkpoint "
                    f"{', '.join(model.spec.tasks)}; build the spec with tasks=known_tasks"
                )
        except BaseException:
            sim.close()
            raise
    return sim


def check_simulator(config: TrainConfig) -> None:
    """Refuse a run whose simulator cannot do what the rest of the config needs.

    Raises:
        UserError: the simulator only dreams, and the config does not train in the dream of recorded episodes alone.
    """
    judges_only = find_simulator(config.env).place == "dream"
    if judges_only and (config.env.kind != "dream" or not config.episodes or config.dream.n_episodes > 0):
        raise UserError(f"{shown_name(config.env)}: set env.kind=dream, episodes=FOLDER and dream.n_episodes=0")


def judged_in(config: TrainConfig) -> str:
    """Return in words where gates and evaluations run."""
    try:
        place = find_simulator(config.env).place
    except UserError:  # the plug-in is missing; a report can still be written
        place = "sim"
    return "the simulator" if place == "sim" else "a dream of what was recorded"


def device_of(config: TrainConfig) -> str:
    """Return the device of model, dream and simulator; see `Simulator.pick_device`."""
    return find_simulator(config.env).pick_device(config.device, config.env.options)


def default_workers() -> int:
    """Return the number of worker processes: one per thread of torch, or 0 (this process) for a single thread."""
    threads = torch.get_num_threads()
    return threads if threads > 1 else 0


def tasks_of(config: TrainConfig, model: WorldActionModel | None) -> tuple[str, ...]:
    """Return the tasks of the config, else all tasks of the checkpoint; () if `env.id` itself names the task."""
    if config.env.tasks or model is None or find_simulator(config.env).id_is_task:
        return config.env.tasks
    return model.spec.tasks


def make_policy(config: TrainConfig, model: WorldActionModel | None, env: BatchedEnv) -> ChunkPolicy:
    """Build the policy of the config: that of the checkpoint `model`, or without one a new Gaussian MLP."""
    if model is None:
        torch.manual_seed(config.seed)
        return GaussianPolicy(env, chunk_size=config.n_action_steps).to(env.device)
    ppo = config.ppo
    return FlowPolicy(model, env, ppo.n_denoising_steps, ppo.noise_std, config.n_action_steps, ppo.noise_correlation)


def make_rewards(config: TrainConfig, spec: Spec, place: str, model: WorldActionModel | None) -> RewardManager:
    """Build the reward terms of the config for one place.

    Raises:
        UserError: a term needs something that the place does not provide; both are named.
    """
    provides = {*spec.vector_slices, *spec.features}
    if model is not None:
        # A world model with cameras makes images of latents and the other way round.
        provides |= {"progress", *model.spec.features, *model.predicted_spec.features}
    if place == "sim":
        provides |= find_simulator(config.env).provides
    return RewardManager(config.rewards, provides, place, images=model if model is not None and model.cameras else None)


def _only_task(env: SimulatorConfig, known_tasks: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks of a simulator if none is named: its id, else the known tasks, else the name of its class."""
    if env.id:
        return (env.id,)
    return tuple(known_tasks) or (simulator_name(env).rpartition(":")[2],)
