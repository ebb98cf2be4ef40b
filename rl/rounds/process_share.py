"""The share of a run that one of several processes does: an equal part of its environments and of each batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rewards.errors import UserError
from rl.config import TrainConfig
from rl.ppo.distributed import Distributed


def share_of(config: TrainConfig, distributed: Distributed) -> TrainConfig:
    """Return the config with the sizes of one process and a seed of its own; with one process, `config` itself.

    Raises:
        UserError: the processes cannot share the environments equally, or there are callbacks.
    """
    if distributed.world_size == 1:
        return config
    if on := [name for name, term in config.callbacks.items() if term is not None]:
        raise UserError(
            f"callbacks.{on[0]}: callbacks see the rollouts of one process, and there are {distributed.world_size}; "
            "leave them out, or train in one process"
        )
    env, dream, of = config.env, config.dream, distributed.share.of
    return replace(
        config,
        seed=distributed.seed(config.seed),
        env=replace(
            env,
            n_envs=distributed.part("env.n_envs", env.n_envs),
            n_workers=distributed.n_workers(env.n_workers),
        ),
        dream=dream if env.kind == "sim" else replace(dream, n_envs=distributed.part("dream.n_envs", dream.n_envs)),
        ppo=replace(config.ppo, batch_size=of(config.ppo.batch_size), bc_batch_size=of(config.ppo.bc_batch_size)),
    )


def tasks_from(tasks: Sequence[str], first: int) -> tuple[str, ...]:
    """Return the tasks in the order in which environments from number `first` on run them, in turn."""
    start = first % len(tasks) if tasks else 0
    return (*tasks[start:], *tasks[:start])
