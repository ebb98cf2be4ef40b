"""The protocol of a world model, and the data that it exchanges."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from world_model.data.episodes import Episode
from world_model.spec import Spec


@dataclass
class Context:
    """Encoded observations (`n` rows), computed once and read by all decoders and by the critic; a `Tree`."""

    frames: Tensor  # (n, n_context_frames, size of all features together)
    cache: list[tuple[Tensor, Tensor]]  # keys and values (n, ...) of each layer
    features: Tensor  # (n, n_features), detached, for the critic


@dataclass
class Prediction:
    """Predicted result of a chunk of actions, for `n` rows."""

    frames: dict[str, Tensor]  # feature -> (n, chunk_size, *shape), its value after each action
    expected_error: Tensor | None = None  # (n,), of the whole chunk; None if the model cannot estimate it


class WorldModel(Protocol):
    """What a dream needs of a world model; `world_model.wam` holds the built-in one."""

    @property
    def spec(self) -> Spec:
        """Features that it reads, action bounds, tasks and control rate."""

    @property
    def predicted_spec(self) -> Spec:
        """Like `spec`, with the features that it predicts: the state, and in place of images their latents."""

    @property
    def n_context_frames(self) -> int:
        """Number of past frames that a prediction starts from."""

    @property
    def chunk_size(self) -> int:
        """Number of actions in a chunk."""

    @property
    def device(self) -> torch.device:
        """Device of all its tensors."""

    def encode_obs(self, frames: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the features of `predicted_spec` for those of `spec`, each (n, n_frames, *shape).

        Features that are there already stay as they are. A key that is no feature, such as `task`, stays too.
        """

    def decode_obs(self, frames: dict[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
        """Return the features `names` of `spec` for those of `predicted_spec`, for a policy, a reward or a person."""

    def encode_episodes(self, episodes: list[Episode]) -> list[Episode]:
        """Return episodes with the features of `predicted_spec`, as `encode_obs` does."""

    def predict(
        self,
        context: dict[str, Tensor],
        task: Tensor,
        actions: Tensor,
        seed: Tensor,
        counter: Tensor,
        n_denoising_steps: int,
    ) -> Prediction:
        """Predict the frames of one chunk.

        Args:
            context: features of `predicted_spec`, each (n, n_context_frames, *shape), the newest frame last.
            task: (n,) int64, index into `spec.tasks`.
            actions: (n, chunk_size, action_dim), in environment units.
            seed: (n,) int64; the noise of a row depends only on its seed and counter.
            counter: (n,) int64, such as the number of the chunk in the dream.
            n_denoising_steps: integration steps; a model without denoising ignores it.
        """

    def success_and_progress(self, frames: dict[str, Tensor], task: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate success probability and progress in [0, 1] of frames, (n, n_frames) each.

        Args:
            frames: features of `spec` or of `predicted_spec`, each (n, n_frames, *shape).
            task: (n,) int64.
        """

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
