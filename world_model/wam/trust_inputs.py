"""Where a dreamed chunk takes place, and what moves in it: what the trust heads read beside the encoded context."""

from __future__ import annotations

import torch
from torch import Tensor

from world_model.wam.codec import NEAR, Codec, PatchCodec, VectorCodec

NEAREST = 1e-3
"""Distances are at least this, in metres, so that their logarithm is finite."""


def surroundings(codec: Codec, context: Tensor, frames: Tensor) -> Tensor:
    """Describe a dreamed chunk, dream by dream.

    It has the newest state, the changes between the context frames, the dreamed change of the state, and relative
    positions and distances along the chunk; with images also how much each patch changes.

    Args:
        codec: scales states and changes, and knows which slices are positions.
        context: frames before the chunk (n, n_context_frames, frame_dim).
        frames: dreamed frames (n, chunk_size, frame_dim).

    Returns:
        (n, dim).
    """
    if isinstance(codec, PatchCodec):
        n = codec.vector_dim
        state = _vector(codec.vector, context[..., :n], frames[..., :n])
        return torch.cat([state, _patches(codec, context, frames)], dim=1)
    assert isinstance(codec, VectorCodec)
    return _vector(codec, context, frames)


def n_surroundings(codec: Codec, n_context_frames: int, chunk_size: int, frame_dim: int) -> int:
    """Return the size of the result of `surroundings`."""
    context, frames = (codec.state.mean.new_zeros(1, n, frame_dim) for n in (n_context_frames, chunk_size))
    return surroundings(codec, context, frames).shape[1]


def _vector(codec: VectorCodec, context: Tensor, frames: Tensor) -> Tensor:
    """Describe the state vectors `context` (n, n_context_frames, dim) and `frames` (n, chunk_size, dim)."""
    newest, size = context[:, -1:], frames.shape[1]
    # The first, a middle and the last frame show the course of the chunk.
    change = ((frames - newest) / codec.change.std)[:, [0, (size - 1) // 2, size - 1]]
    parts = [(newest - codec.state.mean) / codec.state.std, codec.velocities(context), change]
    path = torch.cat([newest, frames], dim=1)
    for a, b in codec.pairs:
        apart = path[..., a] - path[..., b]
        parts.append(apart.norm(dim=-1, keepdim=True).clamp(min=NEAREST).log())
        # Direction where the chunk begins and ends; see `VectorCodec.embed_future` for the scales.
        parts += [torch.tanh(apart[:, [0, -1]] / scale) for scale in NEAR]
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def _patches(codec: PatchCodec, context: Tensor, frames: Tensor) -> Tensor:
    """Describe how much each patch of the images changed before the chunk and changes in it (n, 2 * n_tokens)."""
    before, newest, after = (x[:, codec.vector_dim :] for x in (context[:, 0], context[:, -1], frames[:, -1]))
    changes = torch.stack([newest - before, after - newest], dim=1).unflatten(-1, (codec.n_tokens, codec.dim))
    return (changes.norm(dim=-1) / codec.scale.std).clamp(min=NEAREST).log().flatten(1)
