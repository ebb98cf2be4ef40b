"""The built-in world-action model as a policy: for PPO (`WamDenoiser`), on a robot (`ModelPilot`) and for export."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from rewards.errors import UserError
from rl.policies.api import Denoiser
from rl.policies.chain import ChainPolicy
from rl.policies.exportable import Exportable, Graph, checked_count
from rl.policies.gaussian import GaussianGraph, load_gaussian
from world_model.api import Context
from world_model.checkpoint import load_checkpoint
from world_model.data.episodes import Episode
from world_model.data.windows import Windows
from world_model.env import BatchedEnv, Obs
from world_model.flow import noise_level, step_mean
from world_model.spec import LATENTS, Spec
from world_model.wam import modes
from world_model.wam.codec import PatchCodec, VectorCodec
from world_model.wam.model import WorldActionModel
from world_model.wam.normalizer import Normalizer
from world_model.wam.store import load_model_and_config
from world_model.wam.text import Encode


class WamDenoiser(Denoiser):
    """The action decoder of a world-action model as a denoiser.

    A chain holds the codes of the actions, (n, chunk_size, codes of an action); the decoder has several actions in one
    token. The encoder is frozen, so encoded observations hold its keys and values, which every step reads.

    Args:
        model: its action decoder is trained in place, and its critic is used; encoder and world decoder stay frozen, so
            PPO does not change the dream.
        dreams: whether the model is also the one that dreams; its latents are then read in place of images.
    """

    def __init__(self, model: WorldActionModel, dreams: bool = True) -> None:
        super().__init__()
        self.model, self.reads_latents, self.cameras = model, dreams, model.cameras
        self.reads, self.n_context_frames = model.spec.features, model.config.n_context_frames
        self.horizon, self.context_noise = model.config.chunk_size, model.context_noise
        codec = model.action_codec
        self.n_denoising_steps, self.n_action_steps = model.policy_steps
        self._codes = codec.n_tokens, codec.code_dim
        self.chain_dim = codec.n_tokens * codec.code_dim // self.horizon
        self.n_features = 2 * model.config.width

    @property
    def critic(self) -> nn.Module:  # type: ignore[override] # it belongs to the model, and is saved with it
        """The critic of the model."""
        return self.model.value

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    def attach(self, spec: Spec) -> None:
        """Keep the spec of the model: its action bounds may be narrower than those of the environment."""
        self.spec = self.model.spec

    def encode(self, obs: Obs, generator: torch.Generator | None = None) -> Context:
        """Encode with the model; the training noise is its `context_noise`."""
        return self.model.observe(obs, generator)

    def features(self, encoded: Context) -> Tensor:
        """Return the features that the model's encoder made for its critic."""
        return encoded.features

    def step(self, prepared: Context, x: Tensor, i: int, n_steps: int) -> tuple[Tensor, None]:
        """Take one Euler step of the flow."""
        codes = x.view(len(x), *self._codes)
        level = codes.new_full((len(x),), noise_level(i, n_steps))
        mean = step_mean(codes, self.model.predict_action(prepared, codes, level), i, n_steps)
        return mean.view_as(x), None

    def to_actions(self, encoded: Context, x: Tensor) -> Tensor:
        """Decode codes to actions (n, chunk_size, action_dim)."""
        return self.model.action_codec.decode(x.view(len(x), *self._codes))

    def imitation_loss(self, encoded: Context, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Return the flow-matching loss of the model."""
        return self.model.imitation_loss(encoded, actions, generator)

    def action_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the action decoder."""
        return list(self.model.action_parameters())

    def windows(self, episodes: list[Episode], ends: bool = False) -> Windows:
        """Cut episodes as the model does, which encodes their images once."""
        return self.model.windows(episodes, ends)


def flow_policy(
    model: WorldActionModel,
    env: BatchedEnv,
    n_denoising_steps: int | None = None,
    noise_std: float = 0.2,
    n_action_steps: int | None = None,
    noise_correlation: float = 0.8,
) -> ChainPolicy:
    """Return the policy of a world-action model, which is trained in place; see `ChainPolicy` for the arguments.

    Raises:
        UserError: `n_action_steps` does not fit the chunks of the model.
    """
    return ChainPolicy(WamDenoiser(model), env.spec, n_denoising_steps, noise_std, n_action_steps, noise_correlation)


class ModelPilot:
    """A world-action model that acts on a robot, in torch; see `rl.deploy.pilots.Pilot`.

    Args:
        model: the loaded model.
        n_denoising_steps: denoising steps per chunk; None: as in the training of the model.
        encode: the frozen text encoder, which sentences that the checkpoint does not have need if it reads with one.
    """

    def __init__(
        self, model: WorldActionModel, n_denoising_steps: int | None = None, encode: Encode | None = None
    ) -> None:
        self.model, self.spec, self.encode = model, model.spec, encode
        self.n_denoising_steps = n_denoising_steps or model.policy_steps[0]
        self.n_context_frames, self.chunk_size = model.config.n_context_frames, model.config.chunk_size
        self.noise_shape: tuple[int, ...] = (model.action_codec.n_tokens, model.action_codec.code_dim)

    @property
    def reads_sentences(self) -> bool:
        """Whether the model reads sentences in place of the index of a task."""
        return self.model.reads_sentences

    @torch.inference_mode()
    def read(self, sentence: str) -> Tensor:
        """Return the vector (1, dim) of any sentence, which `act` takes as `task`; see `Network.read`.

        Raises:
            UserError: the sentence is new, and there is no frozen encoder that the checkpoint needs for it.
        """
        return self.model.read(sentence, self.encode)

    def read_out_id(self, task: str) -> str:
        """Return the sha256 of the weights of the read-out of success and of the sentence that it reads for a task.

        PPO changes neither, a refit may change the weights.
        """
        weights = {name: value.contiguous() for name, value in self.model.read_out.state_dict().items()}
        sentence = self.model.spec.instruction(task) if self.reads_sentences else task
        return hashlib.sha256(save(weights) + sentence.encode()).hexdigest()

    @torch.inference_mode()
    def act(self, obs: Obs, noise: Tensor, held: Tensor, n_held: Tensor) -> Tensor:
        """See `Pilot.act`; `task` may also be vectors of sentences (n, dim), see `read`."""
        return modes.policy(self.model, self.model.observe(obs), noise, self.n_denoising_steps, (held, n_held))


class FlowGraph(Graph):
    """Graph of a world-action model: `modes.policy`, with noise and held actions as inputs.

    It computes in float32, also if the model runs in bfloat16: a small computer rarely has that.
    """

    def __init__(self, model: WorldActionModel, n_denoising_steps: int) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.config = replace(model.config, bfloat16=False)
        if self.model.image_codec is not None:
            self.model.image_codec.in_bfloat16 = False
        self.n_denoising_steps = n_denoising_steps
        codec = self.model.codec
        if self.model.text is not None:  # the graph has the vectors of its sentences, and no encoder
            self.model.text = self.model.text.fixed()  # type: ignore[assignment]
        self.vector: VectorCodec = codec.vector if isinstance(codec, PatchCodec) else codec  # type: ignore[assignment]
        scales = [codec.scale] if isinstance(codec, PatchCodec) else []
        for statistics in (codec.state, self.vector.state, self.vector.change, *scales, model.action_codec.action):
            statistics.check_fitted()
        for part in self.model.modules():
            if isinstance(part, Normalizer):
                # Tracing does not support a branch on a tensor, so the check ran only here and is now switched off.
                part.check_fitted = lambda: None  # type: ignore[method-assign]

    def forward(
        self, state: Tensor, task: Tensor, noise: Tensor, held: Tensor, n_held: Tensor, *images: Tensor
    ) -> Tensor:
        """Return chunks (n, chunk_size, action_dim); all actions but the held ones are within the action bounds.

        Args:
            state: (n, n_context_frames, state_dim).
            task: (n,) int64.
            noise: starting noise (n, n_tokens, code_dim).
            held: (n, chunk_size, action_dim); the first `n_held` actions are fixed, the others are ignored.
            n_held: (n,) int64.
            images: of each camera (n, n_context_frames, height, width, 3) uint8, in the order of the spec.
        """
        frames = state
        if self.model.image_codec is not None:
            # `WorldActionModel.encode_obs` skips images that repeat, and a graph cannot; the codes are the same.
            of_cameras = torch.stack(images, dim=2)
            codes = self.model.image_codec.encode(of_cameras.flatten(0, 1))
            frames = torch.cat([state, codes.view(-1, self.model.config.n_context_frames, codes.shape[1])], dim=-1)
        context = self.model.encode(frames, task)
        return modes.policy(self.model, context, noise, self.n_denoising_steps, (held, n_held))

    def random_inputs(self, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw `n` random inputs with the statistics of the training: states, their changes, normal noise, images."""
        codec, config, spec = self.vector, self.model.config, self.model.spec
        # First a state, then changes of typical size; the sum over frames is the history.
        frames = codec.change.std[0] * torch.randn(n, config.n_context_frames, spec.state_dim, generator=generator)
        frames[:, 0] = codec.state.invert(torch.randn(n, spec.state_dim, generator=generator))
        task = torch.randint(len(spec.tasks), (n,), generator=generator)
        # Held actions are uniform within their bounds.
        actions = 2 * torch.rand(n, config.chunk_size, spec.action_dim, generator=generator) - 1
        held = ((1 - actions) * self.model.action_low + (1 + actions) * self.model.action_high) / 2
        images = [
            torch.randint(256, (n, config.n_context_frames, *spec.features[name].shape), generator=generator)
            for name in spec.images
        ]
        return (
            frames.cumsum(1),
            task,
            *self._noise_and_held(held, generator),
            *(image.to(torch.uint8) for image in images),
        )

    def recorded_inputs(self, episodes: list[Episode], n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw `n` inputs from recorded episodes, with normal noise and the recorded actions as held actions.

        Of episodes that have latents in place of images, such as those in a checkpoint, the images are decoded.
        """
        model, config = self.model, self.model.config
        of_images = dict.fromkeys((*model.spec.images, LATENTS), config.chunk_size)
        windows = Windows(episodes, model.spec.tasks, config.n_context_frames, config.chunk_size, of_images)
        batch = windows.sample(n, generator)
        frames = model.with_features(batch.context, model.spec.images)
        images = [frames[name] for name in model.spec.images]
        return batch.context["state"], batch.task, *self._noise_and_held(batch.actions, generator), *images

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
    model = load_actor(checkpoint)
    # Arguments that are 0 take the values of the training run, or the whole chunk.
    trained_steps, trained_executed = model.policy_steps
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


def load_actor(name_or_path: str | Path) -> WorldActionModel:
    """Load a checkpoint as `load_model` does, to act as in its training; refuse one that can only predict.

    Raises:
        UserError: as for `load_model`, the checkpoint is of the pretrain stage, or the config of its run is damaged.
    """
    model, config = load_model_and_config(name_or_path)
    if config.get("stage") == "pretrain":
        raise UserError(
            f"{name_or_path} cannot act, it only predicts: teach it with wamtune tune metaworld-tuned "
            f"checkpoint={name_or_path}, look at what it predicts with wamtune dream {name_or_path}, or take another"
        )
    model.policy_steps = _as_trained(str(name_or_path), config)
    return model


def _as_trained(checkpoint: str, config: dict[str, Any]) -> tuple[int, int]:
    """Return n_denoising_steps and n_action_steps (0: not set) from the run config in the checkpoint's config.json.

    `config` is that of `load_checkpoint`, `checkpoint` is named in errors.

    Raises:
        UserError: the config is not that of a run.
    """
    from rl.compose import parse  # imported here: a robot needs neither YAML nor the config schema

    run = parse(str(config.get("config", "{}")), f"that {checkpoint} carries as the config of its run")
    try:
        steps = run.get("ppo", {}).get("n_denoising_steps") or WorldActionModel.policy_steps[0]
        return int(steps), int(run.get("n_action_steps", 0))
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{checkpoint}: the config in its config.json is not that of a run: {error!r}") from error
