"""Expected error of a dreamed chunk, estimated by heads that are fitted to dreams of recorded episodes.

For a recorded episode the true frames are known: dreaming its actions gives the true error of each dreamed chunk.
A head reads each chunk of a dream in turn and remembers what it needs of those before, because errors accumulate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from world_model.api import METRES, NORMALISED, Context
from world_model.data.episodes import Episode
from world_model.replays import HORIZON
from world_model.wam import modes
from world_model.wam.features import joined
from world_model.wam.network import Network
from world_model.wam.trust_heads import Trust
from world_model.wam.trust_inputs import surroundings

SMALLEST = 1e-4
"""Errors and movements are at least this, in metres or normalised units, so that their logarithm is finite."""

BATCH, PEAK, N_STEPS = 64, 2e-3, 4000
"""Dreams in a batch of a head, the largest learning rate, and the usual optimizer steps, of a calibration."""


def expected_error(model: Network, given: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Return the expected error (n,) of a chunk, and the memory of the heads after it.

    It is in the unit of `position_error`. The mean of the heads' log errors is a geometric mean of errors.

    Args:
        model: its trust heads are calibrated.
        given: features of the chunk (n, dim), see `read`.
        memory: of the heads, after the chunk before; `model.trust.begin` at the first chunk.
    """
    errors, memory = model.trust(given, memory)
    return errors.mean(0).exp().clamp(min=SMALLEST), memory


def expected_errors(model: Network, given: Tensor) -> Tensor:
    """Return the expected errors (n, n_chunks) of whole dreams, from the features `given` (n, n_chunks, dim)."""
    memory, found = model.trust.begin(len(given)), []
    for chunk in given.unbind(1):
        expected, memory = expected_error(model, chunk, memory)
        found.append(expected)
    return torch.stack(found, dim=1)


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
    """Return the input of the trust heads (n, dim) for a chunk.

    It has context features, action codes, what surrounds and moves (not for the heads of older checkpoints, which have
    no memory), and last the log of the dreamed movement.
    """
    moved = position_error(model, context.frames[:, -1:], frames).mean(1, keepdim=True).clamp(min=SMALLEST).log()
    parts = [context.features, model.action_codec.encode(actions).flatten(1)]
    if model.trust.n_memory:
        parts.append(surroundings(model.codec, context.frames, frames))
    return torch.cat([*parts, moved], dim=-1)


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
    index = (windows.begins % size == 0).nonzero().squeeze(1)
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


def calibrate(
    model: Network,
    given: Tensor,
    errors: Tensor,
    n_steps: int,
    tick: Callable[[float], None] = lambda share: None,
) -> None:
    """Fit the trust heads, from new random weights, to the logs of the true errors.

    The loss has two parts of equal weight: the squared difference of each chunk, and that of the mean of each dream.

    Args:
        model: its `trust` is fitted in place.
        given: features of the chunks of dreams (n, n_chunks, dim), see `read`, of episodes that no training stage has
            used. A dream begins at a real frame.
        errors: true errors (n, n_chunks).
        n_steps: optimizer steps.
        tick: called with the finished share of the steps.
    """
    trust, generator = model.trust, torch.Generator(model.device).manual_seed(0)
    # Learn the log of the error: errors range over orders of magnitude.
    trust.given.fit(given.flatten(0, 1))
    normalised, target = trust.normalised(given), errors.clamp(min=SMALLEST).log()
    optimizer = torch.optim.AdamW(trust.heads.requires_grad_(True).parameters(), lr=PEAK, weight_decay=0.1)
    trust.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # initial weights and dropout use the global generator
        _renew(trust, float(target.mean()))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=n_steps + 1)
        for step in range(n_steps):
            # Each head gets its own batch, so that the ensemble stays diverse.
            index = torch.randint(len(given), (len(trust.heads), BATCH), generator=generator, device=model.device)
            predicted, true = trust.along(normalised[index]), target[index]
            loss = (predicted - true).square().mean() + (_log_mean(predicted) - _log_mean(true)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            tick((step + 1) / n_steps)
    trust.eval().requires_grad_(False)


def _renew(trust: Trust, mean: float) -> None:
    """Draw new weights, so that a calibration does not depend on the one before, and start at the `mean` log error."""
    for layer in trust.heads.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    with torch.no_grad():
        for head in trust.heads.children():
            *_, last = head.children()
            assert isinstance(last, nn.Linear)
            last.bias[0] = mean


def _log_mean(logs: Tensor) -> Tensor:
    """Return the log of the mean over chunks (..., n_chunks) of errors that are given as logs."""
    return logs.logsumexp(-1) - math.log(logs.shape[-1])
