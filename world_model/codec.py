"""Codecs turn observations and actions into tokens; the core of the model sees nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod

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
    def embed_future(self, codes: Tensor) -> Tensor:
        """Noisy codes -> tokens (batch, n_future_tokens, world_width)."""

    @abstractmethod
    def predict_future(self, tokens: Tensor) -> Tensor:
        """Decoded tokens (batch, n_future_tokens, world_width) -> estimate of the clean codes."""


class VectorCodec(Codec):
    """State vectors: `frames_per_token` frames make a token; the future is coded as the change since the newest.

    Coding changes, each scaled by its usual size after so many steps, lets a millimetre of object motion weigh as much
    as a decimetre of hand motion.
    """

    def __init__(
        self, dim: int, n_context_frames: int, chunk_size: int, frames_per_token: int, width: int, world_width: int
    ) -> None:
        super().__init__()
        self.n_context_tokens = 1
        self.n_future_tokens = chunk_size // frames_per_token
        self.code_dim = frames_per_token * dim
        self.state = Normalizer((dim,), floor=1e-3, name="state")
        self.change = Normalizer((chunk_size, dim), floor=1e-3, name="state change")
        self.context_in = nn.Linear(n_context_frames * dim, width)
        self.future_in = nn.Linear(self.code_dim, world_width)
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

    def embed_future(self, codes: Tensor) -> Tensor:
        """Project codes to the width of the world decoder."""
        tokens: Tensor = self.future_in(codes)
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
