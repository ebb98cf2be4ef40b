"""A world model that was trained with shuffled actions, to see that a run notices a broken dream.

    wamtune train dream name=broken env.tasks=hammer dream.world_model=benchmarks/broken_dream.py:ShuffledActions

What a policy learns in such a dream is worthless. The gates must let nothing pass that is worse than what it came from,
and the report must say in its first lines that the dream was wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from world_model.api import Prediction, Session, WorldModel
from world_model.data.episodes import Episode
from world_model.env import Obs
from world_model.wam.store import load_model


class ShuffledActions(nn.Module, WorldModel):
    """The world model of a checkpoint, whose refits see the actions of each episode in random order.

    Args:
        checkpoint: name or folder.
    """

    def __init__(self, checkpoint: str = "metaworld-tuned") -> None:
        super().__init__()
        self.model = load_model(checkpoint)
        self.spec, self.chunk_size = self.model.spec, self.model.chunk_size
        self.n_context_frames = self.model.n_context_frames

    def begin(self, history: Obs, seed: Tensor) -> Session:
        """Begin dreams, as the checkpoint does."""
        return self.model.begin(history, seed)

    def predict(self, session: Session, actions: Tensor) -> tuple[Session, Prediction]:
        """Predict a chunk, as the checkpoint does, without an expected error."""
        following, predicted = self.model.predict(session, actions)
        return following, replace(predicted, expected_error=None)

    def refit(
        self,
        episodes: list[Episode],
        n_steps: int,
        learning_rate: float,
        seed: int,
        tick: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Train on episodes whose actions are in random order; see `WorldModel.refit`."""
        generator = torch.Generator().manual_seed(seed)
        shuffled = [replace(e, action=e.action[torch.randperm(e.length, generator=generator)]) for e in episodes]
        self.model.refit(shuffled, n_steps, learning_rate, seed, tick)
