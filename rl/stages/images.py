"""Images for the stages: run episodes again before cameras, and encode the images with the model's codec."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
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
from rl.envs.cameras import CameraUse
from rl.envs.features import given_spec, state_columns, vector_columns
from rl.envs.names import shown_name
from rl.runs.progress import Progress
from rl.seeds import CAMERA
from rl.stages.videos import Video
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.shards import read_shard
from world_model.files import write_atomically
from world_model.spec import IMAGES, STATE, Feature, Spec
from world_model.wam.config import ModelConfig
from world_model.wam.features import read_spec
from world_model.wam.images import ImageData
from world_model.wam.model import WorldActionModel
from world_model.wam.noise import noisy_images

PROPRIOCEPTION = ("hand_pos", "gripper")
"""Slices of a simulator's state that a real robot measures by itself; the other slices must come from images."""

WithImages = tuple[list[Episode], list[Tensor]]
"""Episodes, and the images of each: (rows, n_views, size, size, 3) uint8.

Rendered images have a row for each frame (T + 1), recorded ones as many as the episode has; see `Episode.rows_of`.
"""

REPEATS = 1e-4
"""Largest difference between the last recorded frame of an episode and the one when it is run again."""


def model_spec(simulated: Spec, config: ModelConfig) -> Spec:
    """Return the spec of the model: the simulated state, or with images only its proprioception and image codes.

    Raises:
        UserError: the model has images, and the simulated state has no proprioception.
    """
    if not config.views:
        return simulated
    proprioception = [part for part in PROPRIOCEPTION if part in simulated.slices]
    if not proprioception:
        raise UserError(
            f"model.views: the state of {simulated.tasks[0]} has none of {', '.join(PROPRIOCEPTION)}, which a robot "
            f"knows of itself; see SLICES in rl/envs/gym_env.py, or set model.views={{}}"
        )
    known = simulated.features[STATE].slices
    parts = {name: known[name] for name in proprioception}
    reads = read_spec(replace(simulated, features={STATE: Feature((0,), slices=parts)}), config)
    return given_spec(simulated, reads.features)


def with_images(
    env: SimulatorConfig,
    store: EpisodeStore,
    config: ModelConfig,
    tasks: Collection[str],
    sources: Collection[str] | None,
) -> WithImages:
    """Return the episodes of a store, and the images of each.

    The images are rendered once and written beside the episodes, one file per shard. The returned tensors are memory
    maps of these files: they are read when they are used.

    Args:
        env: names the simulator.
        store: of the episodes.
        config: gives the cameras and the size of the images.
        tasks: of the episodes to return.
        sources: of the episodes to return; None: all.

    Raises:
        UserError: an episode does not run again as it was recorded.
    """
    episodes: list[Episode] = []
    images: list[Tensor] = []
    columns = recorded_columns(env, store.spec) if store.shards else {}
    with Progress("render") as progress:
        for i, shard in enumerate(store.shards):
            of_shard = read_shard(shard)
            rendered = _read_images(shard, config)
            if rendered is None:
                rendered = [_checked(env, episode, config, columns, shard) for episode in of_shard]
                _write_images(shard, config, rendered)
                # Read them back as memory maps, which frees the tensors.
                rendered = _read_images(shard, config) or rendered
            for episode, its in zip(of_shard, rendered, strict=True):
                if episode.task in tasks and (sources is None or episode.source in sources):
                    episodes.append(episode)
                    images.append(its)
            progress.update(i + 1, len(store.shards))
    return episodes, images


def recorded_images(model: WorldActionModel, episodes: Sequence[Episode], where: str) -> WithImages:
    """Return recorded episodes with the state alone, and the images of each that the model reads.

    Raises:
        UserError: the cameras of an episode are not equally fast; `where` begins the message.
    """
    cameras, rest, images = model.spec.images, [], []
    for episode in episodes:
        if len({episode.every.get(name, 1) for name in cameras}) > 1:
            raise UserError(
                f"{where}: its cameras have new images after different numbers of steps ({episode.every}), expected "
                "the same number; record them at one rate"
            )
        rest.append(replace(episode, obs={STATE: episode.state}))
        images.append(torch.stack([episode.obs[name] for name in cameras], dim=1))
    return rest, images


def of_each_frame(model: WorldActionModel, episode: Episode, images: Tensor) -> Tensor:
    """Return the images of an episode with one row for each frame. Shape: (T + 1, n_views, size, size, 3)."""
    return images if len(images) == episode.length + 1 else images[episode.rows_of(model.spec.images[0])]


def run_again(env: SimulatorConfig, episode: Episode, config: ModelConfig) -> Tensor:
    """Run an episode again and return its images. Shape: (T + 1, n_views, size, size, 3) uint8."""
    return _run_again(env, episode, config)[0]


def recorded_columns(env: SimulatorConfig, recorded: Spec) -> dict[str, Tensor | None]:
    """Return for each recorded vector its columns of the state of the simulator; None: all.

    Raises:
        UserError: the state of the simulator has no such part, or it does not know a task.
    """
    simulated = find_simulator(env).early_spec(id=env.id, tasks=recorded.tasks)
    if simulated is None:
        return {STATE: None}
    same = recorded.state_dim == simulated.state_dim
    lacking = [] if same else [name for name in recorded.slices if name not in simulated.slices]
    columns = {} if lacking else vector_columns(simulated, recorded)
    sizes = {name: simulated.state_dim if of is None else len(of) for name, of in columns.items()}
    for name in recorded.vectors:
        if sizes.get(name) != (size := recorded.features[name].shape[0]):
            raise UserError(
                f"{shown_name(env)}: the episodes have {name} of {size} numbers, which this simulator does not have as "
                "such; name the simulator in which they were recorded"
            )
    return columns


def ends_as_recorded(last: np.ndarray, episode: Episode, columns: Mapping[str, Tensor | None]) -> bool:
    """Whether an episode that was run again ended in the state `last` (state_dim,) as recorded; see `REPEATS`."""
    for name, of in columns.items():
        found, expected = last if of is None else last[of.numpy()], episode.obs[name][-1].numpy()
        if found.shape != expected.shape or np.abs(found - expected).max(initial=0.0) > REPEATS:
            return False
    return True


def by_task(episodes: Sequence[Episode], images: Sequence[Tensor], videos: Sequence[Video] = ()) -> ImageData:
    """Group the images of all episodes and videos by task, as training data of the codec."""
    shown = [(e.task, its) for e, its in zip(episodes, images, strict=True)] + list(videos)
    tasks = dict.fromkeys(task for task, _ in shown)
    return ImageData([torch.cat([its for of, its in shown if of == task]) for task in tasks])


def encoded_episodes(
    model: WorldActionModel, env: SimulatorConfig, episodes: Sequence[Episode], images: Iterable[Tensor]
) -> list[Episode]:
    """Return the episodes with what the model reads: proprioception, and the latents of their images."""
    simulated = find_simulator(env).early_spec(id=env.id, tasks=model.spec.tasks)
    columns = None if simulated is None else state_columns(simulated, given_spec(simulated, model.spec.features))
    return [_encoded(model, columns, episode, its) for episode, its in zip(episodes, images, strict=True)]


def encode_disturbed(
    model: WorldActionModel,
    env: SimulatorConfig,
    episodes: Sequence[Episode],
    images: Sequence[Tensor],
    n_cameras: int,
) -> list[Episode]:
    """Return each episode `n_cameras` times, with images of disturbed cameras (`ImageNoise`); [] without noise."""
    noise, generator = model.config.image_noise, torch.Generator().manual_seed(CAMERA)
    copies = [] if noise.is_off else list(zip(episodes, images, strict=True)) * n_cameras
    # A generator, so that the disturbed images of only one episode are in memory at a time.
    disturbed = (noisy_images(its, noise, generator, one_camera=True) for _, its in copies)
    return encoded_episodes(model, env, [episode for episode, _ in copies], disturbed)


def _encoded(model: WorldActionModel, columns: Tensor | None, episode: Episode, stacked: Tensor) -> Episode:
    state = episode.state
    # Episodes recorded with images have the state that the model reads already.
    if columns is not None and state.shape[1] != model.spec.state_dim:
        state = state[:, columns]
    images = {name: stacked[:, i] for i, name in enumerate(model.spec.images)}
    (encoded,) = model.encode_episodes([replace(episode, obs={STATE: state, **images})])
    return encoded


def _checked(
    env: SimulatorConfig, episode: Episode, config: ModelConfig, columns: Mapping[str, Tensor | None], shard: Path
) -> Tensor:
    """Run an episode again; raise UserError if it ends in another state than the recorded one."""
    images, last = _run_again(env, episode, config)
    if not ends_as_recorded(last, episode, columns):
        raise UserError(
            f"{shard}: the episode of seed {episode.seed} ({episode.task}) does not run as it was recorded; "
            f"delete its folder, it is collected again"
        )
    return images


def _run_again(env: SimulatorConfig, episode: Episode, config: ModelConfig) -> tuple[Tensor, np.ndarray]:
    """Run an episode again; return its images (T + 1, n_views, size, size, 3) and the last simulated state."""
    size = config.image_size
    cameras = {IMAGES + name: CameraUse(view, size, size) for name, view in config.views.items()}
    images, last = find_simulator(env).replay(id=env.id, episode=episode, cameras=cameras)
    return torch.stack([images[name] for name in cameras], dim=1), last


def _file(shard: Path) -> Path:
    return shard.parent / "images" / shard.name.replace("episodes-", "images-")


def _described(config: ModelConfig) -> str:
    """Return the cameras and the size of the images as JSON, to recognise images of other cameras."""
    views = [asdict(view) for view in config.views.values()]
    return json.dumps({"views": views, "size": config.image_size})


def _write_images(shard: Path, config: ModelConfig, rendered: list[Tensor]) -> None:
    tensors = {f"{i:06d}": images for i, images in enumerate(rendered)}
    write_atomically(_file(shard), save(tensors, metadata={"seen": _described(config)}))


def _read_images(shard: Path, config: ModelConfig) -> list[Tensor] | None:
    """Return the images rendered before; None if there are none, their cameras differ or the file is damaged."""
    try:
        with safe_open(_file(shard), framework="pt") as file:
            if file.metadata()["seen"] != _described(config):
                return None
            return [file.get_tensor(name) for name in sorted(file.keys())]
    except (OSError, SafetensorError):
        return None
