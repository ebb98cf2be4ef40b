"""Expected error of a dreamed chunk, estimated by heads that are fitted to dreams of recorded episodes.

For a recorded episode the true frames are known: dreaming its actions gives the true error of each dreamed chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from world_model.api import METRES, NORMALISED, Context
from world_model.data.episodes import Episode
from world_model.replays import HORIZON
from world_model.wam import modes
from world_model.wam.features import joined
from world_model.wam.network import Network
from world_model.wam.trust_heads import FARTHEST

SMALLEST = 1e-4
"""Errors and movements are at least this, in metres or normalised units, so that their logarithm is finite."""


def expected_error(model: Network, given: Tensor) -> Tensor:
    """Return the expected error (...) of chunks, from their features `given` (..., dim), which `read` computed.

    It is in the unit of `position_error`. The mean of the heads' log errors is a geometric mean of errors.
    """
    return model.trust(given.flatten(0, -2)).mean(0).exp().clamp(min=SMALLEST).view(given.shape[:-1])


def dreamed_movement(given: Tensor) -> Tensor:
    """Return the dreamed movement (...) of chunks, from their features `given` (..., dim).

    It is the baseline for the expected error: more movement tends to mean a larger error.
    """
    return given[..., -1].exp()


def position_error(model: Network, true: Tensor, dreamed: Tensor) -> Tensor:
    """Return the distance (...) between true and dreamed frames (..., frame_dim).

    It is the distance of the object in metres, or that of the normalised states if the state has no `object_pos`.
    """
    part = model.spec.slices.get("object_pos")
    if part is None:
        return (model.codec.state(true) - model.codec.state(dreamed)).norm(dim=-1)
    return (true - dreamed)[..., part].norm(dim=-1)


def error_unit(model: Network) -> str:
    """Return the unit of `position_error`: METRES, or NORMALISED if the state has no `object_pos`."""
    return METRES if "object_pos" in model.spec.slices else NORMALISED


def read(model: Network, context: Context, actions: Tensor, frames: Tensor) -> Tensor:
    """Return the input of the trust heads (n, dim): context features, action codes, log of the dreamed movement."""
    moved = position_error(model, context.frames[:, -1:], frames).mean(1, keepdim=True).clamp(min=SMALLEST).log()
    return torch.cat([context.features, model.action_codec.encode(actions).flatten(1), moved], dim=-1)


class ActionReplays(NamedTuple):
    """`n` dreams of recorded actions, with `HORIZON` chunks each."""

    given: Tensor  # (n, HORIZON, dim), input of the trust heads for each chunk
    errors: Tensor  # (n, HORIZON), true mean error of each chunk, the target
    task: Tensor  # (n,), the null task for a task that the model does not know
    episode: Tensor  # (n,), index of the episode among those that are long enough


@torch.no_grad()
def dream_of_real_actions(model: Network, episodes: list[Episode]) -> ActionReplays:
    """Dream the recorded actions for `HORIZON` chunks, starting from every `chunk_size`-th real state.

    Raises:
        UserError: no episode has `HORIZON` chunks.
    """
    size = model.config.chunk_size
    # Episodes may have tasks that the model does not know; those get indices after the known ones, and then the null
    # task.
    tasks = tuple(dict.fromkeys((*model.spec.tasks, *(e.task for e in episodes))))
    windows = model.windows_of(episodes, tasks, HORIZON * size)
    begins = windows.start - windows.first[windows.episode]  # step of its episode at which each window begins
    index = (begins % size == 0).nonzero().squeeze(1)
    batch = windows.at(index)
    batch.task = batch.task.clamp(max=model.null_task)
    # Dream chunk by chunk; each chunk is compared with the true frames at the same steps.
    given, errors = [], []
    rows = torch.arange(len(batch.task), device=model.device)
    dreams = modes.dream_on(model, joined(batch.context), batch.task, batch.actions, rows, 1)
    for (encoded, chunk, frames), true in zip(dreams, joined(batch.future).split(size, dim=1), strict=True):
        given.append(read(model, encoded, chunk, frames))
        errors.append(position_error(model, true, frames).mean(1))
    return ActionReplays(torch.stack(given, 1), torch.stack(errors, 1), batch.task, windows.episode[index])


def calibrate(model: Network, given: Tensor, errors: Tensor, n_steps: int = 4000, seed: int = 0) -> None:
    """Fit the trust heads, from new random weights, to the log of the true errors.

    Args:
        model: its `trust` is fitted in place.
        given: features of chunks (n, dim), see `read`, of episodes that no training stage has used.
        errors: true errors (n,).
        n_steps: optimizer steps.
        seed: of initial weights, batches and dropout.
    """
    trust, generator = model.trust, torch.Generator(model.device).manual_seed(seed)
    # Learn the log of the error: errors range over orders of magnitude.
    trust.given.fit(given)
    normalised, target = trust.given(given).clamp(-FARTHEST, FARTHEST), errors.clamp(min=SMALLEST).log()
    optimizer = torch.optim.AdamW(trust.heads.requires_grad_(True).parameters(), lr=1e-3, weight_decay=0.1)
    trust.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # initial weights and dropout use the global generator
        # New weights, so that a repeated calibration does not depend on the previous one.
        for layer in trust.heads.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        for _ in range(n_steps):
            # Each head gets its own batch, so that the ensemble stays diverse.
            index = torch.randint(len(given), (len(trust.heads), 256), generator=generator, device=model.device)
            predicted = torch.stack(
                [head(normalised[i]).squeeze(-1) for head, i in zip(trust.heads, index, strict=True)]
            )
            loss = (predicted - target[index]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    trust.eval().requires_grad_(False)
