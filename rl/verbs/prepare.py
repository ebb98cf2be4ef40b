"""Build a run of `wamtune train`, and its controls, from a config."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rewards.errors import UserError
from rl.build import check_simulator, device_of, has_simulator, make_rewards, tasks_of
from rl.config import CONTROLS, TrainConfig
from rl.envs.recorded import recorded_episodes
from rl.instructions import tell_of
from rl.policies.wam import WamDenoiser
from rl.ppo.distributed import Distributed
from rl.rounds.corrections import corrected_values
from rl.rounds.loop import PostTraining
from rl.runs.progress import Progress
from rl.world_models import make_world_model
from world_model.api import WorldModel
from world_model.checkpoint import builtin_checkpoints, find_checkpoint
from world_model.data.columns_config import ColumnsConfig
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.lerobot import INFO, cameras_of, import_lerobot
from world_model.dream_env import DreamEnv
from world_model.wam.store import load_model


def control_config(config: TrainConfig, name: str) -> TrainConfig:
    """Return the config of the control `name`: the same run with the changes in `CONTROLS`."""
    parts = {part: replace(getattr(config, part), **changes) for part, changes in CONTROLS[name].items()}
    return replace(config, **parts, controls=())


def prepare(
    config: TrainConfig,
    folder: Path = Path(),
    distributed: Distributed | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> PostTraining:
    """Build a run from a freshly loaded checkpoint and its demonstrations; the caller sets its log.

    `folder` is where its callbacks write, `distributed` the processes that do the run together. `say` gets lines on the
    sentences that the checkpoint was given.
    """
    check_simulator(config)
    gc.collect()  # the previous run has reference cycles, and would keep gigabytes until the collector runs
    model, denoiser = load_models(config, say)
    demonstrations = None if config.actor.func == "gaussian" else _demonstrations(config, model)
    make = partial(
        PostTraining, config, model, demonstrations, folder=folder, denoiser=denoiser, distributed=distributed
    )
    if has_simulator(config):
        post = make()
    else:
        refit = f" and refits it for {config.dream.refit_steps:,} steps" if config.dream.refit_steps else ""
        say(f"first the run calibrates the dream that judges policies on the recorded episodes{refit}")
        with Progress("judge of recorded episodes") as progress:
            post = make(built=lambda share: progress.update(100 * share, 100))
    if config.episodes:
        _add_recorded(post, config)
    return post


def load_models(
    config: TrainConfig, say: Callable[[str], None] = lambda line: None
) -> tuple[WorldModel | None, WamDenoiser | None]:
    """Load the world model of a run, None if it needs none, and the policy `flow` if that is another network."""
    device = device_of(config)
    ours = load_model(config.checkpoint).to(device) if config.uses_model else None
    if ours is not None:
        instruction = config.instruction if config.actor.func == "flow" else None
        for line in tell_of(ours, config.env, config.env.tasks, instruction, config.text_encoder):
            say(line)
    brought = make_world_model(config.dream, config.seed, device, say=say) if config.env.kind != "sim" else None
    if brought is None:
        if ours is not None:
            ours.n_denoising_steps = config.dream.n_denoising_steps
        return ours, None
    return brought, None if ours is None else WamDenoiser(ours, dreams=False)


def _add_recorded(post: PostTraining, config: TrainConfig) -> None:
    """Add the recorded episodes of `config.episodes` to the data of dream and imitation."""
    if post.dreams is None or post.model is None:
        raise UserError(f"episodes={config.episodes}: they refit a dream, and env.kind=sim has none; use dream or mix")
    recorded = recorded_episodes(config, post.model, tasks_of(config, post.model))
    own = list(post.distributed.shard(recorded))
    post.add_episodes(own)
    if config.ppo.pg_coef > 0 and not post.policy.images:
        model = post.model
        rewards = make_rewards(config, model.predicted_spec, DreamEnv.place, model)
        gamma, read_out = config.ppo.gamma, model.frame_read_out
        post.state.real = corrected_values(post.policy, own, rewards, model.predicted_spec, gamma, read_out)


def _demonstrations(config: TrainConfig, model: WorldModel | None) -> list[Episode] | None:
    """Load the demonstrations of the anchor, [] if none are needed; None if no imitation has a weight above 0."""
    ppo = config.ppo
    if not any((ppo.bc_coef, ppo.success_bc_coef, config.dream.success_bc_coef)):
        return None
    if ppo.bc_coef == 0:
        return []
    if config.demonstrations:
        return load_demonstrations(config.demonstrations, tasks_of(config, model))
    if model is None or config.actor.func != "flow":
        raise UserError(
            f"ppo.bc_coef={ppo.bc_coef}: the policy comes without demonstrations; name those that it was trained on "
            "with demonstrations=FOLDER (episodes, or a LeRobot dataset), or set ppo.bc_coef=0"
        )
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


def load_demonstrations(folder: str, tasks: Sequence[str]) -> list[Episode]:
    """Load the episodes of `tasks` (empty: all) from a folder of episodes or a LeRobot dataset with all its images.

    `folder` may also be the name of a built-in checkpoint, which holds demonstrations.

    Raises:
        UserError: there are none, or the folder cannot be read.
    """
    if folder in builtin_checkpoints():
        folder = str(find_checkpoint(folder))
    if (Path(folder) / INFO).is_file():
        found, _ = import_lerobot(folder, ColumnsConfig(images=cameras_of(folder), image_size=0))
        episodes = [episode for episode in found if not tasks or episode.task in tasks]
    else:
        episodes = EpisodeStore(folder).load(tasks=tasks or None)
    if not episodes:
        raise UserError(
            f"demonstrations={folder}: no episodes of {', '.join(tasks) or 'any task'} there; expected a folder of "
            "episodes or a LeRobot dataset"
        )
    return episodes
