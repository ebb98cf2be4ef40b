"""Codecs turn observations and actions into tokens; the core of the model sees nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from world_model.normalizer import Normalizer


class Codec(ABC, nn.Module):
    """Interface of an observation codec, such as a state vector's or (later) an image's.

    Predicted frames live in a *code space*: `encode_future` maps frames to numbers of about unit deviation, on which
    the flow works, and `decode_future` maps back.
    """

    n_context_tokens: int
    n_future_tokens: int

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


NEAR = (0.02, 0.1)
"""Metres within which one thing is near another: the scales on which relative positions are given."""


class VectorCodec(Codec):
    """State vectors: `frames_per_token` frames make a token; the future is coded as the change since the newest.

    Coding changes, each scaled by its usual size after so many steps, lets a millimetre of object motion weigh as much
    as a decimetre of hand motion. Where two things are to each other decides what moves next, on the scale of a
    contact; as the difference of two places in a room it drowns, so it is given beside the noisy codes.

    Args:
        dim: size of a state vector.
        positions: where in it a position stands, in metres.
        n_context_frames, chunk_size, frames_per_token, width, world_width: see `ModelConfig`.
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
    ) -> None:
        super().__init__()
        self.pairs = [(a, b) for a, b in combinations(positions, 2) if a.stop - a.start == b.stop - b.start]
        n_near = len(NEAR) * sum(a.stop - a.start for a, _ in self.pairs)
        self.n_context_tokens = 1
        self.n_future_tokens = chunk_size // frames_per_token
        self.code_dim = frames_per_token * dim
        self.state = Normalizer((dim,), floor=1e-3, name="state")
        self.change = Normalizer((chunk_size, dim), floor=1e-3, name="state change")
        self.context_in = nn.Linear(n_context_frames * dim, width)
        self.future_in = nn.Linear(self.code_dim + n_near, world_width)
        self.future_out = nn.Linear(world_width, self.code_dim)

    def fit(self, context: Tensor, future: Tensor) -> None:
        """Set statistics from (n, n_context_frames, dim) and (n, chunk_size, dim)."""
        self.state.fit(context[:, -1])
        self.change.fit(future - context[:, -1:], centered=False)

    def embed_context(self, context: Tensor) -> Tensor:
        """Newest frame, and how the frames changed (velocities are lost in the scale of positions otherwise)."""
        newest = self.state(context[:, -1])
        changes = (context[:, 1:] - context[:, :-1]) / self.change.std[0]
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
