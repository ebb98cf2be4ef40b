"""The five modes of one set of weights: policy, dream, inverse, video, joint. All integrate the ODE deterministically.

Each mode gets its starting noise as an argument, so that a call can be repeated exactly. `n_steps` is the number of
denoising steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from world_model.api import Context
from world_model.flow import noise_level, noised, seeded_noise, step_mean
from world_model.wam.network import Network


def policy(
    model: Network, context: Context, noise: Tensor, n_steps: int, held: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Decode an action chunk (batch, chunk_size, action_dim), clamped to the action bounds, without future tokens.

    The first actions can be fixed: on a robot, those that are executed while this chunk is computed. `held` is a chunk
    (batch, chunk_size, action_dim) and the number of its first actions that are fixed (batch,). They are returned
    unchanged, and the rest is denoised to continue them (inpainting, as in real-time chunking, Black et al.,
    2506.07339).
    """
    x, codec = noise, model.action_codec
    if held is not None:
        actions_held, n_held = held
        # One code per action dimension: repeat the mask of the actions for all codes of an action.
        is_held = torch.arange(model.config.chunk_size, device=x.device) < n_held.unsqueeze(1)
        codes_held, is_held_code = codec.encode(actions_held), is_held.repeat_interleave(actions_held.shape[2], dim=1)
        is_held_code = is_held_code.view_as(x)
    for i in range(n_steps):
        t = _level(x, i, n_steps)
        if held is not None:  # put the fixed actions on the path at this noise level
            x = torch.where(is_held_code, noised(codes_held, noise, t), x)
        x = step_mean(x, model.predict_action(context, x, t), i, n_steps)
    actions = codec.decode(x).clamp(model.action_low, model.action_high)
    return actions if held is None else torch.where(is_held.unsqueeze(2), actions_held, actions)


def dream(model: Network, context: Context, actions: Tensor, noise: Tensor, n_steps: int) -> Tensor:
    """Predict frames (batch, chunk_size, frame_dim) that follow given `actions` (batch, chunk_size, action_dim)."""
    return _predict_frames(model, context, model.action_codec.encode(actions), 0.0, noise, n_steps)


def dream_on(
    model: Network, context: Tensor, task: Tensor, actions: Tensor, seed: Tensor, n_steps: int
) -> Iterator[tuple[Context, Tensor, Tensor]]:
    """Dream several chunks of `actions` (batch, n * chunk_size, action_dim), each from the predicted frames before it.

    The first chunk starts from the frames `context` (batch, n_context_frames, frame_dim) of `task` (batch,). The noise
    depends on `seed` (batch,) and the number of the chunk. Yields for each chunk the encoded context, the actions
    (batch, chunk_size, action_dim) and the predicted frames (batch, chunk_size, frame_dim).
    """
    shape = model.codec.n_future_tokens, model.codec.code_dim
    for i, chunk in enumerate(actions.split(model.config.chunk_size, dim=1)):
        encoded = model.encode(context, task)
        frames = dream(model, encoded, chunk, seeded_noise(seed, torch.full_like(seed, i), shape), n_steps)
        yield encoded, chunk, frames
        # The newest predicted frames are the context of the next chunk.
        context = torch.cat([context, frames], dim=1)[:, -model.config.n_context_frames :]


def video(model: Network, context: Context, noise: Tensor, n_steps: int) -> Tensor:
    """Predict frames (batch, chunk_size, frame_dim) without knowing the actions."""
    # At t_action = 1 the network gives actions weight 0, so their values do not matter.
    nothing = noise.new_zeros(len(noise), model.action_codec.n_tokens, model.action_codec.code_dim)
    return _predict_frames(model, context, nothing, 1.0, noise, n_steps)


def inverse(model: Network, context: Context, frames: Tensor, noise: Tensor, n_steps: int) -> Tensor:
    """Recover the actions (batch, chunk_size, action_dim) that explain `frames` (batch, chunk_size, frame_dim)."""
    # Future tokens at t_video = 0 (clean) and t_action = 1 (actions unknown); the action decoder attends to them.
    codes, clean = model.codec.encode_future(context.frames, frames), noise.new_zeros(len(noise))
    _, future = model.predict_future(context, codes, clean, noise, 1.0 - clean)
    x = noise
    for i in range(n_steps):
        x = step_mean(x, model.predict_action(context, x, _level(x, i, n_steps), future), i, n_steps)
    return model.action_codec.decode(x).clamp(model.action_low, model.action_high)


def joint(
    model: Network, context: Context, video_noise: Tensor, action_noise: Tensor, n_steps: int
) -> tuple[Tensor, Tensor]:
    """Denoise frames (batch, chunk_size, frame_dim) and actions (batch, chunk_size, action_dim) together.

    For evaluation and videos only, not for PPO: each denoising step of the future depends on the weights of the action
    decoder, so there is no likelihood ratio of the actions alone.
    """
    x_video, x_action = video_noise, action_noise
    for i in range(n_steps):
        # Both modalities have the same noise level: first the future, then the action that reads the future tokens.
        t = _level(x_action, i, n_steps)
        clean_video, future = model.predict_future(context, x_video, t, x_action, t)
        clean_action = model.predict_action(context, x_action, t, future)
        x_video, x_action = step_mean(x_video, clean_video, i, n_steps), step_mean(x_action, clean_action, i, n_steps)
    actions = model.action_codec.decode(x_action).clamp(model.action_low, model.action_high)
    return model.codec.decode_future(context.frames, x_video), actions


def video_noise(model: Network, n: int, generator: torch.Generator) -> Tensor:
    """Draw the starting noise of the future (n, n_future_tokens, code_dim)."""
    shape = (n, model.codec.n_future_tokens, model.codec.code_dim)
    return torch.randn(shape, generator=generator, device=generator.device)


def action_noise(model: Network, n: int, generator: torch.Generator) -> Tensor:
    """Draw the starting noise of an action chunk (n, n_tokens, code_dim)."""
    shape = (n, model.action_codec.n_tokens, model.action_codec.code_dim)
    return torch.randn(shape, generator=generator, device=generator.device)


def _predict_frames(
    model: Network, context: Context, actions: Tensor, t_action: float, noise: Tensor, n_steps: int
) -> Tensor:
    """Denoise the future with action codes at noise level `t_action`; return frames (batch, chunk_size, frame_dim)."""
    x = noise
    given = x.new_full((len(x),), t_action)
    for i in range(n_steps):
        clean, _ = model.predict_future(context, x, _level(x, i, n_steps), actions, given)
        x = step_mean(x, clean, i, n_steps)
    return model.codec.decode_future(context.frames, x)


def _level(x: Tensor, step: int, n_steps: int) -> Tensor:
    """Return the noise level of a denoising step for every row of `x` (batch,)."""
    return x.new_full((len(x),), noise_level(step, n_steps))
