"""Build a run of `wamtune train`, and its controls, from a config."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

from rewards.errors import UserError
from rl.build import check_simulator, device_of, tasks_of
from rl.config import CONTROLS, TrainConfig
from rl.envs.recorded import recorded_episodes
from rl.rounds.loop import PostTraining
from world_model.checkpoint import find_checkpoint
from world_model.data.episodes import Episode, EpisodeStore
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model


def control_config(config: TrainConfig, name: str) -> TrainConfig:
    """Return the config of the control `name`: the same run with the changes in `CONTROLS`."""
    parts = {part: replace(getattr(config, part), **changes) for part, changes in CONTROLS[name].items()}
    return replace(config, **parts, controls=())


def prepare(config: TrainConfig, folder: Path = Path()) -> PostTraining:
    """Build a run from a freshly loaded checkpoint and its demonstrations; the caller sets its log.

    `folder` is where its callbacks write.
    """
    check_simulator(config)
    gc.collect()  # the previous run has reference cycles, and would keep gigabytes until the collector runs
    model = load_model(config.checkpoint).to(device_of(config)) if config.policy == "flow" else None
    demonstrations = None if model is None else _demonstrations(config, model)
    post = PostTraining(config, model, demonstrations, log=lambda step, values: None, folder=folder)
    if config.episodes:
        _add_recorded(post, config)
    return post


def _add_recorded(post: PostTraining, config: TrainConfig) -> None:
    """Add the recorded episodes of `config.episodes` to the data of dream and imitation."""
    if post.dreams is None or post.model is None:
        raise UserError(f"episodes={config.episodes}: they refit a dream, and env.kind=sim has none; use dream or mix")
    post.add_episodes(recorded_episodes(config, post.model, tasks_of(config, post.model)))


def _demonstrations(config: TrainConfig, model: WorldActionModel) -> list[Episode] | None:
    """Load the demonstrations of the checkpoint, [] if none are needed; None if no imitation has a weight above 0."""
    ppo = config.ppo
    if not any((ppo.bc_coef, ppo.success_bc_coef, config.dream.success_bc_coef)):
        return None
    demonstrations: list[Episode] = []
    if ppo.bc_coef > 0:
        tasks = tasks_of(config, model) or model.spec.tasks
        demonstrations = EpisodeStore(find_checkpoint(config.checkpoint)).load(tasks=tasks)
        if not demonstrations and not set(tasks) <= set(model.spec.tasks):
            return None  # the simulator is built next; it refuses an unknown task, and names the closest known one
        if not demonstrations:
            raise UserError(
                f"ppo.bc_coef={ppo.bc_coef}: {config.checkpoint} holds no demonstrations of {', '.join(tasks)}; "
                f"set ppo.bc_coef=0 or tune a checkpoint on some"
            )
    return demonstrations
