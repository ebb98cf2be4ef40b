"""The expected error of each dreamed chunk, learned from dreams of recorded episodes, whose true frames are known."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from world_model.api import Context
from world_model.data.episodes import Episode
from world_model.wam import modes
from world_model.wam.network import Network
from world_model.wam.trust_heads import FARTHEST

HORIZON = 4
"""Chunks of a dream that errors are learned from: the first begins in a real state, each other where the last ended."""

METRES, NORMALISED = "m", "normalised units"
"""Units of errors: how far the object is off; or the whole state, in standard deviations, as of a model with images."""

SMALLEST = 1e-4
"""Errors and movements below this, in metres or normalised units, are all the same."""


def expected_error(model: Network, given: Tensor) -> Tensor:
    """Expected error (...) of chunks of which `read` made `given` (..., dim), in the units of `position_error`."""
    return model.trust(given.flatten(0, -2)).mean(0).exp().clamp(min=SMALLEST).view(given.shape[:-1])


def dreamed_movement(given: Tensor) -> Tensor:
    """Dreamed movement (...) of chunks of which `read` made `given` (..., dim): the baseline that trust has to beat."""
    return given[..., -1].exp()


def position_error(model: Network, true: Tensor, dreamed: Tensor) -> Tensor:
    """Distance of frames (..., state_dim): metres of the object, or of normalised states where there is none. (...)."""
    part = model.spec.slices.get("object_pos")
    if part is None:
        return (model.codec.state(true) - model.codec.state(dreamed)).norm(dim=-1)
    return (true - dreamed)[..., part].norm(dim=-1)


def error_unit(model: Network) -> str:
    """Return the unit of `position_error`: METRES, or NORMALISED where the model does not know where the object is."""
    return METRES if "object_pos" in model.spec.slices else NORMALISED


def read(model: Network, context: Context, actions: Tensor, frames: Tensor) -> Tensor:
    """Return the input of the trust heads (n, dim): features of the context, actions, log of the dreamed movement."""
    moved = position_error(model, context.frames[:, -1:], frames).mean(1, keepdim=True).clamp(min=SMALLEST).log()
    return torch.cat([context.features, model.action_codec.encode(actions).flatten(1), moved], dim=-1)


class Retold(NamedTuple):
    """`n` dreams of recorded actions, `HORIZON` chunks each."""

    given: Tensor  # (n, HORIZON, dim), input of the trust heads for each chunk
    errors: Tensor  # (n, HORIZON), true error, the target
    task: Tensor  # (n,), the null task for one that the model does not know
    episode: Tensor  # (n,), number of the episode among those that are long enough


@torch.no_grad()
def dream_of_real_actions(model: Network, episodes: list[Episode]) -> Retold:
    """Dream the executed actions from every `chunk_size`-th real state, `HORIZON` chunks far.

    Raises:
        UserError: no episode is as long as that.
    """
    size = model.config.chunk_size
    tasks = tuple(dict.fromkeys((*model.spec.tasks, *(e.task for e in episodes))))
    windows = model.windows_of(episodes, tasks, HORIZON * size)
    begins = windows.start - windows.first[windows.episode]
    index = (begins % size == 0).nonzero().squeeze(1)
    batch = windows.at(index)
    batch.task = batch.task.clamp(max=model.encoder.null_task)
    given, errors = [], []
    rows = torch.arange(len(batch.task), device=model.device)
    dreams = modes.dream_on(model, batch.context, batch.task, batch.actions, rows, 1)
    for (encoded, chunk, frames), true in zip(dreams, batch.future.split(size, dim=1), strict=True):
        given.append(read(model, encoded, chunk, frames))
        errors.append(position_error(model, true, frames).mean(1))
    return Retold(torch.stack(given, 1), torch.stack(errors, 1), batch.task, windows.episode[index])


def calibrate(model: Network, given: Tensor, errors: Tensor, n_steps: int = 4000, seed: int = 0) -> None:
    """Fit the heads, from new weights, to errors (n,) of chunks `given` (n, dim) of episodes that no stage has seen."""
    trust, generator = model.trust, torch.Generator(model.device).manual_seed(seed)
    trust.given.fit(given)
    normalised, target = trust.given(given).clamp(-FARTHEST, FARTHEST), errors.clamp(min=SMALLEST).log()
    optimizer = torch.optim.AdamW(trust.heads.requires_grad_(True).parameters(), lr=1e-3, weight_decay=0.1)
    trust.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # initial weights and dropout use the global generator
        for layer in trust.heads.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        for _ in range(n_steps):
            # each head gets a batch of its own, so that the ensemble stays diverse
            index = torch.randint(len(given), (len(trust.heads), 256), generator=generator, device=model.device)
            said = torch.stack([head(normalised[i]).squeeze(-1) for head, i in zip(trust.heads, index, strict=True)])
            loss = (said - target[index]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    trust.eval().requires_grad_(False)
