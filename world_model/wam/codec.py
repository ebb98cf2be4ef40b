"""Codecs convert observations and actions to tokens, the only input of encoder and decoders, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from world_model.wam.normalizer import Normalizer


class Codec(ABC, nn.Module):
    """Interface of an observation codec, for frames that are a state vector, or a state vector and codes of images.

    Future frames are predicted in a *code space*: `encode_future` maps frames to codes with a standard deviation of
    about 1, on which flow matching works, and `decode_future` maps back.
    """

    n_context_tokens: int
    n_future_tokens: int
    code_dim: int
    state: Normalizer  # statistics of single frames, for read-outs
    vector_dim: int  # size of the state vector at the start of a frame; codes of images follow it

    @abstractmethod
    def fit(self, context: Tensor, future: Tensor) -> None:
        """Set the statistics from context (n, n_context_frames, ...) and future frames (n, chunk_size, ...)."""

    @abstractmethod
    def embed_context(self, context: Tensor) -> Tensor:
        """Embed context frames (batch, n_context_frames, ...) as tokens (batch, n_context_tokens, width)."""

    @abstractmethod
    def encode_future(self, context: Tensor, future: Tensor) -> Tensor:
        """Encode future frames (batch, chunk_size, ...) as codes (batch, n_future_tokens, code_dim)."""

    @abstractmethod
    def decode_future(self, context: Tensor, codes: Tensor) -> Tensor:
        """Decode codes (batch, n_future_tokens, code_dim) to future frames; the inverse of `encode_future`."""

    @abstractmethod
    def embed_future(self, context: Tensor, codes: Tensor) -> Tensor:
        """Embed noisy codes of the future, given the context, as tokens (batch, n_future_tokens, world_width)."""

    @abstractmethod
    def predict_future(self, tokens: Tensor) -> Tensor:
        """Project decoded tokens (batch, n_future_tokens, world_width) to an estimate of the clean codes."""

    @abstractmethod
    def future_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that a refit trains: the projections from codes to tokens and back."""


NEAR = (0.02, 0.1)
"""Length scales, in metres, of the relative positions that the world decoder gets: contact and approach."""


class VectorCodec(Codec):
    """Codec of state vectors: `frames_per_token` frames make a token.

    A future frame is coded as its change since the newest context frame, divided by the standard deviation of the
    change after that many steps. So a millimetre of object motion weighs as much as a decimetre of hand motion.

    Which object moves next depends on relative positions, on the scale of a contact. In absolute coordinates this
    difference is too small to be learned, so the world decoder gets relative positions as additional inputs.

    Args:
        dim: size of a state vector.
        positions: slices of the state vector that are positions, in metres.
        n_context_frames: this and the next four as in `ModelConfig`.
        chunk_size: see there.
        frames_per_token: see there.
        width: see there.
        world_width: see there.
        noise: largest deviation of the noise on context frames; inputs of the encoder are divided by at least this.
    """

    def __init__(
        self,
        dim: int,
        positions: Sequence[slice],
        n_context_frames: int,
        chunk_size: int,
        frames_per_token: int,
        width: int,
        world_width: int,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.vector_dim, self.noise = dim, noise
        # Relative positions need two slices of the same size.
        self.pairs = [(a, b) for a, b in combinations(positions, 2) if a.stop - a.start == b.stop - b.start]
        n_near = len(NEAR) * sum(a.stop - a.start for a, _ in self.pairs)
        self.n_context_tokens = 1
        self.n_future_tokens = chunk_size // frames_per_token
        self.code_dim = frames_per_token * dim
        self.state = Normalizer((dim,), floor=max(1e-3, noise), name="state")
        # This scales predicted codes, not noisy inputs, so the floor is lower: a millimetre of object motion counts.
        self.change = Normalizer((chunk_size, dim), floor=1e-3, name="state change")
        self.context_in = nn.Linear(n_context_frames * dim, width)
        self.future_in = nn.Linear(self.code_dim + n_near, world_width)
        self.future_out = nn.Linear(world_width, self.code_dim)

    def fit(self, context: Tensor, future: Tensor) -> None:
        """Set the statistics from context (n, n_context_frames, dim) and future frames (n, chunk_size, dim)."""
        self.state.fit(context[:, -1])
        # Not centred, so that a code of 0 means "no change".
        self.change.fit(future - context[:, -1:], centered=False)

    def embed_context(self, context: Tensor) -> Tensor:
        """Embed the newest frame and the velocities as one token (batch, 1, width).

        Velocities are too small to be learned from differences of positions.
        """
        newest = self.state(context[:, -1])
        tokens: Tensor = self.context_in(torch.cat([newest, self.velocities(context).flatten(1)], dim=-1))
        return tokens.unsqueeze(1)

    def velocities(self, context: Tensor) -> Tensor:
        """Return the normalised changes between context frames (batch, n_context_frames - 1, dim)."""
        # Divide by at least the noise: otherwise a feature that hardly ever changes would be amplified noise.
        return (context[:, 1:] - context[:, :-1]) / self.change.std[0].clamp(min=self.noise)

    def encode_future(self, context: Tensor, future: Tensor) -> Tensor:
        """Encode frames (batch, chunk_size, dim) as codes (batch, n_future_tokens, frames_per_token * dim)."""
        codes: Tensor = self.change(future - context[:, -1:])
        return codes.reshape(len(codes), self.n_future_tokens, self.code_dim)

    def decode_future(self, context: Tensor, codes: Tensor) -> Tensor:
        """Decode codes (batch, n_future_tokens, frames_per_token * dim) to frames (batch, chunk_size, dim)."""
        change = codes.reshape(len(codes), *self.change.mean.shape)
        return context[:, -1:] + self.change.invert(change)

    def embed_future(self, context: Tensor, codes: Tensor) -> Tensor:
        """Project each code, together with the newest relative positions, to the width of the world decoder."""
        newest = context[:, -1:].expand(-1, self.n_future_tokens, -1)
        # tanh resolves differences up to about `scale` and is nearly constant beyond.
        near = [torch.tanh((newest[..., a] - newest[..., b]) / scale) for a, b in self.pairs for scale in NEAR]
        tokens: Tensor = self.future_in(torch.cat([codes, *near], dim=-1))
        return tokens

    def predict_future(self, tokens: Tensor) -> Tensor:
        """Project tokens (batch, n_future_tokens, world_width) to codes."""
        codes: Tensor = self.future_out(tokens)
        return codes

    def future_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the projections from codes to tokens and back."""
        yield from self.future_in.parameters()
        yield from self.future_out.parameters()


class PatchCodec(Codec):
    """Codec of frames that end in codes of images: the tokens of `vector`, then one token for each patch.

    The model gets one image per chunk, at its end, and keeps it until the next. So only the last frame of a chunk has a
    new image, and only this one is predicted, as the change of each code. All codes share one scale, so that patches
    with little motion contribute little to the loss.

    Args:
        vector: codec of the state vector at the start of a frame.
        n_tokens: number of patches of all cameras together, at one moment.
        dim: size of the code of a patch.
        width: as in `ModelConfig`.
        world_width: as in `ModelConfig`.
    """

    def __init__(self, vector: VectorCodec, n_tokens: int, dim: int, width: int, world_width: int) -> None:
        super().__init__()
        self.vector, self.n_tokens, self.dim = vector, n_tokens, dim
        self.vector_dim = vector.state.mean.shape[0]
        self.n_context_tokens = vector.n_context_tokens + n_tokens
        self.n_future_tokens = vector.n_future_tokens + n_tokens
        self.code_dim = max(vector.code_dim, dim)  # the shorter codes are padded with zeros
        self.state = Normalizer((self.vector_dim + n_tokens * dim,), floor=1e-3, name="state")
        self.scale = Normalizer((1,), floor=1e-3, name="image change")
        self.context_in = nn.Linear(2 * dim, width)
        self.future_in = nn.Linear(dim, world_width)
        self.future_out = nn.Linear(world_width, dim)

    def fit(self, context: Tensor, future: Tensor) -> None:
        """Set the statistics from context (n, n_context_frames, frame_dim) and future (n, chunk_size, frame_dim)."""
        self.vector.fit(context[..., : self.vector_dim], future[..., : self.vector_dim])
        self.state.fit(context[:, -1])
        # One scale for all codes, so flatten patches and dimensions.
        change = (future[:, -1] - context[:, -1])[:, self.vector_dim :]
        self.scale.fit(change.reshape(-1, 1), centered=False)

    def embed_context(self, context: Tensor) -> Tensor:
        """Embed the vector, and for each patch its code and the change since the previous image."""
        # The oldest context frame holds the previous image, see `Windows`.
        newest, change = self._patches(self.state(context[:, -1])), self._patches(context[:, -1] - context[:, 0])
        tokens = self.context_in(torch.cat([newest, change / self.scale.std], dim=-1))
        return torch.cat([self.vector.embed_context(context[..., : self.vector_dim]), tokens], dim=1)

    def encode_future(self, context: Tensor, future: Tensor) -> Tensor:
        """Encode frames (batch, chunk_size, frame_dim) as (batch, n_future_tokens, code_dim), padded with zeros."""
        vector = self.vector.encode_future(context[..., : self.vector_dim], future[..., : self.vector_dim])
        change = self.scale(self._patches(future[:, -1]) - self._patches(context[:, -1]))
        return torch.cat([self._filled(vector), self._filled(change)], dim=1)

    def decode_future(self, context: Tensor, codes: Tensor) -> Tensor:
        """Decode codes (batch, n_future_tokens, code_dim) to frames (batch, chunk_size, frame_dim).

        The last frame gets the new image, the others keep that of the context.
        """
        vector, change = self._split(codes)
        frames = self.vector.decode_future(context[..., : self.vector_dim], vector)
        before = context[:, -1:, self.vector_dim :]
        after = before + self.scale.invert(change).flatten(1).unsqueeze(1)
        latents = torch.cat([before.expand(-1, frames.shape[1] - 1, -1), after], dim=1)
        return torch.cat([frames, latents], dim=2)

    def embed_future(self, context: Tensor, codes: Tensor) -> Tensor:
        """Project the codes of vector and patches, each with its own layer."""
        vector, change = self._split(codes)
        embedded = self.vector.embed_future(context[..., : self.vector_dim], vector)
        return torch.cat([embedded, self.future_in(change)], dim=1)

    def predict_future(self, tokens: Tensor) -> Tensor:
        """Project tokens (batch, n_future_tokens, world_width) to codes, padded with zeros to `code_dim`."""
        n = self.vector.n_future_tokens
        vector, change = self.vector.predict_future(tokens[:, :n]), self.future_out(tokens[:, n:])
        return torch.cat([self._filled(vector), self._filled(change)], dim=1)

    def future_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the projections of vector and patches."""
        yield from self.vector.future_parameters()
        yield from self.future_in.parameters()
        yield from self.future_out.parameters()

    def _patches(self, frames: Tensor) -> Tensor:
        """Return the codes of the patches in frames (..., frame_dim). Shape: (..., n_tokens, dim)."""
        return frames[..., self.vector_dim :].unflatten(-1, (self.n_tokens, self.dim))

    def _split(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Split padded codes into those of the vector and those of the patches, without their padding."""
        n = self.vector.n_future_tokens
        return codes[:, :n, : self.vector.code_dim], codes[:, n:, : self.dim]

    def _filled(self, codes: Tensor) -> Tensor:
        """Pad codes with zeros to `code_dim`."""
        return nn.functional.pad(codes, (0, self.code_dim - codes.shape[-1]))


class ActionCodec(nn.Module):
    """Codec of action chunks: `actions_per_token` normalised actions make a token."""

    def __init__(self, dim: int, chunk_size: int, actions_per_token: int) -> None:
        super().__init__()
        self.n_tokens = chunk_size // actions_per_token
        self.code_dim = actions_per_token * dim
        self.action = Normalizer((dim,), floor=1e-2, name="action")

    def encode(self, actions: Tensor) -> Tensor:
        """Encode actions (batch, chunk_size, action_dim) as codes (batch, n_tokens, code_dim)."""
        codes: Tensor = self.action(actions)
        return codes.reshape(len(actions), self.n_tokens, self.code_dim)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (batch, n_tokens, code_dim) to actions (batch, chunk_size, action_dim), not clamped."""
        return self.action.invert(codes.reshape(len(codes), -1, self.action.mean.shape[0]))
