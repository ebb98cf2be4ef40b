"""The network of a world-action model: a context encoder, whose keys and values a world and an action decoder read.

    context frames + task ──► encoder ──► keys, values (cached)
                                 │              │
        future at t_video + actions at t_action ──► world decoder ──► future frames
        actions at t_action ──────────────────────► action decoder ──► action chunk   (may also read the future tokens)

The encoder and the world decoder never read the action decoder. So PPO, which trains the action decoder alone, leaves
every dream bit-equal; and a refit, which trains the world decoder alone, leaves the policy bit-equal.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_model.api import Context
from world_model.data.episodes import Episode
from world_model.data.windows import Windows
from world_model.spec import Spec
from world_model.wam.codec import ActionCodec, Codec, SeeingCodec, VectorCodec
from world_model.wam.config import ModelConfig
from world_model.wam.images import PictureCodec
from world_model.wam.layers import KeysValues, NoiseLevel, Stack
from world_model.wam.noise import noisy_vectors
from world_model.wam.precision import products
from world_model.wam.trust_heads import Trust


class Network(nn.Module):
    """Encoder, world decoder, action decoder, read-outs and trust heads: one set of weights.

    Args:
        config: sizes.
        spec: features, action bounds and tasks. Each task has an embedding; an unknown task gets the null one.
    """

    def __init__(self, config: ModelConfig, spec: Spec) -> None:
        super().__init__()
        config.check()
        self.config, self.spec = config, spec
        seen = len(config.views), config.picture_size, config.picture_dim, config.bfloat16
        self.pictures = PictureCodec(*seen) if config.views else None
        self.codec = self._make_codec()
        self.action_codec = ActionCodec(spec.action_dim, config.chunk_size, config.actions_per_token)
        self.encoder = ContextEncoder(config, len(spec.tasks), self.codec.n_context_tokens)
        self.world = WorldDecoder(config, self.codec.n_future_tokens, self.action_codec)
        self.read_out = ReadOut(spec.state_dim, len(spec.tasks))
        self.action = ActionDecoder(config, self.action_codec)
        self.value = Value(2 * config.width)
        self.trust = Trust(2 * config.width + config.chunk_size * spec.action_dim + 1)
        self.register_buffer("action_low", torch.tensor(spec.action_low), persistent=False)
        self.register_buffer("action_high", torch.tensor(spec.action_high), persistent=False)
        self.action_low: Tensor
        self.action_high: Tensor

    @property
    def device(self) -> torch.device:
        """Where the weights are, and everything that is read or dreamed with them."""
        return self.action_low.device

    def _make_codec(self) -> Codec:
        config, spec = self.config, self.spec
        n_codes = 0 if self.pictures is None else self.pictures.code_dim
        vector = VectorCodec(
            spec.state_dim - n_codes,
            [part for name, part in spec.slices.items() if name.endswith("_pos")],
            config.n_context_frames,
            config.chunk_size,
            config.frames_per_token,
            config.width,
            config.world_width,
            config.context_noise,
        )
        if self.pictures is None:
            return vector
        return SeeingCodec(vector, self.pictures.n_tokens, self.pictures.dim, config.width, config.world_width)

    def encode(self, context: Tensor, task: Tensor) -> Context:
        """Encode context frames (batch, n_context_frames, state_dim) and task (batch,) once, for all decoders."""
        with products(self.config.bfloat16, context):
            embedded = self.codec.embed_context(context)
            tokens, cache = self.encoder(embedded, task)
            # The critic reads the embedded frames beside the encoded ones; detached, so that it trains neither.
            features = torch.cat([embedded.mean(1), tokens.mean(1)], dim=-1).detach()
        return Context(context, cache, features.to(context.dtype))

    def noisy(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Add the noise that the model learns with to observed frames (batch, n_context_frames, state_dim).

        Codes of images stay as they are: the codec has learned to give the same ones for a disturbed image.
        """
        if self.config.context_noise == 0.0:
            return frames
        n = self.codec.vector_dim
        measured = noisy_vectors(frames[..., :n], self.config.context_noise, generator)
        return torch.cat([measured, frames[..., n:]], dim=-1)

    def predict_future(
        self, context: Context, codes: Tensor, t_video: Tensor, actions: Tensor, t_action: Tensor
    ) -> tuple[Tensor, KeysValues]:
        """Estimate the clean future codes from noisy ones at `t_video` (batch,) and actions at `t_action` (batch,).

        Also returns the keys and values of the future tokens, which the action decoder may read.
        """
        known = codes * (1 - t_video).view(-1, 1, 1)  # pure noise carries no information, so it is set to 0
        with products(self.config.bfloat16, codes):
            embedded = self.codec.embed_future(context.frames, known)
            tokens, cache = self.world(embedded, t_video, actions, t_action, context)
            return self.codec.predict_future(tokens).to(codes.dtype), cache

    def predict_action(
        self, context: Context, actions: Tensor, t_action: Tensor, future: KeysValues | None = None
    ) -> Tensor:
        """Estimate the clean action codes (batch, n_tokens, code_dim) from noisy ones at `t_action` (batch,).

        `future` are keys and values of future tokens, absent in policy mode.
        """
        return self.action(actions, t_action, context, future)

    def read_frames(self, frames: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """Read success probability (n,) and progress (n,) off frames (n, state_dim) of tasks (n,)."""
        logit, progress = self.read_out(self.codec.state(frames), task)
        return logit.sigmoid(), progress

    def dynamics_parameters(self) -> Iterator[nn.Parameter]:
        """What a refit trains beside the read-outs: the world decoder, from codes to codes."""
        yield from self.world.parameters()
        yield from self.codec.future_parameters()

    def action_parameters(self) -> Iterator[nn.Parameter]:
        """What PPO trains beside the critic: the action decoder."""
        yield from self.action.parameters()

    def windows(self, episodes: list[Episode], ends: bool = False) -> Windows:
        """Cut episodes into what this model reads and predicts; with `ends` also their last steps, see `Windows`."""
        return self.windows_of(episodes, self.spec.tasks, self.config.chunk_size, ends)

    def windows_of(self, episodes: list[Episode], tasks: tuple[str, ...], length: int, ends: bool = False) -> Windows:
        """Cut episodes of any tasks into windows of `length` steps."""
        config = self.config
        pictures = self.spec.slices["image"] if config.views else None
        windows = Windows(episodes, tasks, config.n_context_frames, length, pictures, config.chunk_size, ends)
        return windows.to(self.device)


class ContextEncoder(nn.Module):
    """Task token and context tokens, attending to each other only, so that they can be encoded once."""

    def __init__(self, config: ModelConfig, n_tasks: int, n_context_tokens: int) -> None:
        super().__init__()
        self.null_task = n_tasks
        self.task = nn.Embedding(n_tasks + 1, config.width)
        self.position = nn.Parameter(0.02 * torch.randn(n_context_tokens, config.width))
        self.stack = Stack(config.n_layers, config.width, config.width, config.n_heads)

    def forward(self, embedded: Tensor, task: Tensor) -> tuple[Tensor, KeysValues]:
        """Tokens (batch, n, width) and task (batch,) -> encoded context tokens and all keys and values."""
        tokens = torch.cat([self.task(task).unsqueeze(1), embedded + self.position], dim=1)
        tokens, cache = self.stack(tokens)
        return tokens[:, 1:], cache


class WorldDecoder(nn.Module):
    """Future tokens, reading the context; the actions are added to each of them.

    The features of the context are added as well. A refit freezes the encoder, so with attention alone the decoder
    could use nothing that the encoder does not already provide.
    """

    def __init__(self, config: ModelConfig, n_future_tokens: int, action_codec: ActionCodec) -> None:
        super().__init__()
        width = config.world_width
        self.context_in = nn.Linear(2 * config.width, width)
        self.action_in = nn.Linear(action_codec.n_tokens * action_codec.code_dim, width)
        self.position = nn.Parameter(0.02 * torch.randn(n_future_tokens, width))
        self.t_video, self.t_action = NoiseLevel(width), NoiseLevel(width)
        # Few tokens: width buys more than wide MLPs.
        self.stack = Stack(config.n_layers, width, config.width, config.n_heads, mlp_ratio=1)

    def forward(
        self, future: Tensor, t_video: Tensor, actions: Tensor, t_action: Tensor, context: Context
    ) -> tuple[Tensor, KeysValues]:
        """Decode future tokens (batch, n, world_width); an action at `t_action` = 1 is noise and left out."""
        known = actions.flatten(1) * (1 - t_action).unsqueeze(1)
        given = self.action_in(known) + self.context_in(context.features)
        future = future + self.position + given.unsqueeze(1) + self.t_video(t_video) + self.t_action(t_action)
        tokens: Tensor
        tokens, cache = self.stack(future, (context.cache,))
        return tokens, cache


class ActionDecoder(nn.Module):
    """Noisy action tokens, reading the context and, where it is given, the future.

    Without future tokens the features of the context are added to each token: PPO trains this shortcut, while the
    encoder is frozen. With future tokens the shortcut is off, so that the decoder must attend to them.
    """

    def __init__(self, config: ModelConfig, codec: ActionCodec) -> None:
        super().__init__()
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
    """MLP from single frames to success logit and progress; used on simulated, dreamed and recorded frames."""

    def __init__(self, dim: int, n_tasks: int, width: int = 192) -> None:
        super().__init__()
        self.task = nn.Embedding(n_tasks + 1, width)
        self.embed = nn.Linear(dim, width)
        self.mlp = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, frames: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised frames (n, dim), task (n,) -> success logit (n,), progress in [0, 1] (n,)."""
        out = self.mlp(self.embed(frames) + self.task(task))
        return out[:, 0], out[:, 1].sigmoid()


class Value(nn.Module):
    """The critic: an MLP on detached context features."""

    def __init__(self, dim: int, width: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features (n, dim) -> value (n,)."""
        value: Tensor = self.mlp(features)
        return value.squeeze(-1)
