"""The built-in world-action model as a policy: for PPO (`FlowPolicy`), on a robot (`ModelPilot`) and for export.

PPO needs a likelihood, which the denoising ODE does not have. So `FlowPolicy` adds Gaussian noise after every denoising
step and stores all steps as a chain; the likelihood of a chunk is the product of the densities of these steps (DPPO,
2409.00588; ReinFlow, 2505.22094).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards.errors import UserError
from rl.policies.api import ChunkPolicy
from rl.policies.exportable import Exportable, Graph, checked_count
from rl.policies.gaussian import GaussianGraph, load_gaussian
from world_model.api import Context
from world_model.checkpoint import load_checkpoint
from world_model.data.episodes import Episode
from world_model.env import BatchedEnv, Obs
from world_model.flow import gaussian_log_prob, noise_level, seeded_noise, step_mean
from world_model.wam import modes
from world_model.wam.codec import VectorCodec
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model


class FlowPolicy(ChunkPolicy):
    """The action decoder of a world-action model as a policy for PPO.

    Args:
        model: trained in place; only its action decoder and critic get gradients.
        env: environment that gives spec and context frames.
        n_denoising_steps: number K of denoising steps; exploration adds noise after each.
        noise_std: standard deviation of this noise, in units of the normalised action.
        n_action_steps: number of actions of a chunk that are executed; None: all of them.
        noise_correlation: correlation between the noise of neighbouring actions of a chunk, in [0, 1). White noise
            averages out within a chunk; correlated noise moves the hand to other places, from which PPO can learn (cf.
            2302.12065).

    Raises:
        UserError: `n_action_steps` does not fit the chunks of the model.
    """

    def __init__(
        self,
        model: WorldActionModel,
        env: BatchedEnv,
        n_denoising_steps: int = 2,
        noise_std: float = 0.2,
        n_action_steps: int | None = None,
        noise_correlation: float = 0.8,
    ) -> None:
        super().__init__(env)
        self.model = model
        self.n_denoising_steps, self.noise_std = n_denoising_steps, noise_std
        self.chunk_size = size = model.config.chunk_size
        self.n_action_steps = n = n_action_steps or size
        if n > size:
            raise UserError(f"n_action_steps={n} exceeds the chunk of {size} actions")
        if n < size and model.cameras:
            raise UserError(
                f"n_action_steps={n}: a model with cameras gets an image after each whole chunk; use {size}"
            )
        # Encoder and world decoder stay frozen, so PPO does not change the dream.
        model.requires_grad_(False)
        model.action.requires_grad_(True)
        model.value.requires_grad_(True)
        # A frozen copy, the reference policy of `reference_kl`.
        self.reference = copy.deepcopy(model.action).requires_grad_(False)
        # Correlation of the noise of actions i and j of a chunk: noise_correlation ** |i - j| (AR(1)).
        lag = torch.arange(self.chunk_size)
        covariance = torch.tensor(noise_correlation) ** (lag[:, None] - lag).abs()
        self.color: Tensor  # lower Cholesky factor of the correlation: white noise -> correlated noise
        self.register_buffer("color", torch.linalg.cholesky(covariance.double()).float())
        self.whiten: Tensor  # its inverse: correlated noise -> white noise
        self.register_buffer("whiten", torch.linalg.inv(self.color.double()).float())
        self.to(model.device)

    def encode(self, obs: Obs, generator: torch.Generator | None = None) -> Context:
        """Encode without gradients: the encoder is frozen. The training noise is the `context_noise` of the model."""
        with torch.no_grad():
            return self.model.observe(obs, generator)

    def sample(self, context: Context, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Denoise with noise after every step. The returned actions are clamped to their bounds, the chain is not."""
        x = modes.action_noise(self.model, len(context.frames), generator)
        chain, means = [x], []
        for i in range(self.n_denoising_steps):
            t = x.new_full((len(x),), noise_level(i, self.n_denoising_steps))
            mean = step_mean(x, self.model.predict_action(context, x, t), i, self.n_denoising_steps)
            # One denoising step of the ODE, then noise that is correlated over the actions of the chunk.
            white = torch.randn(mean.shape, generator=generator, device=mean.device)
            x = mean + self.noise_std * self._mix(self.color, white)
            chain.append(x)
            means.append(mean)
        stacked = torch.stack(chain, dim=1)  # (n, K + 1, n_tokens, code_dim)
        return self._executable(x), stacked, self.chain_log_prob(stacked, torch.stack(means, dim=1))

    def decide(self, context: Context, seed: Tensor, counter: Tensor) -> Tensor:
        """Integrate the ODE without exploration noise, from starting noise seeded row by row."""
        noise = seeded_noise(seed, counter, (self.model.action_codec.n_tokens, self.model.action_codec.code_dim))
        return modes.policy(self.model, context, noise, self.n_denoising_steps)[:, : self.n_action_steps]

    def chain_means(self, context: Context, chain: Tensor) -> Tensor:
        """Return the mean of each denoising step from the stored chunk before it. Shape: (n, K, n_tokens, code_dim)."""
        return self._means(self.model.action, context, chain)

    def reference_means(self, context: Context, chain: Tensor) -> Tensor:
        """Return `chain_means` under the weights of the reference, without gradients."""
        with torch.no_grad():
            return self._means(self.reference, context, chain)

    def set_reference(self) -> None:
        """Copy the weights of the action decoder to the reference."""
        self.reference.load_state_dict(self.model.action.state_dict())

    def chain_log_prob(self, chain: Tensor, means: Tensor) -> Tensor:
        """Return the log-likelihood of each executed action. Shape: (n, n_action_steps).

        The starting noise is left out, because its density does not depend on the weights.
        """
        n, steps = means.shape[:2]
        shape = (n, steps, self.chunk_size, self.spec.action_dim)
        # In whitened units the noise of all actions is independent. The Cholesky factor is lower triangular, so white
        # noise i depends only on actions up to i: its density is that of action i given those before it.
        white, mean = (self._mix(self.whiten, part).view(shape).transpose(1, 2) for part in (chain[:, 1:], means))
        # Change of variables: log-determinant of the whitening, one diagonal entry per action.
        volume = steps * self.spec.action_dim * self.color.diagonal().log()
        each = gaussian_log_prob(white.flatten(0, 1), mean.flatten(0, 1), self.noise_std)
        return (each.view(n, self.chunk_size) - volume)[:, : self.n_action_steps]

    def reference_kl(self, means: Tensor, reference_means: Tensor) -> Tensor:
        """Return the sum over steps of ||mean - reference mean||^2 / (2 std^2), in whitened units. Shape: (n,)."""
        return self._mix(self.whiten, means - reference_means).square().flatten(1).sum(1) / (2 * self.noise_std**2)

    def values_of_features(self, features: Tensor) -> Tensor:
        """Return the value (n,) of the model's critic."""
        return self.model.value(features)

    def actor_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the action decoder."""
        return list(self.model.action_parameters())

    def critic_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the model's critic."""
        return list(self.model.value.parameters())

    def _means(self, decoder: nn.Module, context: Context, chain: Tensor) -> Tensor:
        """Return the mean of each denoising step by `decoder`, each from the stored chunk before the step."""
        steps, means = chain.shape[1] - 1, []
        for i in range(steps):
            # Contiguous as in `sample`: a strided tensor is multiplied in another order, with other rounding.
            x = chain[:, i].contiguous()
            estimate = decoder(x, x.new_full((len(x),), noise_level(i, steps)), context)
            means.append(step_mean(x, estimate, i, steps))
        return torch.stack(means, dim=1)

    def _mix(self, matrix: Tensor, codes: Tensor) -> Tensor:
        """Mix the actions of a chunk, in codes (..., n_tokens, code_dim), by a (chunk_size, chunk_size) matrix."""
        return (matrix @ codes.reshape(*codes.shape[:-2], self.chunk_size, -1)).view_as(codes)

    def _executable(self, codes: Tensor) -> Tensor:
        """Decode codes to the executed actions (n, n_action_steps, action_dim), within their bounds."""
        actions = self.model.action_codec.decode(codes).clamp(self.model.action_low, self.model.action_high)
        return actions[:, : self.n_action_steps]


class ModelPilot:
    """A world-action model that acts on a robot, in torch; see `rl.deploy.pilots.Pilot`.

    Args:
        model: the loaded model.
        n_denoising_steps: denoising steps per chunk.
    """

    def __init__(self, model: WorldActionModel, n_denoising_steps: int) -> None:
        self.model, self.n_denoising_steps, self.spec = model, n_denoising_steps, model.spec
        self.n_context_frames, self.chunk_size = model.config.n_context_frames, model.config.chunk_size
        self.noise_shape: tuple[int, ...] = (model.action_codec.n_tokens, model.action_codec.code_dim)

    @staticmethod
    def load(name_or_folder: str, n_denoising_steps: int) -> ModelPilot:
        """Load a checkpoint by built-in name, folder or run folder; see `load_model`."""
        return ModelPilot(load_model(name_or_folder), n_denoising_steps)

    @torch.inference_mode()
    def act(self, obs: Obs, noise: Tensor, held: Tensor, n_held: Tensor) -> Tensor:
        """See `Pilot.act`."""
        return modes.policy(self.model, self.model.observe(obs), noise, self.n_denoising_steps, (held, n_held))


class FlowGraph(Graph):
    """Graph of a world-action model: `modes.policy`, with noise and held actions as inputs.

    Raises:
        UserError: the model uses images.
    """

    def __init__(self, model: WorldActionModel, n_denoising_steps: int) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.n_denoising_steps = n_denoising_steps
        codec = self.model.codec
        if not isinstance(codec, VectorCodec):
            raise UserError(
                "export: a policy that reads images cannot be exported yet; choose one that acts on a state"
            )
        self.codec = codec
        for statistics in (codec.state, codec.change, self.model.action_codec.action):
            statistics.check_fitted()
            # Tracing does not support a branch on a tensor, so the check runs only here and is then switched off.
            statistics.check_fitted = lambda: None  # type: ignore[method-assign]

    def forward(self, state: Tensor, task: Tensor, noise: Tensor, held: Tensor, n_held: Tensor) -> Tensor:
        """Return chunks (n, chunk_size, action_dim); all actions but the held ones are within the action bounds.

        Args:
            state: (n, n_context_frames, state_dim).
            task: (n,) int64.
            noise: starting noise (n, n_tokens, code_dim).
            held: (n, chunk_size, action_dim); the first `n_held` actions are fixed, the others are ignored.
            n_held: (n,) int64.
        """
        context = self.model.encode(state, task)
        return modes.policy(self.model, context, noise, self.n_denoising_steps, (held, n_held))

    def random_inputs(self, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw `n` random inputs with the statistics of the training: states, their changes, normal noise."""
        codec, config, spec = self.codec, self.model.config, self.model.spec
        # First a state, then changes of typical size; the sum over frames is the history.
        frames = codec.change.std[0] * torch.randn(n, config.n_context_frames, spec.state_dim, generator=generator)
        frames[:, 0] = codec.state.invert(torch.randn(n, spec.state_dim, generator=generator))
        task = torch.randint(len(spec.tasks), (n,), generator=generator)
        # Held actions are uniform within their bounds.
        actions = 2 * torch.rand(n, config.chunk_size, spec.action_dim, generator=generator) - 1
        held = ((1 - actions) * self.model.action_low + (1 + actions) * self.model.action_high) / 2
        return frames.cumsum(1), task, *self._noise_and_held(held, generator)

    def recorded_inputs(self, episodes: list[Episode], n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw `n` inputs from recorded episodes, with normal noise and the recorded actions as held actions."""
        batch = self.model.windows(episodes).sample(n, generator)
        return batch.context["state"], batch.task, *self._noise_and_held(batch.actions, generator)

    def _noise_and_held(self, held: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return the inputs noise, `held` and n_held, which is drawn uniformly from 0 to the chunk size."""
        n_held = torch.randint(self.model.config.chunk_size + 1, (len(held),), generator=generator)
        return modes.action_noise(self.model, len(held), generator), held, n_held


def load_exportable(checkpoint: str | Path, n_denoising_steps: int = 0, n_action_steps: int = 0) -> Exportable:
    """Load the policy of a checkpoint; arguments and errors are those of `rl.deploy.export.export_policy`."""
    config, tensors = load_checkpoint(checkpoint)
    if config.get("policy") == "gaussian":
        if n_denoising_steps:
            raise UserError(f"n_denoising_steps={n_denoising_steps}: policy=gaussian denoises nothing; leave it out")
        gaussian = load_gaussian(checkpoint, config, tensors)
        size = gaussian.chunk_size
        return Exportable(
            checkpoint=str(checkpoint),
            stage=str(config.get("stage", "")),
            spec=gaussian.spec,
            n_action_steps=checked_count("n_action_steps", n_action_steps or size, size),
            graph=GaussianGraph(gaussian).eval(),
            n_context_frames=gaussian.n_context_frames,
            chunk_size=size,
        )
    model = load_model(checkpoint)
    # Arguments that are 0 take the values of the training run, or the whole chunk.
    trained_steps, trained_executed = as_trained(str(checkpoint), config)
    size, codec = model.config.chunk_size, model.action_codec
    steps = checked_count("n_denoising_steps", n_denoising_steps or trained_steps)
    executed = checked_count("n_action_steps", n_action_steps or trained_executed or size, size)
    return Exportable(
        checkpoint=str(checkpoint),
        stage=str(config.get("stage", "")),
        spec=model.spec,
        graph=FlowGraph(model, steps).eval(),
        n_context_frames=model.config.n_context_frames,
        chunk_size=size,
        n_action_steps=executed,
        n_denoising_steps=steps,
        noise_shape=(codec.n_tokens, codec.code_dim),
    )


def as_trained(checkpoint: str, config: dict[str, Any]) -> tuple[int, int]:
    """Return n_denoising_steps and n_action_steps (0: not set) from the run config in the checkpoint's config.json.

    `config` is that of `load_checkpoint`, `checkpoint` is named in errors.

    Raises:
        UserError: the config is not that of a run.
    """
    from rl.compose import parse  # imported here: a robot needs neither YAML nor the config schema
    from rl.config import PPOConfig

    run = parse(str(config.get("config", "{}")), f"that {checkpoint} carries as the config of its run")
    try:
        steps = run.get("ppo", {}).get("n_denoising_steps", PPOConfig().n_denoising_steps)
        return int(steps), int(run.get("n_action_steps", 0))
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{checkpoint}: the config in its config.json is not that of a run: {error!r}") from error
