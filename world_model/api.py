"""The protocols through which the rest uses a world model or a network that imitates, and what passes through them."""

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
    """An encoded observation of `n` rows, computed once and read by every decoder and by the critic."""

    frames: Tensor  # (n, n_context_frames, state_dim)
    cache: list[tuple[Tensor, Tensor]]  # keys and values (n, ...) of each layer; empty where nothing attends to them
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
        """Join the rows of several encoded observations of the same policy."""
        layers = zip(*(c.cache for c in contexts), strict=True)
        cache = [(torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in layers]
        return Context(torch.cat([c.frames for c in contexts]), cache, torch.cat([c.features for c in contexts]))


@dataclass
class Prediction:
    """What a world model predicts of a chunk of actions, for `n` rows."""

    frames: Tensor  # (n, chunk_size, state_dim), one after each action
    expected_error: Tensor | None = None  # (n,) of the chunk, where the model can tell


class WorldModel(Protocol):
    """What a dream needs of a world model; `world_model.wam` holds the built-in one."""

    @property
    def spec(self) -> Spec:
        """Features, action bounds, tasks and rate."""

    @property
    def n_context_frames(self) -> int:
        """Frames that a prediction begins from."""

    @property
    def chunk_size(self) -> int:
        """Actions that are predicted at once."""

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""

    @property
    def image_codec(self) -> Any:
        """Draws images from the slice `image` of the state; None for a model without images."""

    def predict(
        self, context: Tensor, task: Tensor, actions: Tensor, seed: Tensor, counter: Tensor, n_denoising_steps: int
    ) -> Prediction:
        """Predict what follows frames (n, n_context_frames, state_dim) of tasks (n,) under a chunk of actions.

        `actions` is (n, chunk_size, action_dim); any noise depends on `seed` and `counter` (n,) alone, row by row.
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
        """Train what predicts frames on recorded episodes; policy, encoder and read-outs keep every bit.

        `tick` is called with the share of the training that is done.
        """

    def calibrate_trust(self, episodes: list[Episode]) -> None:
        """Learn from recorded episodes, which no refit has seen, how wrong predictions are."""

    def expected_errors(self, episodes: list[Episode]) -> Tensor:
        """Expected error of the chunks of recorded episodes, in the unit of `Prediction.expected_error`. Any shape."""


class Imitator(Protocol):
    """What imitation needs of a network whose action side learns."""

    @property
    def chunk_size(self) -> int:
        """Actions that are decided at once."""

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""

    @property
    def context_noise(self) -> float:
        """Largest deviation of the noise that observations are given while it learns; 0: none."""

    def windows(self, episodes: list[Episode], ends: bool = False) -> Windows:
        """Cut episodes into what it observes and the chunks of actions that follow; `ends`: see `Windows`."""

    def noisy(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Add that noise to observed frames (n, n_context_frames, state_dim)."""

    def encode(self, context: Tensor, task: Tensor) -> Context:
        """Encode frames (n, n_context_frames, state_dim) of tasks (n,)."""

    def imitation_loss(self, context: Context, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Loss of imitating `actions` (n, chunk_size, action_dim) in an encoded `context` of n rows."""
