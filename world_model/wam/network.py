"""The network of a world-action model: a context encoder, and two decoders that attend to its keys and values.

    context frames + task ──► encoder ──► keys, values (cached)
                                 │              │
        future at t_video + actions at t_action ──► world decoder ──► future frames
        actions at t_action ──────────────────────► action decoder ──► action chunk   (may also read the future tokens)

Encoder and world decoder never depend on the action decoder. PPO trains only the action decoder, so dreams stay
bit-equal; a refit trains only the world decoder, so the policy stays bit-equal.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_model.api import Context
from world_model.data.episodes import Episode
from world_model.data.windows import Windows
from world_model.spec import LATENTS, Spec
from world_model.wam.codec import ActionCodec, Codec, PatchCodec, VectorCodec
from world_model.wam.config import ModelConfig
from world_model.wam.features import encode_episode, read_spec
from world_model.wam.images import ImageCodec
from world_model.wam.layers import KeysValues, NoiseLevel, Stack
from world_model.wam.noise import noisy_vectors
from world_model.wam.precision import products
from world_model.wam.text import Encode, make_sentences
from world_model.wam.trust_heads import Trust
from world_model.wam.trust_inputs import n_surroundings


class Network(nn.Module):
    """Encoder, world decoder, action decoder, read-outs, critic and trust heads.

    Args:
        config: architecture.
        spec: state, action bounds and tasks; the images follow from `config.views`. Each task has an embedding, or with
            task_conditioning=text a sentence; an unknown task gets the null embedding, or the empty sentence.
        unseen_tasks: those of `spec` that the read-outs were not trained on in a stage.

    Raises:
        UserError: the config is not valid.
    """

    def __init__(self, config: ModelConfig, spec: Spec, unseen_tasks: Collection[str] = ()) -> None:
        super().__init__()
        config.check()
        self.config, self.spec = config, read_spec(spec, config)
        self._unseen_tasks = tuple(unseen_tasks)
        self.pictures = self._make_image_codec()  # the name in the `state_dict` of checkpoints; see `image_codec`
        self.codec = self._make_codec()
        self.action_codec = ActionCodec(spec.action_dim, config.chunk_size, config.actions_per_token)
        self.text = make_sentences(config.text, spec) if config.task_conditioning == "text" else None
        self.encoder = ContextEncoder(config, self._task_embedding(config.width), self.codec.n_context_tokens)
        self.world = WorldDecoder(config, self.codec.n_future_tokens, self.action_codec)
        self.read_out = ReadOut(self.frame_dim, self._task_embedding)
        self.action = ActionDecoder(config, self.action_codec)
        self.value = Value(2 * config.width)
        self.trust = self._make_trust()
        # Not in the state_dict: the bounds are part of the spec.
        self.register_buffer("action_low", torch.tensor(spec.action_low), persistent=False)
        self.register_buffer("action_high", torch.tensor(spec.action_high), persistent=False)
        self.action_low: Tensor
        self.action_high: Tensor

    @property
    def device(self) -> torch.device:
        """Device of the weights; inputs must be on it."""
        return self.action_low.device

    @property
    def image_codec(self) -> ImageCodec | None:
        """Codec of images; None for a model without cameras."""
        return self.pictures

    @property
    def frame_dim(self) -> int:
        """Size of a frame: the state vector, then the latents; see `world_model.wam.features`."""
        return self.spec.state_dim + (0 if self.image_codec is None else self.image_codec.code_dim)

    @property
    def null_task(self) -> int:
        """Index of no task: that of the additional embedding, or of the empty sentence."""
        return len(self.spec.tasks)

    @property
    def unseen_tasks(self) -> tuple[str, ...]:
        """Tasks that `tell` has added, on which no stage has trained the read-outs since then.

        A refit in a run of PPO does not change this: a run that goes on from its checkpoint teaches them further.
        """
        return self._unseen_tasks

    def mark_seen(self, tasks: Collection[str]) -> None:
        """Note that a stage has trained the read-outs on `tasks`."""
        self._unseen_tasks = tuple(task for task in self._unseen_tasks if task not in tasks)

    @property
    def reads_sentences(self) -> bool:
        """Whether the model reads the sentences of its spec in place of the index of a task."""
        return self.text is not None

    def tell(self, spec: Spec, encode: Encode | None = None) -> None:
        """Set tasks and sentences of a model that reads sentences; tasks that it knows must keep their index.

        Args:
            spec: its tasks, instructions and wordings are taken.
            encode: the frozen encoder, see `FrozenSentences.tell`.
        """
        assert self.text is not None and spec.tasks[: self.null_task] == self.spec.tasks
        self.text.tell(spec, encode)
        self._unseen_tasks += spec.tasks[self.null_task :]
        self.spec = replace(self.spec, tasks=spec.tasks, instructions=spec.instructions, wordings=spec.wordings)

    def read(self, sentence: str, encode: Encode | None = None) -> Tensor:
        """Return the vector (1, dim) of any sentence, which `told` takes in place of the index of a task.

        Nothing is stored, so sentences that come one after another need no memory. The model must read sentences.

        Args:
            sentence: also one that the spec does not have.
            encode: the frozen encoder, which a new sentence needs if the model has one.
        """
        assert self.text is not None
        return self.text.read(sentence, encode)

    def told(self, task: Tensor) -> Tensor:
        """Return what encoder and read-out get of tasks (n,) int64: the index itself, or the vector of the sentence.

        Vectors of sentences (n, dim), see `read`, stay as they are.
        """
        return task if self.text is None or task.is_floating_point() else self.text(task)

    def reworded(self, task: Tensor, generator: torch.Generator) -> Tensor:
        """Choose for each task (n,) one of its wordings, for training; without sentences the tasks stay as they are."""
        return task if self.text is None else self.text.reworded(task, generator)

    def _task_embedding(self, width: int) -> nn.Embedding | nn.Linear:
        """Return a layer from what `told` returns to vectors (n, width)."""
        return nn.Embedding(len(self.spec.tasks) + 1, width) if self.text is None else nn.Linear(self.text.dim, width)

    def renew_trust(self) -> None:
        """Replace the trust heads by new ones as a new model has them; an older checkpoint has smaller ones.

        They are not calibrated.
        """
        self.config = replace(self.config, trust_memory=ModelConfig.trust_memory)
        self.trust = self._make_trust().to(self.device)

    def _make_trust(self) -> Trust:
        config = self.config
        dim = 2 * config.width + config.chunk_size * self.spec.action_dim + 1  # see `trust.read`
        if config.trust_memory:
            dim += n_surroundings(self.codec, config.n_context_frames, config.chunk_size, self.frame_dim)
        return Trust(dim, config.trust_memory)

    def _make_image_codec(self) -> ImageCodec | None:
        config = self.config
        if not config.views:
            return None
        return ImageCodec(
            n_views=len(config.views),
            size=config.image_size,
            dim=config.patch_dim,
            in_bfloat16=config.bfloat16,
        )

    def _make_codec(self) -> Codec:
        config, spec = self.config, self.spec
        vector = VectorCodec(
            dim=spec.state_dim,
            positions=[part for name, part in spec.slices.items() if name.endswith("_pos")],
            n_context_frames=config.n_context_frames,
            chunk_size=config.chunk_size,
            frames_per_token=config.frames_per_token,
            width=config.width,
            world_width=config.world_width,
            noise=config.context_noise,
        )
        if self.image_codec is None:
            return vector
        return PatchCodec(
            vector,
            n_tokens=self.image_codec.n_tokens,
            dim=self.image_codec.dim,
            width=config.width,
            world_width=config.world_width,
        )

    def encode(self, context: Tensor, task: Tensor) -> Context:
        """Encode context frames (batch, n_context_frames, frame_dim) and task (batch,), for decoders and critic."""
        told = self.told(task)
        with products(self.config.bfloat16, context):
            embedded = self.codec.embed_context(context)
            tokens, cache = self.encoder(embedded, told)
            # The critic reads embedded and encoded frames. They are detached, so that its loss does not train them.
            features = torch.cat([embedded.mean(1), tokens.mean(1)], dim=-1).detach()
        return Context(context, cache, features.to(context.dtype))

    def noisy(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Add the training noise (`context_noise`) to context frames (batch, n_context_frames, frame_dim).

        Codes of images are not changed: the image codec was trained to give equal codes for noisy images.
        """
        if self.config.context_noise == 0.0:
            return frames
        # Only the state vector gets noise.
        n = self.codec.vector_dim
        measured = noisy_vectors(frames[..., :n], self.config.context_noise, generator)
        return torch.cat([measured, frames[..., n:]], dim=-1)

    def predict_future(
        self, context: Context, codes: Tensor, t_video: Tensor, actions: Tensor, t_action: Tensor
    ) -> tuple[Tensor, KeysValues]:
        """Estimate the clean future codes.

        Args:
            context: encoded context of `batch` rows.
            codes: noisy future codes (batch, n_future_tokens, code_dim).
            t_video: their noise level (batch,).
            actions: noisy action codes (batch, n_tokens, code_dim).
            t_action: their noise level (batch,).

        Returns:
            The estimate, with the shape of `codes`, and the keys and values of the future tokens, to which the action
            decoder can attend.
        """
        known = codes * (1 - t_video).view(-1, 1, 1)  # noisier codes count less; pure noise becomes 0
        with products(self.config.bfloat16, codes):
            embedded = self.codec.embed_future(context.frames, known)
            tokens, cache = self.world(embedded, t_video, actions, t_action, context)
            return self.codec.predict_future(tokens).to(codes.dtype), cache

    def predict_action(
        self, context: Context, actions: Tensor, t_action: Tensor, future: KeysValues | None = None
    ) -> Tensor:
        """Estimate the clean action codes from noisy `actions` (batch, n_tokens, code_dim) at `t_action` (batch,).

        `future` are the keys and values of the future tokens; None in policy mode. Shape: that of `actions`.
        """
        return self.action(actions, t_action, context, future)

    def read_frames(self, frames: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate success probability (n,) and progress in [0, 1] (n,) of frames (n, frame_dim) of tasks (n,)."""
        logit, progress = self.read_out(self.codec.state(frames), self.told(task))
        return logit.sigmoid(), progress

    def dynamics_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that predict frames: the world decoder and its projections from and to codes."""
        yield from self.world.parameters()
        yield from self.codec.future_parameters()

    def action_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the action decoder, which PPO trains (in addition to the critic)."""
        yield from self.action.parameters()

    def windows(self, episodes: list[Episode], ends: bool = False) -> Windows:
        """Cut episodes into windows of one chunk, on the device of the model; `ends`: see `Windows`."""
        return self.windows_of(episodes, self.spec.tasks, self.config.chunk_size, ends)

    def windows_of(
        self, episodes: list[Episode], tasks: tuple[str, ...], length: int, ends: bool = False, pads: bool = False
    ) -> Windows:
        """Cut episodes of the given `tasks` into windows of `length` steps, on the device of the model.

        For `ends` and `pads` see `Windows`.
        """
        windows = Windows(
            self.encode_episodes(episodes),
            tasks=tasks,
            n_context_frames=self.config.n_context_frames,
            chunk_size=length,
            every={LATENTS: self.config.chunk_size},
            ends=ends,
            pads=pads,
        )
        return windows.to(self.device)

    def encode_episodes(self, episodes: list[Episode]) -> list[Episode]:
        """Return episodes with latents in place of images; the others stay as they are."""
        if self.image_codec is None:
            return episodes
        return [encode_episode(self.image_codec, self.spec.images, episode) for episode in episodes]


class ContextEncoder(nn.Module):
    """Transformer over a task token and the context tokens.

    They attend only to each other, so they are encoded once and reused in all denoising steps.
    """

    def __init__(self, config: ModelConfig, task: nn.Embedding | nn.Linear, n_context_tokens: int) -> None:
        super().__init__()
        self.task = task
        self.position = nn.Parameter(0.02 * torch.randn(n_context_tokens, config.width))
        self.stack = Stack(config.n_layers, config.width, config.width, config.n_heads)

    def forward(self, embedded: Tensor, task: Tensor) -> tuple[Tensor, KeysValues]:
        """Encode embedded context tokens (batch, n_context_tokens, width) and tasks, see `Network.told`.

        Returns the encoded context tokens, same shape, and the keys and values of all tokens in every layer.
        """
        tokens = torch.cat([self.task(task).unsqueeze(1), embedded + self.position], dim=1)
        tokens, cache = self.stack(tokens)
        # Decoders may attend to the task token as well; only the context tokens become features of the critic.
        return tokens[:, 1:], cache


class WorldDecoder(nn.Module):
    """Transformer over the future tokens, which attend to the context; the whole action chunk is added to each token.

    A projection of the context features is added as well. A refit freezes the encoder, and with it the keys and values
    of the context, but this projection stays trainable.
    """

    def __init__(self, config: ModelConfig, n_future_tokens: int, action_codec: ActionCodec) -> None:
        super().__init__()
        width = config.world_width
        self.context_in = nn.Linear(2 * config.width, width)
        self.action_in = nn.Linear(action_codec.n_tokens * action_codec.code_dim, width)
        self.position = nn.Parameter(0.02 * torch.randn(n_future_tokens, width))
        self.t_video, self.t_action = NoiseLevel(width), NoiseLevel(width)
        # There are few tokens, so a larger width helps more than wide MLPs.
        self.stack = Stack(config.n_layers, width, config.width, config.n_heads, mlp_ratio=1)

    def forward(
        self, future: Tensor, t_video: Tensor, actions: Tensor, t_action: Tensor, context: Context
    ) -> tuple[Tensor, KeysValues]:
        """Decode future tokens (batch, n_future_tokens, world_width); return them with their keys and values.

        Actions are weighted by 1 - `t_action`, so at `t_action` = 1 (pure noise) they have no effect.
        """
        known = actions.flatten(1) * (1 - t_action).unsqueeze(1)
        # Sum of all conditions, the same for every future token.
        given = self.action_in(known) + self.context_in(context.features)
        future = future + self.position + given.unsqueeze(1) + self.t_video(t_video) + self.t_action(t_action)
        tokens: Tensor
        tokens, cache = self.stack(future, (context.cache,))
        return tokens, cache


class ActionDecoder(nn.Module):
    """Transformer over noisy action tokens, which attend to the context and, if given, to the future tokens.

    Without future tokens the features of the context are added to each token: PPO trains this shortcut, while the
    encoder is frozen. With future tokens the shortcut is off, so that the decoder must attend to them.
    """

    def __init__(self, config: ModelConfig, codec: ActionCodec) -> None:
        super().__init__()
        # Zeros, so that the shortcut has no effect before it is trained.
        self.context_in = nn.Parameter(torch.zeros(config.action_width, 2 * config.width))
        self.embed = nn.Linear(codec.code_dim, config.action_width)
        self.position = nn.Parameter(0.02 * torch.randn(codec.n_tokens, config.action_width))
        self.t_action = NoiseLevel(config.action_width)
        self.stack = Stack(config.n_layers, config.action_width, config.width, config.n_heads)
        self.out = nn.Linear(config.action_width, codec.code_dim)

    def forward(self, actions: Tensor, t_action: Tensor, context: Context, future: KeysValues | None = None) -> Tensor:
        """Estimate clean action codes (batch, n_tokens, code_dim)."""
        tokens = self.embed(actions) + self.position + self.t_action(t_action)
        if future is None:
            tokens = tokens + F.linear(context.features, self.context_in).unsqueeze(1)
        tokens, _ = self.stack(tokens, (context.cache,) if future is None else (context.cache, future))
        codes: Tensor = self.out(tokens)
        return codes


class ReadOut(nn.Module):
    """MLP that estimates success and progress from a single frame: simulated, dreamed or recorded."""

    def __init__(self, dim: int, task_embedding: Callable[[int], nn.Embedding | nn.Linear], width: int = 192) -> None:
        super().__init__()
        self.task = task_embedding(width)
        self.embed = nn.Linear(dim, width)
        self.mlp = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, frames: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """Return success logit (n,) and progress in [0, 1] (n,) of normalised frames (n, dim) and tasks; see `told`."""
        out = self.mlp(self.embed(frames) + self.task(task))
        return out[:, 0], out[:, 1].sigmoid()


class Value(nn.Module):
    """The critic of PPO: an MLP on detached context features."""

    def __init__(self, dim: int, width: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return the value (n,) of context features (n, dim)."""
        value: Tensor = self.mlp(features)
        return value.squeeze(-1)
