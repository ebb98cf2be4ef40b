"""What a family of LeRobot's policies must offer: conditioning, one step of the chain, and the training loss.

Facts are those of LeRobot 0.6.1. A batch is what LeRobot's preprocessor returns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from world_model.tree import Tree

Batch = dict[str, Any]

STATE = "observation.state"
IMAGES = "observation.images"


class Family(ABC):
    """One policy, seen as a chain of (n, horizon, chain_dim) that starts at noise.

    `conditioning` is what all steps of a chain share: a tree of tensors with n rows.
    """

    keeps_observation = False  # True: the conditioning is larger than the observation, so compute it again each time
    has_time = False  # True: observations have a dimension of time, also if it reads a single frame
    starts_at_zero = False  # see `Denoiser`
    is_stochastic = False
    first = 0
    chain_dim: int
    horizon: int
    steps_key = ""  # of LeRobot's configuration: the number of steps of its own sampler

    def __init__(self, policy: Any) -> None:
        self.policy, self.config = policy, policy.config
        self.action_dim = int(policy.config.action_feature.shape[0])
        self.chain_dim = self.action_dim

    @abstractmethod
    def condition(self, batch: Batch) -> tuple[Tree, Tensor]:
        """Return the conditioning, and features for a critic (n, n_features); both without gradients."""

    @abstractmethod
    def step(self, conditioning: Tree, x: Tensor, i: int, n_steps: int) -> tuple[Tensor, Tensor | None]:
        """Take a step; see `Denoiser.step`."""

    def noised(self, clean: Tensor, noise: Tensor, i: int, n_steps: int) -> Tensor | None:
        """Return normalised chunks `clean` with the noise that a chunk has before step `i` of `n_steps`.

        The three have the shape (n, horizon, chain_dim). None: the policy has no noise; see `Denoiser.noised`.
        """
        return None

    @abstractmethod
    def errors(self, conditioning: Tree, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Return the errors of the training loss on normalised `actions`, both (n, horizon, action_dim)."""

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the action side."""

    @abstractmethod
    def own_sample(self, batch: Batch, noise: Tensor) -> Tensor:
        """Return the normalised chunk (n, horizon, action_dim) of LeRobot's own sampler, from a given noise.

        The noise within the chain, which DDPM draws, comes from torch's global generator.
        """

    @property
    def own_steps(self) -> int:
        """Number of steps of LeRobot's own sampler."""
        return int(getattr(self.config, self.steps_key)) if self.steps_key else 1


class Stop(Exception):
    """Leaves LeRobot's sampler where its conditioning is known."""


@contextmanager
def drawn_from(generator: torch.Generator) -> Iterator[None]:
    """Make torch's global generator, from which LeRobot's losses draw, continue from `generator`."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    devices = [generator.device] if generator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def first_noise(noise: Tensor) -> Iterator[None]:
    """Make the first `torch.randn` return `noise`, for samplers that draw their starting noise themselves."""
    draw, pending = torch.randn, [noise]
    torch.randn = lambda *size, **given: pending.pop() if pending else draw(*size, **given)
    try:
        yield
    finally:
        torch.randn = draw


def named(policy: nn.Module, *prefixes: str) -> list[nn.Parameter]:
    """Return the parameters whose names begin with one of `prefixes`."""
    return [parameter for name, parameter in policy.named_parameters() if name.startswith(prefixes)]


def with_images(config: Any, batch: Batch, stacked: bool) -> Batch:
    """Return a batch with all images together: stacked before their last three dimensions, or as a list."""
    images = [batch[name] for name in config.image_features]
    if not images:
        return dict(batch)
    return batch | {IMAGES: torch.stack(images, dim=-4) if stacked else images}
