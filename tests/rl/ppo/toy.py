"""A small flow that keeps a dict of its observation, for tests that need a policy and no checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.policies.api import Denoiser
from world_model.env import Obs
from world_model.spec import STATE, Feature

FEATURES = {STATE: Feature((4,))}


class Still(Denoiser):
    """A flow of chunks of 4 actions, 2 of them executed."""

    def __init__(self) -> None:
        super().__init__()
        self.reads, self.horizon, self.chain_dim, self.n_features, self.n_action_steps = FEATURES, 4, 2, 4, 2
        self.net = torch.nn.Linear(4, 8)

    def encode(self, obs: Obs, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        return {"state": obs[STATE][:, -1]}

    def features(self, encoded: dict[str, Tensor]) -> Tensor:
        return encoded["state"]

    def step(self, prepared: dict[str, Tensor], x: Tensor, i: int, n_steps: int) -> tuple[Tensor, None]:
        return self.net(prepared["state"]).view_as(x), None

    def to_actions(self, encoded: dict[str, Tensor], x: Tensor) -> Tensor:
        return x

    def imitation_loss(self, encoded: dict[str, Tensor], actions: Tensor, generator: torch.Generator) -> Tensor:
        return self.net(encoded["state"]).square().mean()

    def action_parameters(self) -> list[torch.nn.Parameter]:
        return list(self.net.parameters())
