"""A policy for PPO made of any `Denoiser`: chain, likelihood, reference policy and critic.

PPO needs a likelihood, which a denoising ODE does not have. So `ChainPolicy` adds Gaussian noise after every denoising
step and stores all steps as a chain; the likelihood of a chunk is the product of the densities of these steps (DPPO,
2409.00588; ReinFlow, 2505.22094).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rewards.errors import UserError
from rl.policies.api import Decision, Denoiser, Evaluation, TrainablePolicy, names_of_today
from world_model.data.episodes import Episode
from world_model.data.windows import Windows
from world_model.env import Obs
from world_model.flow import gaussian_log_prob, seeded_noise
from world_model.spec import IMAGES, Spec
from world_model.tree import Tree, n_rows

STEP_SEED = 7_919
"""Added to the seed of an episode for the noise within a chain, per step; the noise that starts it has the seed itself.
"""


class ChainPolicy(TrainablePolicy):
    """A denoiser as a policy for PPO.

    Chains are (n, K + 1, horizon, chain_dim): the starting noise, and the chunk after each of the K steps. In the
    following, means and deviations of the steps are (n, K, horizon, chain_dim).

    Args:
        denoiser: trained in place; only its action parameters and the critic get gradients.
        spec: of the environment.
        n_denoising_steps: number K of denoising steps; exploration adds noise after each. None: as many as the
            denoiser's own sampler takes.
        noise_std: standard deviation of this noise, in units of the chain. For a denoiser with deviations of its own it
            is the smallest one, which keeps the likelihood finite.
        n_action_steps: number of actions of a chunk that are executed; None: as many as the denoiser does by default.
        noise_correlation: correlation between the noise of neighbouring actions of a chunk, in [0, 1). White noise
            averages out within a chunk; correlated noise moves the hand to other places, from which PPO can learn (cf.
            2302.12065). A denoiser with deviations of its own has white noise.

    Raises:
        UserError: `n_action_steps` does not fit the chunks, or the period of an image.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        spec: Spec,
        n_denoising_steps: int | None = None,
        noise_std: float = 0.2,
        n_action_steps: int | None = None,
        noise_correlation: float = 0.8,
    ) -> None:
        super().__init__()
        denoiser.attach(spec)
        self.denoiser, self.spec = denoiser, denoiser.spec
        self.n_denoising_steps, self.noise_std = n_denoising_steps or denoiser.n_denoising_steps, noise_std
        self.n_context_frames, self.context_noise = denoiser.n_context_frames, denoiser.context_noise
        self.masks_unknown = denoiser.masks_unknown
        images = (name for name in denoiser.reads if name.startswith(IMAGES))
        self.images = () if denoiser.reads_latents else tuple(images)
        self.chunk_size = size = denoiser.chunk_size
        self.n_action_steps = n = n_action_steps or denoiser.n_action_steps or size
        if n > size:
            raise UserError(
                f"n_action_steps={n} exceeds the chunk of {size} actions; set n_action_steps={size} or less"
            )
        for name, feature in denoiser.reads.items():
            if n % feature.every:
                raise UserError(
                    f"n_action_steps={n}: the policy gets a new {name} every {feature.every} steps; use a multiple of "
                    f"{feature.every}"
                )
        # As it is used, so that a saved denoiser says how it was trained.
        denoiser.n_action_steps, denoiser.n_denoising_steps = self.n_action_steps, self.n_denoising_steps
        # The rest stays frozen: a world model in the same network dreams as before.
        denoiser.requires_grad_(False)
        for parameter in denoiser.action_parameters():
            parameter.requires_grad_(True)
        # Without a critic of its own, the denoiser gets one here.
        self.own_critic = None if getattr(denoiser, "critic", None) is not None else _critic(denoiser.n_features)
        self._critic.requires_grad_(True)
        # A frozen copy of the trained weights, the reference policy.
        copies = [nn.Parameter(p.detach().clone(), requires_grad=False) for p in denoiser.action_parameters()]
        self.reference_weights = nn.ParameterList(copies)
        # Correlation of the noise of actions i and j of a chunk: noise_correlation ** |i - j| (AR(1)).
        lag = torch.arange(denoiser.horizon)
        covariance = torch.tensor(noise_correlation) ** (lag[:, None] - lag).abs()
        # Rows before the first executed one are independent of it; else leaving them out would bias the likelihood.
        past = lag < denoiser.first
        covariance[past[:, None] != past] = 0.0
        self.color: Tensor  # lower Cholesky factor of the correlation: white noise -> correlated noise
        self.register_buffer("color", torch.linalg.cholesky(covariance.double()).float())
        self.whiten: Tensor  # its inverse: correlated noise -> white noise
        self.register_buffer("whiten", torch.linalg.inv(self.color.double()).float())
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", torch.tensor(self.spec.action_low), persistent=False)
        self.register_buffer("high", torch.tensor(self.spec.action_high), persistent=False)
        self.to(denoiser.device)

    def encode(self, obs: Obs, generator: torch.Generator | None = None) -> Tree:
        """Encode without gradients: what is encoded here is frozen.

        An environment gives more frames than the denoiser reads if a world model reads more; these are left out.
        """
        newest = slice(-self.n_context_frames, None)
        own = {name: values if name == "task" else values[:, newest] for name, values in obs.items()}
        with torch.no_grad():
            return self.denoiser.encode(own, generator)

    @torch.no_grad()
    def sample(self, encoded: Tree, generator: torch.Generator) -> Decision:
        """Denoise with noise after every step. The returned actions are clamped to their bounds, the chain is not."""
        prepared = self.denoiser.prepare(encoded)
        x, chain, means, stds = self._start(n_rows(encoded), generator), [], [], []
        chain.append(x)
        for i in range(self.n_denoising_steps):
            mean, std = self._step(prepared, x, i, self.n_denoising_steps)
            white = torch.randn(mean.shape, generator=generator, device=mean.device)
            x = mean + (self.noise_std * (self.color @ white) if std is None else std * white)
            chain.append(x)
            means.append(mean)
            stds.append(std)
        stacked = torch.stack(chain, dim=1)
        log_prob = self._log_prob(stacked, torch.stack(means, dim=1), _stack(stds))
        return Decision(self._executable(encoded, x), stacked, log_prob)

    def decide(self, encoded: Tree, seed: Tensor, counter: Tensor) -> Tensor:
        """Denoise without exploration, from starting noise seeded row by row.

        A stochastic sampler, such as DDPM, adds the noise of its own steps, also seeded row by row.
        """
        denoiser, steps = self.denoiser, self.n_denoising_steps
        shape = denoiser.horizon, denoiser.chain_dim
        x = seeded_noise(seed, counter, shape)
        if denoiser.starts_at_zero:
            x = torch.zeros_like(x)
        prepared = denoiser.prepare(encoded)
        for i in range(steps):
            x, std = denoiser.step(prepared, x, i, steps)
            if denoiser.is_stochastic and std is not None:
                x = x + std * seeded_noise(seed + STEP_SEED * (i + 1), counter, shape)
        return self._executable(encoded, x)

    def reference(self, encoded: Tree, chain: Tensor) -> Tensor:
        """Return the means of the steps of stored chains under the weights of the reference."""
        with torch.no_grad(), self._as_reference():
            return self._means(encoded, chain)[0]

    def set_reference(self) -> None:
        """Copy the trained weights to the reference."""
        with torch.no_grad():
            for copy, current in zip(self.reference_weights, self.denoiser.action_parameters(), strict=True):
                copy.copy_(current)

    def evaluate_actions(self, encoded: Tree, chain: Tensor, reference: Tensor) -> Evaluation:
        """Return the likelihood of stored chains; `reference` holds the means that the method of that name returned."""
        means, stds = self._means(encoded, chain)
        log_prob, ref_kl = self._log_prob(chain, means, stds), self._reference_kl(means, reference, stds)
        if stds is None:
            return Evaluation(log_prob, ref_kl, torch.zeros((), device=means.device))
        entropy = stds[..., : self.spec.action_dim].log().flatten(1).sum(1).mean()
        return Evaluation(log_prob, ref_kl, entropy)

    def features(self, encoded: Tree) -> Tensor:
        """Return what the critic reads, see `Denoiser.features`."""
        return self.denoiser.features(encoded)

    def value(self, features: Tensor) -> Tensor:
        """Return the critic's value (n,)."""
        value: Tensor = self._critic(features)
        return value.view(len(features))

    def windows(self, episodes: list[Episode], ends: bool = False) -> Windows:
        """Cut episodes as the denoiser does."""
        return self.denoiser.windows(episodes, ends)

    def imitation_loss(self, encoded: Tree, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Return the network's own training loss."""
        return self.denoiser.imitation_loss(encoded, actions, generator)

    def actor_parameters(self) -> list[nn.Parameter]:
        """Return the action parameters of the denoiser."""
        return self.denoiser.action_parameters()

    def critic_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the critic."""
        return list(self._critic.parameters())

    @property
    def _critic(self) -> nn.Module:
        return self.denoiser.critic if self.own_critic is None else self.own_critic

    def _start(self, n: int, generator: torch.Generator) -> Tensor:
        """Return the first element of n chains."""
        shape = n, self.denoiser.horizon, self.denoiser.chain_dim
        if self.denoiser.starts_at_zero:
            return torch.zeros(shape, device=generator.device)
        return torch.randn(shape, generator=generator, device=generator.device)

    def _step(self, prepared: object, x: Tensor, i: int, n_steps: int) -> tuple[Tensor, Tensor | None]:
        """Take a step of the denoiser; its own deviation is at least `noise_std` and has the shape of the mean."""
        mean, std = self.denoiser.step(prepared, x, i, n_steps)
        return mean, None if std is None else std.clamp(min=self.noise_std).expand_as(mean)

    def _means(self, encoded: Tree, chain: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return mean and deviation of each step of stored chains, each from the stored chunk before the step."""
        prepared, n_steps, means, stds = self.denoiser.prepare(encoded), chain.shape[1] - 1, [], []
        for i in range(n_steps):
            # Contiguous as in `sample`: a strided tensor is multiplied in another order, with other rounding.
            mean, std = self._step(prepared, chain[:, i].contiguous(), i, n_steps)
            means.append(mean)
            stds.append(std)
        return torch.stack(means, dim=1), _stack(stds)

    def _log_prob(self, chain: Tensor, means: Tensor, stds: Tensor | None) -> Tensor:
        """Return the log-likelihood of each executed action (n, n_action_steps).

        The starting noise is left out, because its density does not depend on the weights; padded columns as well.
        """
        n, steps = means.shape[:2]
        size, dim = self.denoiser.horizon, self.spec.action_dim
        if stds is None:
            # In whitened units the noise of all actions is independent. The Cholesky factor is lower triangular, so
            # white noise i depends only on actions up to i: its density is that of action i given those before it.
            white, mean = (
                (self.whiten @ part)[..., :dim].transpose(1, 2).flatten(0, 1) for part in (chain[:, 1:], means)
            )
            # Change of variables: log-determinant of the whitening, one diagonal entry per action.
            volume = steps * dim * self.color.diagonal().log()
            each = gaussian_log_prob(white, mean, self.noise_std).view(n, size) - volume
        else:
            z = ((chain[:, 1:] - means) / stds).float()
            density = -0.5 * z.square() - stds.float().log() - 0.5 * math.log(2 * math.pi)
            each = density[..., :dim].sum((1, 3))
        return each[:, self.denoiser.first : self.denoiser.first + self.n_action_steps]

    def _reference_kl(self, means: Tensor, reference: Tensor, stds: Tensor | None) -> Tensor:
        """Return the Gaussian KL (n,) to the reference policy for equal deviations, summed over the steps."""
        apart = (means - reference)[..., : self.spec.action_dim]
        if stds is None:  # ||mean - reference mean||^2 / (2 std^2), in whitened units
            return (self.whiten @ apart).square().flatten(1).sum(1) / (2 * self.noise_std**2)
        return (apart / stds[..., : self.spec.action_dim]).square().flatten(1).sum(1) / 2

    def _executable(self, encoded: Tree, x: Tensor) -> Tensor:
        """Convert finished chunks to the executed actions (n, n_action_steps, action_dim), within their bounds.

        Raises:
            UserError: the denoiser returns actions of another shape.
        """
        actions = self.denoiser.to_actions(encoded, x)
        expected = len(x), self.chunk_size, self.spec.action_dim
        if actions.shape != expected:
            raise UserError(
                f"the policy returned actions of shape {tuple(actions.shape)}, the environment expects {expected} "
                "(rows, actions of a chunk, action_dim); check to_actions of the policy"
            )
        return actions.clamp(self.low, self.high)[:, : self.n_action_steps]

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        """Exchange the trained weights for those of the reference, for calls without gradients."""
        parameters = self.denoiser.action_parameters()
        current = [parameter.data for parameter in parameters]
        try:
            for parameter, copy in zip(parameters, self.reference_weights, strict=True):
                parameter.data = copy.data
            yield
        finally:
            for parameter, data in zip(parameters, current, strict=True):
                parameter.data = data


def _stack(stds: list[Tensor | None]) -> Tensor | None:
    """Stack the deviations of all steps; None if the steps are deterministic."""
    given = [std for std in stds if std is not None]
    return torch.stack(given, dim=1) if given else None


def load_weights(policy: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the `state_dict` of a policy, also one of an older version, in place.

    Raises:
        RuntimeError: names or shapes do not fit.
    """
    named = names_of_today(state)
    missing, unexpected = policy.load_state_dict(named, strict=False)
    if named.keys() == set(state):  # a state of this version must be complete
        lost = missing
    else:  # older Gaussian policies had neither a copy for the reference nor correlated noise
        lost = [name for name in missing if not name.startswith(("reference_weights.", "color", "whiten"))]
    if lost or unexpected:
        raise RuntimeError(f"weights missing or unexpected: {', '.join([*lost, *unexpected])}")
    if isinstance(policy, ChainPolicy) and "reference_weights.0" in missing:
        policy.set_reference()


def _critic(n_features: int, width: int = 256) -> nn.Module:
    """Return a critic for a network that has none."""
    return nn.Sequential(
        nn.LayerNorm(n_features),
        nn.Linear(n_features, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, 1),
    )
