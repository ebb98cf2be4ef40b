"""Size and shape of a world-action model, as its checkpoint keeps them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from rewards.errors import UserError
from world_model.view import View

PATCH = 16
"""Pixels along each side of what one token of a picture stands for."""

LARGEST = {
    "n_context_frames": 256,
    "chunk_size": 1024,
    "frames_per_token": 1024,
    "actions_per_token": 1024,
    "width": 8192,
    "world_width": 8192,
    "action_width": 8192,
    "n_layers": 128,
    "n_heads": 256,
    "picture_size": 1024,
    "picture_dim": 1024,
}
"""What each size in a config may be at most: about 20 times what the built-in models have."""

MOST_VIEWS = 16
MOST_WEIGHTS = 500_000_000
"""Weights of the layers of all three stacks together: 2 GB, 200 times those of the built-in models."""


@dataclass(frozen=True)
class ImageNoise:
    """How far a camera may differ from that of the recorded images; each part is drawn uniformly up to its limit."""

    brightness: float = 0.15  # added to all pixels, in either direction, in units of the full range
    contrast: float = 0.15  # relative change of the distance to mid-grey, in either direction
    pixel: float = 0.05  # standard deviation of white noise, in units of the full range
    shift: int = 2  # pixels, in any direction; edges are repeated

    @property
    def is_off(self) -> bool:
        """Whether images stay as they are."""
        return not (self.brightness or self.contrast or self.pixel or self.shift)


NO_IMAGE_NOISE = ImageNoise(brightness=0.0, contrast=0.0, pixel=0.0, shift=0)
"""That of checkpoints that were made before there was image noise."""


@dataclass(frozen=True)
class ModelConfig:
    """Size and shape of a world-action model.

    `width` is that of the encoder and of the shared attention space, `world_width` and `action_width` are those of the
    two decoders; `chunk_size` actions are predicted at once and `chunk_size` future frames with them.
    """

    n_context_frames: int = 2
    chunk_size: int = 8
    frames_per_token: int = 8
    actions_per_token: int = 8
    width: int = 160
    world_width: int = 384
    action_width: int = 128
    n_layers: int = 4
    n_heads: int = 5
    views: dict[str, View] = field(default_factory=dict)  # cameras whose pictures it sees and predicts, by name
    picture_size: int = 64  # pixels along each side
    picture_dim: int = 32  # numbers in the code of each patch of 16 x 16
    # In every stage, in imitation and in PPO: largest deviation of the white noise on observed frames, in units of the
    # state (0.004: 4 mm where positions are in metres); 0: none
    context_noise: float = 0.004
    image_noise: ImageNoise = field(default_factory=ImageNoise)  # on images, where there are cameras
    bfloat16: bool = False  # encode and predict in it where the processor has it: half the time for a model that sees

    def check(self) -> None:
        """Raise `UserError` for sizes that no model has, before memory is taken for them, and that do not divide."""
        for name, largest in LARGEST.items():
            size = getattr(self, name)
            if type(size) is not int or not 1 <= size <= largest:
                raise UserError(f"model.{name}={size!r}: expected a whole number from 1 to {largest}")
        if type(self.bfloat16) is not bool or len(self.views) > MOST_VIEWS:
            raise UserError(f"model: expected bfloat16 true or false, and at most {MOST_VIEWS} views")
        if (n := self._n_layer_weights()) > MOST_WEIGHTS:
            raise UserError(f"model: its layers have {n:,} weights, at most {MOST_WEIGHTS:,}; lower widths or n_layers")
        for small, large in (
            ("frames_per_token", "chunk_size"),
            ("actions_per_token", "chunk_size"),
            ("n_heads", "width"),
        ):
            if getattr(self, large) % getattr(self, small):
                raise UserError(
                    f"model.{small}={getattr(self, small)} must divide model.{large}={getattr(self, large)}"
                )
        self._check_noise()
        if self.picture_size % PATCH:
            raise UserError(f"model.picture_size={self.picture_size}: expected a multiple of {PATCH}")

    def _check_noise(self) -> None:
        if type(self.context_noise) not in (int, float) or not 0 <= self.context_noise < math.inf:
            raise UserError(f"model.context_noise={self.context_noise}: expected a finite number, at least 0")
        for name, value in asdict(self.image_noise).items():
            most, kinds = (self.picture_size, (int,)) if name == "shift" else (1, (int, float))
            if type(value) not in kinds or not 0 <= value <= most:
                expected = "whole number of pixels" if name == "shift" else "share of the full range"
                raise UserError(f"model.image_noise.{name}={value}: expected a {expected}, from 0 to {most}")

    def _n_layer_weights(self) -> int:
        """Weights of queries, keys, values, output and MLP of every layer: nearly all that a large model has."""
        stacks = (self.width, 4), (self.world_width, 1), (self.action_width, 4)  # width and mlp_ratio of each
        return self.n_layers * sum(4 * width * self.width + 2 * ratio * width**2 for width, ratio in stacks)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> ModelConfig:
        """Rebuild what `asdict` gave; older checkpoints name neither views nor noise, and were trained without."""
        views = {name: View(**{**v, "lookat": tuple(v["lookat"])}) for name, v in data.get("views", {}).items()}
        noise = ImageNoise(**data["image_noise"]) if "image_noise" in data else NO_IMAGE_NOISE
        return ModelConfig(**{"context_noise": 0.0, **data, "views": views, "image_noise": noise})
