"""Features of the model: it reads the state and images, and predicts the state and latents, the codes of the images.

Inside the network a frame is one vector: the state, then the latents. These functions convert between the two.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from world_model.data.episodes import Episode
from world_model.spec import IMAGES, LATENTS, STATE, Feature, Spec
from world_model.wam.config import ModelConfig
from world_model.wam.images import ImageCodec

AT_ONCE = 256
"""Number of moments whose images are encoded at once, to save memory."""


def read_spec(spec: Spec, config: ModelConfig) -> Spec:
    """Return `spec` with the images that a model of `config` reads, and without latents.

    There is a new image after each chunk, because the model needs none before it decides again.
    """
    shape = config.image_size, config.image_size, 3
    image = Feature(shape, dtype="uint8", every=config.chunk_size)
    others = {
        name: feature for name, feature in spec.features.items() if name != LATENTS and not name.startswith(IMAGES)
    }
    return replace(spec, features=others | {IMAGES + camera: image for camera in config.views})


def predicted_spec(spec: Spec, codec: ImageCodec | None) -> Spec:
    """Return `spec` with latents in place of images; without a codec, `spec` itself."""
    if codec is None:
        return spec
    others = {name: feature for name, feature in spec.features.items() if name not in spec.images}
    every = spec.features[spec.images[0]].every
    return replace(spec, features=others | {LATENTS: Feature((codec.code_dim,), "codes", every=every)})


@torch.no_grad()
def encode_images(codec: ImageCodec, cameras: Sequence[str], frames: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return frames with latents (n, n_frames, code_dim) in place of the images (n, n_frames, size, size, 3).

    An image that is equal to the one before it is not encoded again: a slow camera repeats its last image.
    """
    others = {name: values for name, values in frames.items() if name not in cameras}
    if LATENTS in frames:
        return others
    images = torch.stack([frames[camera] for camera in cameras], dim=2).to(codec.device)
    n, n_frames = images.shape[:2]
    is_new = torch.ones(n, n_frames, dtype=torch.bool, device=images.device)
    is_new[:, 1:] = (images[:, 1:] != images[:, :-1]).flatten(2).any(2)
    codes = [codec.encode(part) for part in images[is_new].split(AT_ONCE)]
    # Frame i has the code of the last new image up to it.
    number = is_new.flatten().cumsum(0) - 1
    return others | {LATENTS: torch.cat(codes)[number].view(n, n_frames, codec.code_dim)}


@torch.no_grad()
def decode_images(
    codec: ImageCodec, cameras: Sequence[str], latents: Tensor, names: Collection[str]
) -> dict[str, Tensor]:
    """Return those images (n, n_frames, size, size, 3) uint8 of `cameras` that are among `names`."""
    if not set(cameras) & set(names):
        return {}
    images = codec.decode(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
    return {camera: images[:, :, i] for i, camera in enumerate(cameras) if camera in names}


def encode_episode(codec: ImageCodec, cameras: Sequence[str], episode: Episode) -> Episode:
    """Return an episode with latents in place of images."""
    if not cameras or LATENTS in episode.obs:
        return episode
    images = {camera: episode.obs[camera].unsqueeze(0) for camera in cameras}
    latents = encode_images(codec, cameras, images)[LATENTS][0].cpu()
    obs = {name: values for name, values in episode.obs.items() if name not in cameras} | {LATENTS: latents}
    every = {name: n for name, n in episode.every.items() if name not in cameras}
    if (period := episode.every.get(cameras[0], 1)) > 1:
        every[LATENTS] = period
    return replace(episode, obs=obs, every=every)


def frame_vectors(episode: Episode) -> Tensor:
    """Return the frames of an episode without images as one vector each. Shape: (T + 1, frame_dim)."""
    return joined({name: values[episode.rows_of(name)] for name, values in episode.obs.items()})


def joined(frames: dict[str, Tensor]) -> Tensor:
    """Return frames as one vector each: the state, then the latents if there are any. Shape: (..., frame_dim)."""
    return torch.cat([frames[STATE], frames[LATENTS]], dim=-1) if LATENTS in frames else frames[STATE]


def split(frames: Tensor, state_dim: int) -> dict[str, Tensor]:
    """Undo `joined`: (..., frame_dim) -> state (..., state_dim), and latents if anything follows it."""
    if frames.shape[-1] == state_dim:
        return {STATE: frames}
    return {STATE: frames[..., :state_dim], LATENTS: frames[..., state_dim:]}
