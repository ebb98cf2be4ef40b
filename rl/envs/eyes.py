"""What a model sees of a simulator: its own proprioception, and pictures as codes in place of where things are."""

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
"""Parts of a simulator's state that a robot knows of itself; the rest it has to see."""


class ImageCodec(Protocol):
    """Turns images into codes."""

    n_views: int
    size: int

    @property
    def code_dim(self) -> int:
        """Numbers in the code of the images of all cameras at one moment."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""

    def encode(self, pictures: Tensor) -> Tensor:
        """Images (n, n_views, size, size, 3) uint8 -> codes (n, code_dim)."""


class ImageModel(Protocol):
    """What a simulator needs of a model to show it images."""

    @property
    def spec(self) -> Spec:
        """What the model observes."""

    @property
    def chunk_size(self) -> int:
        """Steps from one image to the next."""

    @property
    def cameras(self) -> Mapping[str, View]:
        """The cameras that it sees through, by name; empty for a model without images."""

    @property
    def image_codec(self) -> ImageCodec | None:
        """Codec of its images; None for a model without images."""


class Eyes:
    """Turn frames and pictures of a simulator into the frames that a model sees.

    A picture is taken where a chunk of actions ends, and stays until the next one.

    Args:
        codec: of the pictures.
        simulated: what the simulator's frames hold.
        parts: what the model is told of them.

    Raises:
        UserError: the simulator has no such part.
    """

    def __init__(self, codec: ImageCodec, simulated: Spec, parts: Sequence[str] = PROPRIOCEPTION) -> None:
        for part in parts:
            if part not in simulated.slices:
                raise UserError(f"the checkpoint is told {part!r}, which the simulator has not; choose another task")
        self.codec = codec
        columns = torch.arange(simulated.state_dim)
        self.columns = torch.cat([columns[simulated.slices[part]] for part in parts])
        self.spec = seeing_spec(simulated, parts, codec)

    def begin(self, frames: Tensor, pictures: np.ndarray) -> Tensor:
        """See first frames (n, .) and the pictures beside them. Shape: (n, state_dim)."""
        return torch.cat([frames[:, self.columns], self.encode(pictures)], dim=1)

    def go_on(self, frames: Tensor, pictures: np.ndarray, before: Tensor, last: Tensor) -> Tensor:
        """See the frames (n, k, .) that followed frames `before` (n, state_dim); the pictures are of frame `last` (n,).

        Shape: (n, k, state_dim).
        """
        told = len(self.columns)
        new = torch.arange(frames.shape[1], device=frames.device) >= last[:, None]
        codes = torch.where(new[..., None], self.encode(pictures)[:, None], before[:, None, told:])
        return torch.cat([frames[..., self.columns], codes], dim=2)

    @torch.no_grad()
    def encode(self, pictures: np.ndarray) -> Tensor:
        """Codes (n, .) of pictures (n, n_views, size, size, 3) uint8."""
        return self.codec.encode(torch.from_numpy(pictures).to(self.codec.device))


def seeing_spec(simulated: Spec, parts: Sequence[str], codec: ImageCodec) -> Spec:
    """Return the spec of frames that hold `parts` of a simulator's state, then codes of pictures as `image`."""
    slices, dim = {}, 0
    for part in parts:
        size = simulated.slices[part].stop - simulated.slices[part].start
        slices[part] = (dim, dim + size)
        dim += size
    slices["image"] = (dim, dim + codec.code_dim)
    state = Feature((dim + codec.code_dim,), f"{simulated.features['state'].unit}; image: codes", slices)
    image = Feature((codec.n_views, codec.size, codec.size, 3), "uint8")
    return replace(simulated, features={"state": state, "image": image})


def eyes_of(model: ImageModel | None, simulated: Spec) -> Eyes | None:
    """Return the eyes of a model, None for one that does not see."""
    if model is None or model.image_codec is None:
        return None
    return Eyes(model.image_codec, simulated, [part for part in model.spec.slices if part != "image"])


def seen_spec(model: ImageModel, simulated: Spec) -> Spec:
    """Return the spec of what a model is told and shown of a simulator: all of it, for one that does not see."""
    eyes = eyes_of(model, simulated)
    return eyes.spec if eyes else simulated
