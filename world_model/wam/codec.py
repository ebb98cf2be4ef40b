"""Codecs turn observations and actions into tokens, the only input of encoder and decoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from world_model.wam.normalizer import Normalizer


class Codec(ABC, nn.Module):
    """Interface of an observation codec: of a state vector, or of one that ends in codes of images.

    Predicted frames live in a *code space*: `encode_future` maps frames to numbers of about unit deviation, on which
    the flow works, and `decode_future` maps back.
    """

    n_context_tokens: int
    n_future_tokens: int
    code_dim: int
    state: Normalizer  # of a frame, for read-outs
    vector_dim: int  # numbers of a frame that are measured; those after them are codes of images

    @abstractmethod
    def fit(self, context: Tensor, future: Tensor) -> None:
        """Set statistics from context frames (n, n_context_frames, ...) and the frames after (n, chunk_size, ...)."""

    @abstractmethod
    def embed_context(self, context: Tensor) -> Tensor:
        """Context frames (batch, n_context_frames, ...) -> tokens (batch, n_context_tokens, width)."""

    @abstractmethod
    def encode_future(self, context: Tensor, future: Tensor) -> Tensor:
        """Frames after the context (batch, chunk_size, ...) -> codes (batch, n_future_tokens, code_dim)."""

    @abstractmethod
    def decode_future(self, context: Tensor, codes: Tensor) -> Tensor:
        """Undo `encode_future`."""

    @abstractmethod
    def embed_future(self, context: Tensor, codes: Tensor) -> Tensor:
        """Context frames and noisy codes of what follows -> tokens (batch, n_future_tokens, world_width)."""

    @abstractmethod
    def predict_future(self, tokens: Tensor) -> Tensor:
        """Decoded tokens (batch, n_future_tokens, world_width) -> estimate of the clean codes."""

    @abstractmethod
    def future_parameters(self) -> Iterator[nn.Parameter]:
        """What a refit trains: the ways from codes to tokens and back."""


NEAR = (0.02, 0.1)
"""Metres within which one thing is near another: the scales on which relative positions are given."""


class VectorCodec(Codec):
    """State vectors: `frames_per_token` frames make a token; the future is coded as the change since the newest.

    Frames are coded as changes, each divided by its standard deviation after that many steps, so that a millimetre of
    object motion weighs as much as a decimetre of hand motion. The position of one thing relative to another decides
    what moves next, on the scale of a contact. In absolute coordinates that difference is too small to be learned, so
    it is given explicitly beside the noisy codes.

    Args:
        dim: size of a state vector.
        positions: where in it a position stands, in metres.
        n_context_frames, chunk_size, frames_per_token, width, world_width: see `ModelConfig`.
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
        self.pairs = [(a, b) for a, b in combinations(positions, 2) if a.stop - a.start == b.stop - b.start]
        n_near = len(NEAR) * sum(a.stop - a.start for a, _ in self.pairs)
        self.n_context_tokens = 1
        self.n_future_tokens = chunk_size // frames_per_token
        self.code_dim = frames_per_token * dim
        self.state = Normalizer((dim,), floor=max(1e-3, noise), name="state")
        # These scale the predicted codes, not noisy inputs, so the floor is lower: a millimetre of the object counts.
        self.change = Normalizer((chunk_size, dim), floor=1e-3, name="state change")
        self.context_in = nn.Linear(n_context_frames * dim, width)
        self.future_in = nn.Linear(self.code_dim + n_near, world_width)
        self.future_out = nn.Linear(world_width, self.code_dim)

    def fit(self, context: Tensor, future: Tensor) -> None:
        """Set statistics from (n, n_context_frames, dim) and (n, chunk_size, dim)."""
        self.state.fit(context[:, -1])
        self.change.fit(future - context[:, -1:], centered=False)

    def embed_context(self, context: Tensor) -> Tensor:
        """Embed the newest frame and the changes between frames: velocities, too small to see in positions."""
        newest = self.state(context[:, -1])
        # A feature that hardly ever changes would be amplified to noise, so the divisor is at least the noise.
        changes = (context[:, 1:] - context[:, :-1]) / self.change.std[0].clamp(min=self.noise)
        tokens: Tensor = self.context_in(torch.cat([newest, changes.flatten(1)], dim=-1))
        return tokens.unsqueeze(1)

    def encode_future(self, context: Tensor, future: Tensor) -> Tensor:
        """(batch, chunk_size, dim) -> (batch, n_future_tokens, frames_per_token * dim)."""
        codes: Tensor = self.change(future - context[:, -1:])
        return codes.reshape(len(codes), self.n_future_tokens, self.code_dim)

    def decode_future(self, context: Tensor, codes: Tensor) -> Tensor:
        """(batch, n_future_tokens, frames_per_token * dim) -> (batch, chunk_size, dim)."""
        change = codes.reshape(len(codes), *self.change.mean.shape)
        return context[:, -1:] + self.change.invert(change)

    def embed_future(self, context: Tensor, codes: Tensor) -> Tensor:
        """Project codes, each beside the newest relative positions, to the width of the world decoder."""
        newest = context[:, -1:].expand(-1, self.n_future_tokens, -1)
        near = [torch.tanh((newest[..., a] - newest[..., b]) / scale) for a, b in self.pairs for scale in NEAR]
        tokens: Tensor = self.future_in(torch.cat([codes, *near], dim=-1))
        return tokens

    def predict_future(self, tokens: Tensor) -> Tensor:
        """Project tokens back to codes."""
        codes: Tensor = self.future_out(tokens)
        return codes

    def future_parameters(self) -> Iterator[nn.Parameter]:
        """Both projections."""
        yield from self.future_in.parameters()
        yield from self.future_out.parameters()


class SeeingCodec(Codec):
    """Frames that end in codes of images: one token for the vector before them, and one for each patch of an image.

    An image is taken at the end of each chunk and kept until the next: only the last frame of a chunk has a new one,
    and only that one is predicted, as the change of each code. All codes share one scale, so that patches with
    little motion contribute little to the loss.

    Args:
        vector: codec of what comes before the codes.
        n_tokens: patches of the images of all cameras at one moment.
        dim: numbers in the code of a patch.
        width, world_width: see `ModelConfig`.
    """

    def __init__(self, vector: VectorCodec, n_tokens: int, dim: int, width: int, world_width: int) -> None:
        super().__init__()
        self.vector, self.n_tokens, self.dim = vector, n_tokens, dim
        self.vector_dim = vector.state.mean.shape[0]
        self.n_context_tokens = vector.n_context_tokens + n_tokens
        self.n_future_tokens = vector.n_future_tokens + n_tokens
        self.code_dim = max(vector.code_dim, dim)
        self.state = Normalizer((self.vector_dim + n_tokens * dim,), floor=1e-3, name="state")
        self.scale = Normalizer((1,), floor=1e-3, name="picture change")
        self.context_in = nn.Linear(2 * dim, width)
        self.future_in = nn.Linear(dim, world_width)
        self.future_out = nn.Linear(world_width, dim)

    def fit(self, context: Tensor, future: Tensor) -> None:
        """Set statistics from (n, n_context_frames, state_dim) and (n, chunk_size, state_dim)."""
        self.vector.fit(context[..., : self.vector_dim], future[..., : self.vector_dim])
        self.state.fit(context[:, -1])
        change = (future[:, -1] - context[:, -1])[:, self.vector_dim :]
        self.scale.fit(change.reshape(-1, 1), centered=False)

    def embed_context(self, context: Tensor) -> Tensor:
        """Embed the code of each patch and its change since the previous image."""
        newest, change = self._patches(self.state(context[:, -1])), self._patches(context[:, -1] - context[:, 0])
        tokens = self.context_in(torch.cat([newest, change / self.scale.std], dim=-1))
        return torch.cat([self.vector.embed_context(context[..., : self.vector_dim]), tokens], dim=1)

    def encode_future(self, context: Tensor, future: Tensor) -> Tensor:
        """(batch, chunk_size, state_dim) -> (batch, n_future_tokens, code_dim), padded with zeros."""
        vector = self.vector.encode_future(context[..., : self.vector_dim], future[..., : self.vector_dim])
        change = self.scale(self._patches(future[:, -1]) - self._patches(context[:, -1]))
        return torch.cat([self._filled(vector), self._filled(change)], dim=1)

    def decode_future(self, context: Tensor, codes: Tensor) -> Tensor:
        """(batch, n_future_tokens, code_dim) -> (batch, chunk_size, state_dim), the new image in the last frame."""
        vector, change = self._split(codes)
        frames = self.vector.decode_future(context[..., : self.vector_dim], vector)
        before = context[:, -1:, self.vector_dim :]
        after = before + self.scale.invert(change).flatten(1).unsqueeze(1)
        pictures = torch.cat([before.expand(-1, frames.shape[1] - 1, -1), after], dim=1)
        return torch.cat([frames, pictures], dim=2)

    def embed_future(self, context: Tensor, codes: Tensor) -> Tensor:
        """Project the codes of the vector and those of the patches, each with a layer of its own."""
        vector, change = self._split(codes)
        embedded = self.vector.embed_future(context[..., : self.vector_dim], vector)
        return torch.cat([embedded, self.future_in(change)], dim=1)

    def predict_future(self, tokens: Tensor) -> Tensor:
        """Project tokens back to codes."""
        n = self.vector.n_future_tokens
        vector, change = self.vector.predict_future(tokens[:, :n]), self.future_out(tokens[:, n:])
        return torch.cat([self._filled(vector), self._filled(change)], dim=1)

    def future_parameters(self) -> Iterator[nn.Parameter]:
        """Both projections of patches and those of the vector."""
        yield from self.vector.future_parameters()
        yield from self.future_in.parameters()
        yield from self.future_out.parameters()

    def _patches(self, frames: Tensor) -> Tensor:
        return frames[..., self.vector_dim :].unflatten(-1, (self.n_tokens, self.dim))

    def _split(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        n = self.vector.n_future_tokens
        return codes[:, :n, : self.vector.code_dim], codes[:, n:, : self.dim]

    def _filled(self, codes: Tensor) -> Tensor:
        return nn.functional.pad(codes, (0, self.code_dim - codes.shape[-1]))


class ActionCodec(nn.Module):
    """Action chunks: `actions_per_token` actions make a token, in units of the deviation of the training actions."""

    def __init__(self, dim: int, chunk_size: int, actions_per_token: int) -> None:
        super().__init__()
        self.n_tokens = chunk_size // actions_per_token
        self.code_dim = actions_per_token * dim
        self.action = Normalizer((dim,), floor=1e-2, name="action")

    def encode(self, actions: Tensor) -> Tensor:
        """(batch, chunk_size, action_dim) -> (batch, n_tokens, code_dim)."""
        codes: Tensor = self.action(actions)
        return codes.reshape(len(actions), self.n_tokens, self.code_dim)

    def decode(self, codes: Tensor) -> Tensor:
        """Undo `encode`."""
        return self.action.invert(codes.reshape(len(codes), -1, self.action.mean.shape[0]))
