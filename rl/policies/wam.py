"""The built-in world-action model as a policy: for PPO, on a robot, and as a graph to export.

`FlowPolicy` denoises a chunk: its likelihood is that of all noisy steps of the stored chain (DPPO, 2409.00588;
ReinFlow, 2505.22094).
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
    """The action side of a world-action model.

    Args:
        model: trained in place; only its action decoder and critic have gradients.
        n_denoising_steps: steps K of the chain, all of them noisy when exploring.
        noise_std: deviation of the noise added after each step, in units of the normalised action.
        noise_correlation: of the noise of neighbouring actions of a chunk, in [0, 1). White noise averages out within a
            chunk; correlated noise moves the hand elsewhere, which is what there is to learn from (cf. 2302.12065).
        n_action_steps: how much of a chunk is executed; None: all of it.

    Raises:
        UserError: it does not fit the chunks of the model.
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
        if n < size and model.pictures is not None:
            raise UserError(f"n_action_steps={n}: a model that sees gets a picture after each whole chunk; use {size}")
        model.requires_grad_(False)
        model.action.requires_grad_(True)
        model.value.requires_grad_(True)
        self.reference = copy.deepcopy(model.action).requires_grad_(False)
        lag = torch.arange(self.chunk_size)
        covariance = torch.tensor(noise_correlation) ** (lag[:, None] - lag).abs()
        self.color: Tensor  # Cholesky factor of the correlation between the actions of a chunk
        self.register_buffer("color", torch.linalg.cholesky(covariance.double()).float())
        self.whiten: Tensor
        self.register_buffer("whiten", torch.linalg.inv(self.color.double()).float())
        self.to(model.device)

    def encode(self, obs: Obs, generator: torch.Generator | None = None) -> Context:
        """Encode without a graph: the encoder is frozen. The noise is `context_noise` of the model."""
        with torch.no_grad():
            state = obs["state"] if generator is None else self.model.noisy(obs["state"], generator)
            return self.model.encode(state, obs["task"])

    def sample(self, context: Context, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Denoise with noise after every step. The executed action is clamped, the chain never."""
        x = modes.action_noise(self.model, len(context.frames), generator)
        chain, means = [x], []
        for i in range(self.n_denoising_steps):
            t = x.new_full((len(x),), noise_level(i, self.n_denoising_steps))
            mean = step_mean(x, self.model.predict_action(context, x, t), i, self.n_denoising_steps)
            white = torch.randn(mean.shape, generator=generator, device=mean.device)
            x = mean + self.noise_std * self._mix(self.color, white)
            chain.append(x)
            means.append(mean)
        stacked = torch.stack(chain, dim=1)
        return self._executable(x), stacked, self.chain_log_prob(stacked, torch.stack(means, dim=1))

    def decide(self, context: Context, seed: Tensor, counter: Tensor) -> Tensor:
        """Integrate the ODE from noise seeded row by row."""
        noise = seeded_noise(seed, counter, (self.model.action_codec.n_tokens, self.model.action_codec.code_dim))
        return modes.policy(self.model, context, noise, self.n_denoising_steps)[:, : self.n_action_steps]

    def chain_means(self, context: Context, chain: Tensor) -> Tensor:
        """Each step from where the stored chain was. Shape: (n, K, n_tokens, code_dim)."""
        return self._means(self.model.action, context, chain)

    def reference_means(self, context: Context, chain: Tensor) -> Tensor:
        """The same under the weights of the reference."""
        with torch.no_grad():
            return self._means(self.reference, context, chain)

    def set_reference(self) -> None:
        """Copy the action decoder."""
        self.reference.load_state_dict(self.model.action.state_dict())

    def chain_log_prob(self, chain: Tensor, means: Tensor) -> Tensor:
        """The starting noise does not depend on the weights and is left out."""
        n, steps = means.shape[:2]
        shape = (n, steps, self.chunk_size, self.spec.action_dim)
        white, mean = (self._mix(self.whiten, part).view(shape).transpose(1, 2) for part in (chain[:, 1:], means))
        volume = steps * self.spec.action_dim * self.color.diagonal().log()
        each = gaussian_log_prob(white.flatten(0, 1), mean.flatten(0, 1), self.noise_std)
        return (each.view(n, self.chunk_size) - volume)[:, : self.n_action_steps]

    def reference_kl(self, means: Tensor, reference_means: Tensor) -> Tensor:
        """Sum over steps of ||mean - reference mean||^2 / (2 std^2), in whitened units."""
        return self._mix(self.whiten, means - reference_means).square().flatten(1).sum(1) / (2 * self.noise_std**2)

    def values_of_features(self, features: Tensor) -> Tensor:
        """The value read-out."""
        return self.model.value(features)

    def actor_parameters(self) -> list[nn.Parameter]:
        """The action decoder."""
        return list(self.model.action_parameters())

    def critic_parameters(self) -> list[nn.Parameter]:
        """The value read-out."""
        return list(self.model.value.parameters())

    def _means(self, decoder: nn.Module, context: Context, chain: Tensor) -> Tensor:
        steps, means = chain.shape[1] - 1, []
        for i in range(steps):
            x = chain[:, i].contiguous()  # as it was sampled: a strided one is multiplied in another order
            estimate = decoder(x, x.new_full((len(x),), noise_level(i, steps)), context)
            means.append(step_mean(x, estimate, i, steps))
        return torch.stack(means, dim=1)

    def _mix(self, matrix: Tensor, codes: Tensor) -> Tensor:
        """Apply a (chunk_size, chunk_size) matrix along the actions of codes (..., n_tokens, code_dim)."""
        return (matrix @ codes.reshape(*codes.shape[:-2], self.chunk_size, -1)).view_as(codes)

    def _executable(self, codes: Tensor) -> Tensor:
        actions = self.model.action_codec.decode(codes).clamp(self.model.action_low, self.model.action_high)
        return actions[:, : self.n_action_steps]


class ModelPilot:
    """A world-action model in torch.

    Args:
        model: of a checkpoint.
        n_denoising_steps: of a chunk.
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
    def act(self, state: Tensor, task: Tensor, noise: Tensor, held: Tensor, n_held: Tensor) -> Tensor:
        """See `Pilot.act`."""
        context = self.model.encode(state, task)
        return modes.policy(self.model, context, noise, self.n_denoising_steps, (held, n_held))


class FlowGraph(Graph):
    """What is exported of a world-action model: all that a chunk depends on, to the chunk of `modes.policy`."""

    def __init__(self, model: WorldActionModel, n_denoising_steps: int) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.n_denoising_steps = n_denoising_steps
        codec = self.model.codec
        if not isinstance(codec, VectorCodec):
            raise UserError(
                "export: a policy that sees pictures cannot be exported yet; choose one that acts on a state"
            )
        self.codec = codec
        for statistics in (codec.state, codec.change, self.model.action_codec.action):
            statistics.check_fitted()
            # A graph cannot branch on a tensor, so this was asked for the last time.
            statistics.check_fitted = lambda: None  # type: ignore[method-assign]

    def forward(self, state: Tensor, task: Tensor, noise: Tensor, held: Tensor, n_held: Tensor) -> Tensor:
        """Decode chunks (n, chunk_size, action_dim).

        Args:
            state: (n, n_context_frames, state_dim).
            task: (n,).
            noise: (n, n_tokens, code_dim).
            held: (n, chunk_size, action_dim), of which only the first `n_held` count.
            n_held: (n,).
        """
        context = self.model.encode(state, task)
        return modes.policy(self.model, context, noise, self.n_denoising_steps, (held, n_held))

    def random_inputs(self, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw `n` inputs as they may come: states like those of the training, moving as fast, and normal noise."""
        codec, config, spec = self.codec, self.model.config, self.model.spec
        moved = codec.change.std[0] * torch.randn(n, config.n_context_frames, spec.state_dim, generator=generator)
        moved[:, 0] = codec.state.invert(torch.randn(n, spec.state_dim, generator=generator))
        task = torch.randint(len(spec.tasks), (n,), generator=generator)
        actions = 2 * torch.rand(n, config.chunk_size, spec.action_dim, generator=generator) - 1
        held = ((1 - actions) * self.model.action_low + (1 + actions) * self.model.action_high) / 2
        return moved.cumsum(1), task, *self._drawn(held, generator)

    def recorded_inputs(self, episodes: list[Episode], n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw `n` inputs from recorded episodes, with normal noise; what is held are actions as executed."""
        batch = self.model.windows(episodes).sample(n, generator)
        return batch.context, batch.task, *self._drawn(batch.actions, generator)

    def _drawn(self, held: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        n_held = torch.randint(self.model.config.chunk_size + 1, (len(held),), generator=generator)
        return modes.action_noise(self.model, len(held), generator), held, n_held


def load_exportable(checkpoint: str | Path, n_denoising_steps: int = 0, n_action_steps: int = 0) -> Exportable:
    """Load the policy of a checkpoint; arguments and errors are those of `rl.deploy.export.export_policy`."""
    config, tensors = load_checkpoint(checkpoint)
    about = str(checkpoint), str(config.get("stage", ""))
    if config.get("policy") == "gaussian":
        if n_denoising_steps:
            raise UserError(f"n_denoising_steps={n_denoising_steps}: policy=gaussian denoises nothing; leave it out")
        gaussian = load_gaussian(checkpoint, config, tensors)
        size = gaussian.chunk_size
        executed = checked_count("n_action_steps", n_action_steps or size, size)
        graph = GaussianGraph(gaussian).eval()
        return Exportable(*about, gaussian.spec, graph, gaussian.n_context_frames, size, executed)
    return _flow(about, load_model(checkpoint), n_denoising_steps, n_action_steps, config)


def _flow(
    about: tuple[str, str], model: WorldActionModel, n_denoising_steps: int, n_action_steps: int, config: dict[str, Any]
) -> Exportable:
    trained_steps, trained_executed = _as_trained(about[0], config)
    size, codec = model.config.chunk_size, model.action_codec
    steps = checked_count("n_denoising_steps", n_denoising_steps or trained_steps)
    executed = checked_count("n_action_steps", n_action_steps or trained_executed or size, size)
    graph = FlowGraph(model, steps).eval()
    frames, noise_shape = model.config.n_context_frames, (codec.n_tokens, codec.code_dim)
    return Exportable(*about, model.spec, graph, frames, size, executed, steps, noise_shape)


def _as_trained(checkpoint: str, config: dict[str, Any]) -> tuple[int, int]:
    """Return n_denoising_steps and n_action_steps (0: not said) of the run whose config `wamtune train` kept."""
    from rl.compose import parse  # late: a robot needs neither YAML nor the schema of `wamtune train`
    from rl.config import PPOConfig

    run = parse(str(config.get("config", "{}")), f"that {checkpoint} carries as the config of its run")
    try:
        steps = run.get("ppo", {}).get("n_denoising_steps", PPOConfig().n_denoising_steps)
        return int(steps), int(run.get("n_action_steps", 0))
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{checkpoint}: the config in its config.json is not that of a run: {error!r}") from error
