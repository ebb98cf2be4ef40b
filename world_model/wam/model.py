"""The built-in world-action model: the network with the methods of the protocols `WorldModel` and `Imitator`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from world_model.api import Context, Prediction
from world_model.data.episodes import Episode
from world_model.flow import seeded_noise
from world_model.spec import Spec
from world_model.view import View
from world_model.wam import modes, trust
from world_model.wam.config import ModelConfig
from world_model.wam.images import PictureCodec
from world_model.wam.losses import policy_loss
from world_model.wam.network import Network
from world_model.wam.training import train_stage
from world_model.wam.training_config import StageConfig

REFIT_BATCH_SIZE = 128
"""Windows per step of a refit. In the same time, more steps help more than larger batches."""


class WorldActionModel(Network):
    """Policy, dream, inverse dynamics and video predictor in one set of weights. See `Network` for the arguments."""

    @property
    def n_context_frames(self) -> int:
        """Number of past frames that a prediction starts from."""
        return self.config.n_context_frames

    @property
    def chunk_size(self) -> int:
        """Number of actions in a chunk."""
        return self.config.chunk_size

    @property
    def cameras(self) -> dict[str, View]:
        """Cameras of the images that the model reads, by name; empty for a model without images."""
        return self.config.views

    @property
    def image_codec(self) -> PictureCodec | None:
        """Codec of the slice `image` of the state; None for a model without images."""
        return self.pictures

    @property
    def context_noise(self) -> float:
        """Largest standard deviation of the noise on observations in training, in units of the state; 0: no noise."""
        return self.config.context_noise

    def predict(
        self, context: Tensor, task: Tensor, actions: Tensor, seed: Tensor, counter: Tensor, n_denoising_steps: int
    ) -> Prediction:
        """See `WorldModel.predict`. The expected error is None until `calibrate_trust` was called."""
        shape = self.codec.n_future_tokens, self.codec.code_dim
        if n_denoising_steps > 1:
            noise = seeded_noise(seed, counter, shape)
        else:  # a single step does not depend on the noise; zeros avoid the slow draw, row by row on the CPU
            noise = torch.zeros(len(task), *shape, device=self.device)
        encoded = self.encode(context, task)
        frames = modes.dream(self, encoded, actions, noise, n_denoising_steps)
        # Without calibrated trust heads there is no estimate of the error.
        if not self.trust.given.fitted:
            return Prediction(frames)
        return Prediction(frames, trust.expected_error(self, trust.read(self, encoded, actions, frames)))

    def imitation_loss(self, context: Context, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean loss of imitating `actions` (n, chunk_size, action_dim) in an encoded `context` (n rows)."""
        return policy_loss(self, context, actions, generator)

    def refit(
        self,
        episodes: list[Episode],
        n_steps: int,
        learning_rate: float,
        seed: int,
        tick: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Train the world decoder on episodes; see `WorldModel.refit`."""
        # Train only samples of the mode `dream`, whose atom is the third of `ATOMS`.
        stage = StageConfig(
            n_steps=n_steps,
            batch_size=REFIT_BATCH_SIZE,
            learning_rate=learning_rate,
            warmup_steps=n_steps // 10 + 1,
            atoms=(0.0, 0.0, 1.0, 0.0, 0.0),
            seed=seed,
        )
        windows = self.windows(episodes, ends=True)
        train_stage("dynamics", self, windows, stage, log=lambda step, _: tick(step / n_steps))

    def calibrate_trust(self, episodes: list[Episode]) -> None:
        """Fit the trust heads to the true errors of dreams of `episodes`.

        Raises:
            UserError: no episode has `trust.HORIZON` chunks.
        """
        dreams = trust.dream_of_real_actions(self, episodes)
        trust.calibrate(self, dreams.given.flatten(0, 1), dreams.errors.flatten())

    def expected_errors(self, episodes: list[Episode]) -> Tensor:
        """Return the expected error of the chunks of dreams of `episodes`, in the unit of `trust.position_error`.

        Shape: (n, trust.HORIZON).
        """
        return trust.expected_error(self, trust.dream_of_real_actions(self, episodes).given)

    def to_config(self) -> dict[str, Any]:
        """Return the part of `config.json` that `from_config` needs."""
        return {"model": asdict(self.config), "spec": self.spec.to_dict()}

    @staticmethod
    def from_config(data: dict[str, Any]) -> WorldActionModel:
        """Build a model from the result of `to_config`, with random weights."""
        return WorldActionModel(ModelConfig.from_dict(data["model"]), Spec.from_dict(data["spec"]))
