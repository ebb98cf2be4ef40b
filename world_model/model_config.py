"""Size and shape of a world-action model, as its checkpoint keeps them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rewards.errors import UserError
from world_model.view import View

PATCH = 16
"""Pixels along each side of what one token of a picture stands for."""

LARGEST = 8192
"""What a size in a config may be at most: 20 times what the built-in models have."""


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
    bfloat16: bool = False  # encode and predict in it where the processor has it: half the time for a model that sees

    def check(self) -> None:
        """Raise `UserError` for sizes that no model has, before memory is taken for them, and that do not divide."""
        for name, size in asdict(self).items():
            if name not in ("views", "bfloat16") and (type(size) is not int or not 1 <= size <= LARGEST):
                raise UserError(f"model.{name}={size!r}: expected a whole number from 1 to {LARGEST}")
        for small, large in (
            ("frames_per_token", "chunk_size"),
            ("actions_per_token", "chunk_size"),
            ("n_heads", "width"),
        ):
            if getattr(self, large) % getattr(self, small):
                raise UserError(
                    f"model.{small}={getattr(self, small)} must divide model.{large}={getattr(self, large)}"
                )
        if self.picture_size % PATCH:
            raise UserError(f"model.picture_size={self.picture_size}: expected a multiple of {PATCH}")

    @staticmethod
    def from_dict(data: dict[str, Any]) -> ModelConfig:
        """Rebuild what `asdict` gave; a checkpoint of old says nothing of views."""
        views = {name: View(**{**v, "lookat": tuple(v["lookat"])}) for name, v in data.get("views", {}).items()}
        return ModelConfig(**{**data, "views": views})
