"""Protocols of a world model and of a network that learns by imitation, and the data that they exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from world_model.data.episodes import Episode
from world_model.data.windows import Windows
from world_model.spec import Spec


@dataclass
class Context:
    """Encoded observations (`n` rows), computed once and read by all decoders and by the critic."""

    frames: Tensor  # (n, n_context_frames, state_dim)
    cache: list[tuple[Tensor, Tensor]]  # keys and values (n, ...) of each layer; empty for a policy without attention
    features: Tensor  # (n, n_features), detached, for the critic

    def to(self, device: torch.device) -> Context:
        """Move to a device."""
        cache = [(k.to(device), v.to(device)) for k, v in self.cache]
        return Context(self.frames.to(device), cache, self.features.to(device))

    def __getitem__(self, index: Tensor | slice) -> Context:
        """Select rows."""
        return Context(self.frames[index], [(k[index], v[index]) for k, v in self.cache], self.features[index])

    @staticmethod
    def join(contexts: Sequence[Context]) -> Context:
        """Concatenate the rows of several contexts from the same encoder."""
        layers = zip(*(c.cache for c in contexts), strict=True)
        cache = [(torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in layers]
        return Context(torch.cat([c.frames for c in contexts]), cache, torch.cat([c.features for c in contexts]))


@dataclass
class Prediction:
    """Predicted result of a chunk of actions, for `n` rows."""

    frames: Tensor  # (n, chunk_size, state_dim), one frame after each action
    expected_error: Tensor | None = None  # (n,), of the whole chunk; None if the model cannot estimate it


class WorldModel(Protocol):
    """What a dream needs of a world model; `world_model.wam` holds the built-in one."""

    @property
    def spec(self) -> Spec:
        """Features, action bounds, tasks and control rate."""

    @property
    def n_context_frames(self) -> int:
        """Number of past frames that a prediction starts from."""

    @property
    def chunk_size(self) -> int:
        """Number of actions in a chunk."""

    @property
    def device(self) -> torch.device:
        """Device of all its tensors."""

    @property
    def image_codec(self) -> Any:
        """Codec that decodes the slice `image` of the state to images; None for a model without images."""

    def predict(
        self, context: Tensor, task: Tensor, actions: Tensor, seed: Tensor, counter: Tensor, n_denoising_steps: int
    ) -> Prediction:
        """Predict the frames of one chunk.

        Args:
            context: past frames (n, n_context_frames, state_dim), the newest last.
            task: (n,) int64, index into `spec.tasks`.
            actions: (n, chunk_size, action_dim), in environment units.
            seed, counter: (n,) int64. The noise of a row depends only on its seed and counter.
            n_denoising_steps: integration steps; a model without denoising ignores it.
        """

    def read_frames(self, frames: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate success probability (n,) and progress in [0, 1] (n,) from frames (n, state_dim) of tasks (n,)."""

    def refit(
        self,
        episodes: list[Episode],
        n_steps: int,
        learning_rate: float,
        seed: int,
        tick: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Train the prediction of frames on recorded episodes; policy, encoder and read-outs stay bit-equal.

        `tick` is called with the finished share of the training, from 0 to 1.
        """

    def calibrate_trust(self, episodes: list[Episode]) -> None:
        """Fit the estimate of the prediction error to recorded episodes that no refit has used."""

    def expected_errors(self, episodes: list[Episode]) -> Tensor:
        """Return the expected error of chunks of recorded episodes, in the unit of `Prediction.expected_error`.

        Shape: any.
        """


class Imitator(Protocol):
    """What imitation needs of a network with a trainable action decoder."""

    @property
    def chunk_size(self) -> int:
        """Number of actions in a chunk."""

    @property
    def device(self) -> torch.device:
        """Device of all its tensors."""

    @property
    def context_noise(self) -> float:
        """Largest standard deviation of the noise on observations in training, in units of the state; 0: no noise."""

    def windows(self, episodes: list[Episode], ends: bool = False) -> Windows:
        """Cut episodes into context frames and the chunks of actions that follow; `ends`: see `Windows`."""

    def noisy(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Add the training noise to context frames (n, n_context_frames, state_dim)."""

    def encode(self, context: Tensor, task: Tensor) -> Context:
        """Encode context frames (n, n_context_frames, state_dim) and tasks (n,)."""

    def imitation_loss(self, context: Context, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Return the scalar loss of imitating `actions` (n, chunk_size, action_dim) in an encoded `context` (n rows)."""
