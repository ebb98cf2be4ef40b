"""The interfaces of policies: what acting and PPO need of a policy, built-in or your own.

| interface | used by |
|---|---|
| `Policy` | evaluation, gates, robots |
| `TrainablePolicy` | PPO and imitation |
| `Denoiser` | `rl.policies.chain`, which makes a `TrainablePolicy` of it |

To bring a network of your own, write a `Denoiser`: any flow, diffusion or regression network is one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from rewards.errors import UserError
from world_model.checkpoint import MODEL
from world_model.data.episodes import Episode
from world_model.data.windows import Windows
from world_model.env import ChunkStep, Obs
from world_model.spec import Feature, Spec, periods
from world_model.tree import Tree
from world_model.view import View


class Policy(Protocol):
    """A policy that acts: it encodes observations and decides without exploration."""

    def encode(self, obs: Obs) -> Tree:
        """Encode observations of n rows once, for `decide`."""

    def decide(self, encoded: Tree, seed: Tensor, counter: Tensor) -> Tensor:
        """Return actions (n, n_action_steps, action_dim).

        The noise of a row depends only on its `seed` (n,), that of the episode, and its `counter` (n,), the elapsed
        steps, so an evaluation can be repeated exactly.
        """


@dataclass
class Decision:
    """Actions drawn with exploration noise, for `n` rows."""

    actions: Tensor  # (n, n_action_steps, action_dim), within their bounds
    chain: Tensor  # (n, ...), everything from which the likelihood can be computed again
    log_prob: Tensor  # (n, n_action_steps), float32; see `TrainablePolicy.evaluate_actions`


@dataclass
class Evaluation:
    """The likelihood of stored decisions under the current weights, for `n` rows."""

    log_prob: Tensor  # (n, n_action_steps), float32
    ref_kl: Tensor  # (n,), KL divergence from the reference policy
    entropy: Tensor  # scalar, up to a constant; 0 for a fixed exploration noise


class TrainablePolicy(nn.Module, ABC):
    """What PPO and imitation need of a policy.

    The attribute `spec` holds the features that it reads, and the action bounds and tasks of its environment.
    """

    spec: Spec
    n_context_frames: int
    chunk_size: int  # actions of a chunk
    n_action_steps: int  # how many of them are executed
    context_noise: float = 0.0  # largest standard deviation of the training noise on observations; 0: none
    masks_unknown: bool = False  # see `Denoiser`
    noise_std: float = 0.0  # of exploration, which a run may change; 0: the policy sets its noise itself
    images: tuple[str, ...] = ()  # images that it needs also in a dream, which has latents in their place

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @abstractmethod
    def encode(self, obs: Obs, generator: torch.Generator | None = None) -> Tree:
        """Encode observations of n rows once, without gradients; all other methods use the result.

        With a `generator` the training noise of the policy is first added to the observations; PPO does so in training.
        """

    @abstractmethod
    def sample(self, encoded: Tree, generator: torch.Generator) -> Decision:
        """Draw actions with exploration noise."""

    @abstractmethod
    def decide(self, encoded: Tree, seed: Tensor, counter: Tensor) -> Tensor:
        """Return actions without exploration; see `Policy.decide`."""

    @abstractmethod
    def reference(self, encoded: Tree, chain: Tensor) -> Tensor:
        """Return what `evaluate_actions` needs of the reference policy for stored chains, (n, ...), without gradients.

        The reference is the policy at the last `set_reference`, or at the start.
        """

    @abstractmethod
    def evaluate_actions(self, encoded: Tree, chain: Tensor, reference: Tensor) -> Evaluation:
        """Return the likelihood of stored chains under the current weights, with gradients.

        The log-likelihood of an action is that given the actions before it, summed over its dimensions and the steps of
        the chain. Actions after the first `n_action_steps` are never executed and are left out, as in DPPO
        (2409.00588), because their noise has no effect on the advantage. Where an episode ends within a chunk, the
        actions after its end count: they add noise to the gradient, and no bias.
        """

    @abstractmethod
    def features(self, encoded: Tree) -> Tensor:
        """Return what the critic reads of encoded observations, (n, n_features), detached."""

    @abstractmethod
    def value(self, features: Tensor) -> Tensor:
        """Return the critic's value (n,) of features (n, n_features)."""

    def values(self, encoded: Tree) -> Tensor:
        """Return the critic's value (n,) of encoded observations."""
        return self.value(self.features(encoded))

    def values_after(self, step: ChunkStep, following: Tree) -> Tensor:
        """Return the critic's value (n,) of the state after a step, for bootstrapping.

        `following` is the encoded `step.obs`. Where an episode ended, this is already the next episode, so the value of
        `step.final_obs` is used there.
        """
        values, ended = self.values(following), step.terminated | step.truncated
        if ended.any():
            values[ended] = self.values(self.encode({name: of[ended] for name, of in step.final_obs.items()}))
        return values

    @abstractmethod
    def windows(self, episodes: list[Episode], ends: bool = False) -> Windows:
        """Cut episodes into context frames and the chunks of actions that follow; `ends`: see `Windows`."""

    @abstractmethod
    def imitation_loss(self, encoded: Tree, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean loss of imitating `actions` (n, chunk_size, action_dim), which are in environment units."""

    @abstractmethod
    def set_reference(self) -> None:
        """Make the current weights the reference policy."""

    @abstractmethod
    def actor_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the policy gradient trains."""

    @abstractmethod
    def critic_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the critic."""


class Denoiser(nn.Module, ABC):
    """A flow, diffusion or regression network that outputs chunks of actions.

    A chunk is the last element of a chain x_0, ..., x_K of tensors (n, horizon, chain_dim): x_0 is noise, and each step
    is Gaussian with a mean and a standard deviation given by `step`. A regression has one step (K = 1) from zeros.
    `rl.policies.chain.ChainPolicy` adds exploration noise, likelihood, reference policy and critic.
    """

    reads: Mapping[str, Feature]  # the features that it needs of an observation, `state` among them
    n_context_frames: int = 1
    horizon: int  # rows of the chain, H
    chain_dim: int  # columns of the chain, D: the action dimensions, then padding if there is any
    first: int = 0  # row of the first action that is executed; earlier rows belong to the past
    n_denoising_steps: int = 2  # of its own sampler
    n_action_steps: int = 0  # executed actions of a chunk unless the config sets another number; 0: all
    n_features: int  # size of `features`
    context_noise: float = 0.0  # see `TrainablePolicy`
    cameras: Mapping[str, View] = {}  # where a simulator puts the cameras of its images, by name; else by their size
    reads_latents: bool = False  # it reads the latents of a dream in place of images
    starts_at_zero: bool = False  # the chain starts with zeros in place of noise, as for a regression
    masks_unknown: bool = False  # `imitation_loss` leaves out actions that are NaN; else whole chunks are needed
    is_stochastic: bool = False  # its own sampler adds the noise of `step` when it acts, such as DDPM
    critic: nn.Module  # optional: features (n, n_features) -> value (n,) or (n, 1); without it `ChainPolicy` makes one
    spec: Spec  # see `attach`

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def chunk_size(self) -> int:
        """Number of actions from the first executed one to the end of the chunk."""
        return self.horizon - self.first

    def attach(self, spec: Spec) -> None:
        """Set the spec of the environment: the features of `reads`, action bounds, tasks and their instructions.

        It is called before anything else, once for each environment.

        Raises:
            UserError: the network cannot act there.
        """
        self.spec = spec

    @abstractmethod
    def encode(self, obs: Obs, generator: torch.Generator | None = None) -> Tree:
        """Encode observations of n rows, without gradients, into what PPO keeps of them.

        The result is kept for every decision of a rollout. So it should be small: if what the network computes is
        larger than the observation, return the observation, and encode it again in `prepare`.
        """

    @abstractmethod
    def features(self, encoded: Tree) -> Tensor:
        """Return what a critic reads of encoded observations, (n, n_features), detached."""

    def prepare(self, encoded: Tree) -> Any:
        """Compute what all steps of a chain share; the result is passed to `step`. By default it is `encoded`."""
        return encoded

    @abstractmethod
    def step(self, prepared: Any, x: Tensor, i: int, n_steps: int) -> tuple[Tensor, Tensor | None]:
        """Take step `i` (from 0) of `n_steps` from chunks `x` (n, horizon, chain_dim).

        Returns:
            The mean of the next chunk, with the shape of `x`, and its standard deviation, which broadcasts to it. None
            stands for a deterministic step, as of a flow's ODE; `ChainPolicy` then adds its own noise for exploration.
        """

    @abstractmethod
    def to_actions(self, encoded: Tree, x: Tensor) -> Tensor:
        """Return the actions of finished chunks `x`, in environment units, not clamped. Shape: (n, chunk_size, A)."""

    def noised(self, encoded: Tree, actions: Tensor, noise: Tensor, i: int, n_steps: int) -> Tensor | None:
        """Return chunks of known actions with the noise that a chunk has before step `i` of `n_steps`.

        A robot executes the first actions of a chunk while it is computed, so these are fixed. With this method the
        network sees them in every step, and the rest of the chunk continues them.

        Args:
            encoded: the observations.
            actions: (n, chunk_size, A), in environment units.
            noise: start of the chain, (n, horizon, chain_dim).
            i: the step, from 0.
            n_steps: number of steps.

        Returns:
            (n, horizon, chain_dim). None, the default: the network cannot do this, as a regression. The fixed actions
            then replace the first ones of the finished chunk, and the rest does not know them.
        """
        return None

    @abstractmethod
    def imitation_loss(self, encoded: Tree, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Return the network's own mean training loss on `actions` (n, chunk_size, A), in environment units.

        With `masks_unknown`, actions after the end of an episode are NaN.
        """

    @abstractmethod
    def action_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are trained; all others are frozen."""

    def save(self, folder: Path) -> None:
        """Write all weights into an existing folder; `load_weights` reads them.

        A network with a format of its own writes that instead.
        """
        save_model(self, str(folder / MODEL))

    def load_weights(self, folder: Path) -> None:
        """Load what `save` wrote.

        Raises:
            UserError: the weights do not fit this network.
        """
        try:
            load_model(self, str(folder / MODEL))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{folder / MODEL}: its weights do not fit this network: {error!r:.200}") from error

    def windows(self, episodes: list[Episode], ends: bool = False) -> Windows:
        """Cut episodes into context frames and the chunks of actions that follow; `ends`: see `Windows`."""
        windows = Windows(
            [episode.only(self.reads) for episode in episodes],
            tasks=self.spec.tasks,
            n_context_frames=self.n_context_frames,
            chunk_size=self.chunk_size,
            every=periods(self.reads),
            ends=ends,
            pads=self.masks_unknown,
        )
        return windows.to(self.device)


def names_of_today(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights of a policy, as a state of an older version has them, under the names of this version."""
    if any(name.startswith("denoiser.") for name in state):
        return dict(state)
    named: dict[str, Any] = {}
    n_references = 0
    for name, value in state.items():
        if name.startswith("reference."):  # the copies of the action parameters, in the same order
            named[f"reference_weights.{n_references}"] = value
            n_references += 1
        elif name in ("color", "whiten"):
            named[name] = value
        elif name not in ("middle", "reach"):  # these follow from the spec
            named[f"denoiser.{name}"] = value
    return named


def policy_state(policy: nn.Module) -> dict[str, Any]:
    """Return a copy of the trained weights, for a rollback."""
    return {name: value.detach().clone() for name, value in policy.named_parameters() if value.requires_grad}


def critic_state(policy: TrainablePolicy) -> dict[str, Any]:
    """Return a copy of the weights of the critic, named as in `policy_state`."""
    critic = {id(value) for value in policy.critic_parameters()}
    return {name: value.detach().clone() for name, value in policy.named_parameters() if id(value) in critic}


def load_policy_state(policy: nn.Module, state: dict[str, Tensor]) -> None:
    """Restore weights from `policy_state`, in place."""
    parameters = dict(policy.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)
