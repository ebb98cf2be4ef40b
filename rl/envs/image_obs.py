"""Image observations of a simulator, for a model that reads images instead of object positions.

Such a model observes the robot's own state (proprioception) followed by one code vector for the camera images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rewards.errors import UserError
from world_model.spec import Feature, Spec
from world_model.view import View

PROPRIOCEPTION = ("hand_pos", "gripper")
"""Slices of a simulator's state that a real robot measures by itself; the other slices must come from images."""


class ImageCodec(Protocol):
    """Turns images into codes."""

    n_views: int
    size: int

    @property
    def code_dim(self) -> int:
        """Length of the code vector for the images of all cameras at one moment."""

    @property
    def device(self) -> torch.device:
        """Device of its weights."""

    def encode(self, pictures: Tensor) -> Tensor:
        """Encode images (n, n_views, size, size, 3) uint8 as codes (n, code_dim)."""


class ImageModel(Protocol):
    """What a simulator needs from a model to make its image observations."""

    @property
    def spec(self) -> Spec:
        """Spec of the model's observations."""

    @property
    def chunk_size(self) -> int:
        """Steps from one image to the next."""

    @property
    def cameras(self) -> Mapping[str, View]:
        """Cameras of the model, by name; empty for a model without images."""

    @property
    def image_codec(self) -> ImageCodec | None:
        """Codec of its images; None for a model without images."""


class ImageObs:
    """Turn simulator frames and camera images into the frames that a model observes.

    There is one new image per chunk, taken after its last executed step. The steps before it repeat the previous code.

    Args:
        codec: encodes the images.
        simulated: spec of the simulator's own frames.
        parts: slices of the simulator's state that the model observes as numbers.

    Raises:
        UserError: the simulator's state has no such slice.
    """

    def __init__(self, codec: ImageCodec, simulated: Spec, parts: Sequence[str] = PROPRIOCEPTION) -> None:
        for part in parts:
            if part not in simulated.slices:
                raise UserError(f"the checkpoint is told {part!r}, which the simulator has not; choose another task")
        self.codec = codec
        columns = torch.arange(simulated.state_dim)
        self.columns = torch.cat([columns[simulated.slices[part]] for part in parts])
        self.spec = seeing_spec(simulated, parts, codec)

    def begin(self, frames: Tensor, images: np.ndarray) -> Tensor:
        """Return the observed frames for first frames (n, .) and their images. Shape: (n, state_dim)."""
        return torch.cat([frames[:, self.columns], self.encode(images)], dim=1)

    def advance(self, frames: Tensor, images: np.ndarray, before: Tensor, last: Tensor) -> Tensor:
        """Return the observed frames of a chunk. Shape: (n, k, state_dim).

        Args:
            frames: of the simulator, (n, k, .).
            images: taken after step `last`.
            before: the observed frame before the chunk, (n, state_dim).
            last: index of the last executed step in each row, (n,).
        """
        n_numbers = len(self.columns)
        # The new code belongs to the last executed step and to the padding after it; earlier steps keep the old code.
        new = torch.arange(frames.shape[1], device=frames.device) >= last[:, None]
        codes = torch.where(new[..., None], self.encode(images)[:, None], before[:, None, n_numbers:])
        return torch.cat([frames[..., self.columns], codes], dim=2)

    @torch.no_grad()
    def encode(self, images: np.ndarray) -> Tensor:
        """Encode images (n, n_views, size, size, 3) uint8. Shape: (n, code_dim)."""
        return self.codec.encode(torch.from_numpy(images).to(self.codec.device))


def seeing_spec(simulated: Spec, parts: Sequence[str], codec: ImageCodec) -> Spec:
    """Return the spec of frames that hold `parts` of a simulator's state, then the image codes as slice `image`."""
    slices, dim = {}, 0
    for part in parts:
        size = simulated.slices[part].stop - simulated.slices[part].start
        slices[part] = (dim, dim + size)
        dim += size
    slices["image"] = (dim, dim + codec.code_dim)
    state = Feature((dim + codec.code_dim,), f"{simulated.features['state'].unit}; image: codes", slices)
    image = Feature((codec.n_views, codec.size, codec.size, 3), "uint8")
    return replace(simulated, features={"state": state, "image": image})


def image_obs_of(model: ImageModel | None, simulated: Spec) -> ImageObs | None:
    """Return the image observations that a model needs; None for a model without images."""
    if model is None or model.image_codec is None:
        return None
    return ImageObs(model.image_codec, simulated, [part for part in model.spec.slices if part != "image"])


def seen_spec(model: ImageModel, simulated: Spec) -> Spec:
    """Return the spec of a model's observations in a simulator; for a model without images it is the simulator's."""
    image_obs = image_obs_of(model, simulated)
    return image_obs.spec if image_obs else simulated
