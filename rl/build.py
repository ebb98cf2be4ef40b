"""From a config to what it names: simulator, policy, reward terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rewards import RewardManager
from rewards.errors import UserError
from rewards.manager import ISAAC, isaac_terms
from rl.config import RECORDED, TrainConfig
from rl.envs.eyes import seen_spec
from rl.envs.sim import SimEnv, make_spec
from rl.envs.simulator import Simulator, is_isaac, pick_device
from rl.policies.api import ChunkPolicy
from rl.policies.gaussian import GaussianPolicy
from rl.policies.wam import FlowPolicy
from world_model.env import BatchedEnv
from world_model.spec import Spec
from world_model.wam.model import WorldActionModel

SAME = "max_steps", "terminate_on_success", "action_delay", "obs_noise"
"""Fields of `EnvConfig`, and attributes of every environment, in which simulator and dream are to be the same."""


def make_sim(
    config: TrainConfig, model: WorldActionModel | None, tasks: Sequence[str], n_envs: int, rewards: bool
) -> Simulator:
    """Build the simulator of the config for `tasks`; `rewards` says whether its terms are paid.

    Raises:
        UserError: the checkpoint does not fit the environment; both sizes are named, or the unknown task.
    """
    env = config.env
    if env.events and (env.id == RECORDED or is_isaac(env.id)):
        raise UserError(f"env.events: env.id={env.id} has no events of ours; only Meta-World tasks have")
    options: dict[str, Any] = {
        "n_context_frames": 1 if model is None else model.config.n_context_frames,
        "read_out": None if model is None else model.read_frames,
        "seed": config.seed,
        "device": device_of(config),
        **{name: getattr(env, name) for name in SAME},
    }
    sim: Simulator
    if env.id == RECORDED:
        from rl.envs.recorded import Recorded

        if model is None:
            raise UserError(f"env.id={RECORDED}: policy=gaussian has no dream to judge it in; use policy=flow")
        kept = {name: options[name] for name in ("seed", *SAME)}
        sim = Recorded(config, model, tuple(tasks), n_envs, **kept)
    elif is_isaac(env.id):
        from rl.envs.isaac.env import IsaacEnv

        sim = IsaacEnv(env.id, n_envs, own_rewards=isaac_terms(config.rewards), **vars(env.isaac) | options)
    else:
        if model is not None:  # before a task that it does not know is refused for its name alone
            model.spec.check_fits(seen_spec(model, make_spec(env.id, tasks)), f"env.id={env.id}")
        # Without a model, too, a task has one number in all simulators of a run, also in one of that task alone.
        names = (env.tasks or None) if model is None else model.spec.tasks
        options |= {"task_names": names, "events": env.events, "seen_by": model}
        sim = SimEnv(env.id, n_envs, tasks or None, n_workers=env.n_workers or default_workers(), **options)
    try:
        if model is not None:
            model.spec.check_fits(sim.spec, f"env.id={env.id}")
        if rewards:
            sim.rewards = make_rewards(config, sim.spec, sim.place, model)
    except BaseException:
        sim.close()
        raise
    return sim


def device_of(config: TrainConfig) -> str:
    """Where model, dream and simulator of a config meet; see `pick_device`."""
    return pick_device(config.device, config.env.id, config.env.isaac.device)


def default_workers() -> int:
    """Processes for the simulator: one for each thread of torch; a single thread steps it in this process."""
    threads = torch.get_num_threads()
    return threads if threads > 1 else 0


def tasks_of(config: TrainConfig, model: WorldActionModel | None) -> tuple[str, ...]:
    """Tasks of the config, or all that the checkpoint knows; none for a gymnasium id, which is its own."""
    if config.env.tasks or config.env.id not in ("metaworld", RECORDED) or model is None:
        return config.env.tasks
    return model.spec.tasks


def make_policy(config: TrainConfig, model: WorldActionModel | None, env: BatchedEnv) -> ChunkPolicy:
    """Build the policy that the config names."""
    if model is None:
        torch.manual_seed(config.seed)
        return GaussianPolicy(env, chunk_size=config.n_action_steps).to(env.device)
    ppo = config.ppo
    return FlowPolicy(model, env, ppo.n_denoising_steps, ppo.noise_std, config.n_action_steps, ppo.noise_correlation)


def make_rewards(config: TrainConfig, spec: Spec, place: str, model: WorldActionModel | None) -> RewardManager:
    """Build the reward terms of the config for one place; a term that the place cannot serve is refused by name."""
    provides: set[str] = set(spec.slices)
    if model is not None:
        provides.add("progress")
    if place == "sim":
        provides.add("task_reward")
        if is_isaac(config.env.id):
            provides.add(ISAAC)
    return RewardManager(config.rewards, provides, place)
