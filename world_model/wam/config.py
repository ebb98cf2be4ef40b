"""Architecture of a world-action model, as stored in its checkpoint."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from rewards.errors import UserError
from world_model.view import View

PATCH = 16
"""Side length, in pixels, of the image patch that one token encodes."""

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
    "image_size": 1024,
    "patch_dim": 1024,
}
"""Largest accepted value of each size: about 20 times the sizes of the built-in models."""

MOST_VIEWS = 16
"""Largest accepted number of cameras."""

MOST_MEMORY = 1024
"""Largest accepted `trust_memory`."""

MOST_WEIGHTS = 2_000_000_000
"""Largest accepted number of weights in all three stacks together: 8 GB, twice those of the size `xl`."""

SIZES: dict[str, dict[str, Any]] = {
    "xs": {"width": 160, "world_width": 384, "action_width": 128, "n_layers": 4, "n_heads": 5},
    "s": {"width": 320, "world_width": 768, "action_width": 256, "n_layers": 6, "n_heads": 10},
    "m": {"width": 512, "world_width": 1280, "action_width": 448, "n_layers": 9, "n_heads": 8},
    "l": {"width": 768, "world_width": 1920, "action_width": 640, "n_layers": 16, "n_heads": 12},
    "xl": {"width": 1152, "world_width": 2688, "action_width": 896, "n_layers": 19, "n_heads": 18},
}
"""Sizes by name, with about 4, 25, 105, 410 and 1,010 million weights in the layers; `xs` is the default."""


@dataclass(frozen=True)
class ImageNoise:
    """Random changes of training images, as another camera could cause; each is drawn uniformly up to its limit."""

    brightness: float = 0.15  # added to or subtracted from all pixels, in units of the full range
    contrast: float = 0.15  # relative change of the distance to mid-grey, in either direction
    pixel: float = 0.05  # standard deviation of white noise, in units of the full range
    shift: int = 2  # pixels, in any direction; edges are repeated

    @property
    def is_off(self) -> bool:
        """Whether images are not changed at all."""
        return not (self.brightness or self.contrast or self.pixel or self.shift)


NO_IMAGE_NOISE = ImageNoise(brightness=0.0, contrast=0.0, pixel=0.0, shift=0)
"""Value for older checkpoints, which were trained before image noise existed."""


@dataclass(frozen=True)
class TextConfig:
    """How sentences become vectors, for task_conditioning=text; see `world_model.wam.text`."""

    # a frozen encoder of yours, FILE.py:function or module:function; empty: an own small one, trained with the model
    encoder: str = ""
    dim: int = 0  # length of the vectors of the frozen encoder; 0: pretrain asks the encoder
    n_buckets: int = 2048  # of the own encoder: rows of the table into which pieces of words are hashed
    width: int = 64  # of its tokens
    n_layers: int = 2  # of the own encoder
    n_heads: int = 4  # of its attention; must divide width

    LARGEST = {"dim": 65_536, "n_buckets": 1_000_000, "width": 4096, "n_layers": 64, "n_heads": 64}
    """Largest accepted value of each size."""

    def check(self) -> None:
        """Raise `UserError` if a size is out of range, or n_heads does not divide width."""
        for name, largest in self.LARGEST.items():
            size, least = getattr(self, name), {"dim": 0, "n_buckets": 2}.get(name, 1)  # bucket 0 is for padding
            if type(size) is not int or not least <= size <= largest:
                raise UserError(f"model.text.{name}={size!r}: expected a whole number from {least} to {largest}")
        if self.width % self.n_heads:
            raise UserError(f"model.text.n_heads={self.n_heads} must divide model.text.width={self.width}")
        if not isinstance(self.encoder, str):
            raise UserError(f"model.text.encoder={self.encoder!r:.80}: expected FILE.py:function or nothing")


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a world-action model.

    `width` is the width of the encoder and of the shared attention space; `world_width` and `action_width` are the
    widths of the two decoders. The model predicts `chunk_size` actions and `chunk_size` future frames at once.
    """

    MOVED = ("picture_size", "image_size"), ("picture_dim", "patch_dim")  # keys of older versions -> their keys now

    n_context_frames: int = 2  # newest frames that the model reads
    chunk_size: int = 8  # actions, and future frames, that are predicted at once
    frames_per_token: int = 8  # future frames in one token; must divide chunk_size
    actions_per_token: int = 8  # actions in one token; must divide chunk_size
    width: int = 160  # of the context encoder, and of the attention that all parts share
    world_width: int = 384  # of the world decoder, which predicts frames
    action_width: int = 128  # of the action decoder, which is the policy
    n_layers: int = 4  # of each of the three parts
    n_heads: int = 5  # of the attention; must divide width
    views: dict[str, View] = field(default_factory=dict)  # cameras by name; the model reads and predicts their images
    image_size: int = 64  # pixels along each side of an image
    patch_dim: int = 32  # size of the code of each patch of 16 x 16 pixels
    # Largest standard deviation of the white noise on observed frames, in every training stage, in imitation and in
    # PPO, in units of the state (0.004: 4 mm for positions in metres); 0: no noise
    context_noise: float = 0.004
    image_noise: ImageNoise = field(default_factory=ImageNoise)  # of the images of the cameras
    # how the model gets its task: by the embedding of its index, or by a sentence (docs/instructions.md)
    task_conditioning: Literal["index", "text"] = "index"
    task_dropout: float = 0.1  # share of training samples without index or sentence, so that the model knows this case
    text: TextConfig = field(default_factory=TextConfig)
    # numbers that each trust head carries from chunk to chunk of a dream; 0: heads of older checkpoints, which see a
    # chunk alone, and less of it
    trust_memory: int = 16
    bfloat16: bool = False  # encode and predict in bfloat16 if the processor has it: half the time for image models

    def of_size(self, size: str) -> ModelConfig:
        """Return this config with the widths, layers and heads of one of `SIZES`; "": itself.

        Raises:
            UserError: there is no such size.
        """
        if size and size not in SIZES:
            raise UserError(f"size={size!r}: expected one of {', '.join(SIZES)}")
        return replace(self, **SIZES[size]) if size else self

    def check(self) -> None:
        """Check all values before memory is allocated for a model.

        Raises:
            UserError: a size or noise is out of range, or a size is not a multiple of the size that must divide it.
        """
        for name, largest in LARGEST.items():
            size = getattr(self, name)
            if type(size) is not int or not 1 <= size <= largest:
                raise UserError(f"model.{name}={size!r}: expected a whole number from 1 to {largest}")
        if type(self.trust_memory) is not int or not 0 <= self.trust_memory <= MOST_MEMORY:
            raise UserError(
                f"model.trust_memory={self.trust_memory!r:.80}: expected a whole number from 0 to {MOST_MEMORY}"
            )
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
        self._check_task()
        if self.image_size % PATCH:
            raise UserError(f"model.image_size={self.image_size}: expected a multiple of {PATCH}")

    def _check_task(self) -> None:
        """Raise `UserError` if the conditioning on the task is unknown, or its dropout is not a share below 1."""
        if self.task_conditioning not in ("index", "text"):
            raise UserError(f"model.task_conditioning={self.task_conditioning!r:.80}: expected index or text")
        if type(self.task_dropout) not in (int, float) or not 0 <= self.task_dropout < 1:
            raise UserError(f"model.task_dropout={self.task_dropout!r:.80}: expected a share from 0 to below 1")
        self.text.check()

    def _check_noise(self) -> None:
        """Raise `UserError` if a noise is negative, too large or of the wrong type."""
        if type(self.context_noise) not in (int, float) or not 0 <= self.context_noise < math.inf:
            raise UserError(f"model.context_noise={self.context_noise}: expected a finite number, at least 0")
        for name, value in asdict(self.image_noise).items():
            most, kinds = (self.image_size, (int,)) if name == "shift" else (1, (int, float))
            if type(value) not in kinds or not 0 <= value <= most:
                expected = "whole number of pixels" if name == "shift" else "share of the full range"
                raise UserError(f"model.image_noise.{name}={value}: expected a {expected}, from 0 to {most}")

    def _n_layer_weights(self) -> int:
        """Count the weights of attention and MLP of all layers, which are nearly all weights of a large model."""
        stacks = (self.width, 4), (self.world_width, 1), (self.action_width, 4)  # width and mlp_ratio of each
        # Per layer: queries, keys, values and output (4 matrices), and the two matrices of the MLP.
        return self.n_layers * sum(4 * width * self.width + 2 * ratio * width**2 for width, ratio in stacks)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> ModelConfig:
        """Rebuild a config from the result of `asdict`.

        Older checkpoints have no values for views, noise and memory, because they were trained without them, and older
        names.
        """
        data = {dict(ModelConfig.MOVED).get(name, name): value for name, value in data.items()}
        views = {name: View(**{**v, "lookat": tuple(v["lookat"])}) for name, v in data.get("views", {}).items()}
        noise = ImageNoise(**data["image_noise"]) if "image_noise" in data else NO_IMAGE_NOISE
        text = TextConfig(**data.get("text", {}))
        without = {"context_noise": 0.0, "trust_memory": 0}
        return ModelConfig(**{**without, **data, "views": views, "image_noise": noise, "text": text})
