"""Pictures for the stages: episodes are run again before the cameras, and seen through the model's own codec."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rewards.errors import UserError
from rl.build import find_simulator
from rl.config import SimulatorConfig
from rl.envs.image_obs import PROPRIOCEPTION, ImageObs, image_obs_of, seeing_spec
from rl.runs.progress import Progress
from rl.seeds import CAMERA
from rl.stages.videos import Video
from world_model.data.episodes import Episode, EpisodeStore, read_shard
from world_model.files import write_atomically
from world_model.spec import Spec
from world_model.wam.config import ModelConfig
from world_model.wam.images import PictureCodec, Pictures
from world_model.wam.model import WorldActionModel
from world_model.wam.noise import noisy_images

Filmed = tuple[list[Episode], list[Tensor]]
"""Episodes, and the images of each: (T + 1, n_views, size, size, 3) uint8."""

REPEATS = 1e-4
"""How far the last frame of an episode may be from what is recorded when it is run again."""


def model_spec(simulated: Spec, config: ModelConfig) -> Spec:
    """Return what a model of this config is told: all that is simulated, or proprioception and pictures.

    Raises:
        UserError: nothing is known of what a robot knows of itself there.
    """
    if not config.views:
        return simulated
    codec = PictureCodec(len(config.views), config.picture_size, config.picture_dim)
    told = [part for part in PROPRIOCEPTION if part in simulated.slices]
    if not told:
        raise UserError(
            f"model.views: the state of {simulated.tasks[0]} has none of {', '.join(PROPRIOCEPTION)}, which a robot "
            f"knows of itself; see SLICES in rl/envs/gym_env.py, or set model.views={{}}"
        )
    return seeing_spec(simulated, told, codec)


def film(
    env: SimulatorConfig,
    store: EpisodeStore,
    config: ModelConfig,
    tasks: Collection[str],
    sources: Collection[str] | None,
) -> Filmed:
    """Return the episodes of a store, and the pictures of each.

    They are drawn once, a file for each shard, beside the episodes. What is returned are maps of these files, which are
    read as they are used and take no memory of their own.

    Raises:
        UserError: an episode does not run as it was recorded.
    """
    episodes: list[Episode] = []
    pictures: list[Tensor] = []
    with Progress("film") as progress:
        for i, shard in enumerate(store.shards):
            of_shard = read_shard(shard)
            drawn = _kept(shard, config)
            if drawn is None:
                drawn = [_checked(env, episode, config, shard) for episode in of_shard]
                _keep(shard, config, drawn)
                drawn = _kept(shard, config) or drawn
            for episode, its in zip(of_shard, drawn, strict=True):
                if episode.task in tasks and (sources is None or episode.source in sources):
                    episodes.append(episode)
                    pictures.append(its)
            progress.update(i + 1, len(store.shards))
    return episodes, pictures


def run_again(env: SimulatorConfig, episode: Episode, config: ModelConfig) -> Tensor:
    """Run an episode again before the cameras. Shape: (T + 1, n_views, size, size, 3) uint8."""
    return _run_again(env, episode, config)[0]


def by_task(episodes: Sequence[Episode], pictures: Sequence[Tensor], videos: Sequence[Video] = ()) -> Pictures:
    """Put the pictures of all episodes and videos together, those of a task apart."""
    shown = [(e.task, its) for e, its in zip(episodes, pictures, strict=True)] + list(videos)
    tasks = dict.fromkeys(task for task, _ in shown)
    return Pictures([torch.cat([its for of, its in shown if of == task]) for task in tasks])


def see(
    model: WorldActionModel, env: SimulatorConfig, episodes: Sequence[Episode], pictures: Iterable[Tensor]
) -> list[Episode]:
    """Return the episodes as the model sees them: with a new picture, in codes, in every frame."""
    simulated = find_simulator(env).early_spec(id=env.id, tasks=model.spec.tasks)
    assert simulated is not None  # a simulator that draws images tells its spec
    image_obs = image_obs_of(model, simulated)
    assert image_obs is not None
    return [_seen(image_obs, episode, its) for episode, its in zip(episodes, pictures, strict=True)]


def see_disturbed(
    model: WorldActionModel,
    env: SimulatorConfig,
    episodes: Sequence[Episode],
    pictures: Sequence[Tensor],
    n_cameras: int,
) -> list[Episode]:
    """Return each episode `n_cameras` times, as other cameras see it (`ImageNoise`); [] without noise."""
    noise, generator = model.config.image_noise, torch.Generator().manual_seed(CAMERA)
    copies = [] if noise.is_off else list(zip(episodes, pictures, strict=True)) * n_cameras
    # One episode at a time: all disturbed images together would be as large as the whole film.
    disturbed = (noisy_images(its, noise, generator, one_camera=True) for _, its in copies)
    return see(model, env, [episode for episode, _ in copies], disturbed)


def _seen(image_obs: ImageObs, episode: Episode, pictures: Tensor) -> Episode:
    state = episode.state.to(image_obs.codec.device)
    return replace(episode, state=image_obs.begin(state, pictures.numpy()).cpu())


def _checked(env: SimulatorConfig, episode: Episode, config: ModelConfig, shard: Path) -> Tensor:
    pictures, last = _run_again(env, episode, config)
    if np.abs(last - episode.state[-1].numpy()).max() > REPEATS:
        raise UserError(
            f"{shard}: the episode of seed {episode.seed} ({episode.task}) does not run as it was recorded; "
            f"delete its folder, it is collected again"
        )
    return pictures


def _run_again(env: SimulatorConfig, episode: Episode, config: ModelConfig) -> tuple[Tensor, np.ndarray]:
    """Return the pictures, and the last frame as it was simulated."""
    views = tuple(config.views.values())
    return find_simulator(env).film(id=env.id, episode=episode, views=views, size=config.picture_size)


def _file(shard: Path) -> Path:
    return shard.parent / "pictures" / shard.name.replace("episodes-", "pictures-")


def _described(config: ModelConfig) -> str:
    views = [asdict(view) for view in config.views.values()]
    return json.dumps({"views": views, "size": config.picture_size})


def _keep(shard: Path, config: ModelConfig, drawn: list[Tensor]) -> None:
    tensors = {f"{i:06d}": pictures for i, pictures in enumerate(drawn)}
    write_atomically(_file(shard), save(tensors, metadata={"seen": _described(config)}))


def _kept(shard: Path, config: ModelConfig) -> list[Tensor] | None:
    """Return what was drawn before; None where it was not, or from elsewhere, or the file is damaged."""
    try:
        with safe_open(_file(shard), framework="pt") as file:
            if file.metadata()["seen"] != _described(config):
                return None
            return [file.get_tensor(name) for name in sorted(file.keys())]
    except (OSError, SafetensorError):
        return None
