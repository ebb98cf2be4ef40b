"""Metrics of a world model on held-out episodes: the error where something moves, and the effect of the actions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from world_model.data.windows import Batch, Windows
from world_model.replays import HORIZON, MOST_WINDOWS, moving_windows
from world_model.spec import LATENTS, STATE
from world_model.wam import modes
from world_model.wam.features import joined
from world_model.wam.images import moving, peak_signal_to_noise
from world_model.wam.network import Network

if TYPE_CHECKING:
    from world_model.data.episodes import Episode

SEED = 0
"""Of the windows and the noise that are drawn, so that a measurement repeats exactly."""

MOST_DREAMS = 128
"""Dreams of a task at most whose images are compared."""


@torch.inference_mode()
def prediction_metrics(
    model: Network, windows: Windows, part: str = "object_pos", per_task: int = MOST_WINDOWS
) -> dict[str, dict[str, float]]:
    """Measure the prediction of the slice `part` after one chunk, in windows in which it moves by more than 1 cm.

    Returns for each task, and as "mean" over tasks (NaN without any): the error divided by the error of repeating the
    last frame (`error_ratio`), the error with shuffled actions divided by the error with the true ones
    (`shuffle_ratio`; near 1 the model ignores the actions), and the number of windows (`n`).
    """
    generator = torch.Generator(model.device).manual_seed(SEED)
    where = model.spec.slices[part]
    rows = {
        model.spec.tasks[index]: _task_metrics(model, batch, where, generator)
        for index, batch in moving_windows(windows, where, generator, per_task)
    }
    names = ("error_ratio", "shuffle_ratio")
    rows["mean"] = {k: sum(r[k] for r in rows.values()) / len(rows) if rows else math.nan for k in names}
    rows["mean"]["n"] = sum(r["n"] for r in rows.values() if "n" in r)
    return rows


@torch.inference_mode()
def image_metrics(
    model: Network,
    episodes: Sequence[Episode],
    images: Sequence[Tensor],
) -> dict[str, dict[str, float]]:
    """Compare dreamed images with the real `images` (T + 1, n_views, size, size, 3) of each episode.

    Errors are measured only over moving pixels: those that differ between the image at the start of the dream and the
    real image at its end. Returns for each task, and as "mean" over tasks: the PSNR in dB after one chunk (`psnr`) and
    after `HORIZON` chunks (`psnr_far`), that of repeating the first image (`repeat`, `repeat_far`), that of the codec
    alone (`codec`), the root mean squared error with shuffled actions divided by that with the true ones
    (`shuffle_ratio`), and the number of dreams (`n`); {} if no episode is long enough.
    """
    generator = torch.Generator(model.device).manual_seed(SEED)
    images_of = {id(episode): images for episode, images in zip(episodes, images, strict=True)}
    rows: dict[str, dict[str, float]] = {}
    size = model.config.chunk_size
    for task in dict.fromkeys(e.task for e in episodes):
        long = [e for e in episodes if e.task == task and e.length >= HORIZON * size]
        if not long:
            continue
        windows = model.windows_of(long, model.spec.tasks, HORIZON * size)
        index = torch.randperm(len(windows), generator=generator, device=generator.device)[:MOST_DREAMS]
        # Real images at the start of each dream, after one chunk and after `HORIZON` chunks.
        starts = windows.begins[index].tolist()
        chosen = [images_of[id(windows.episodes[i])] for i in windows.episode[index].tolist()]
        real = [
            torch.stack([images[t + k * size] for images, t in zip(chosen, starts, strict=True)]).to(model.device)
            for k in (0, 1, HORIZON)
        ]
        rows[task] = _image_row(model, windows.at(index), real, generator)
    if rows:
        rows["mean"] = {name: sum(r[name] for r in rows.values()) / len(rows) for name in next(iter(rows.values()))}
    return rows


@torch.inference_mode()
def inverse_metrics(model: Network, windows: Windows, n: int = 1024) -> dict[str, float]:
    """Measure inverse dynamics: the squared error of recovered actions, relative to always guessing the mean action.

    `inverse_error` is 1 if nothing is recovered, 0 if everything is.
    """
    generator = torch.Generator(model.device).manual_seed(SEED)
    batch = windows.sample(n, generator)
    context = model.encode(joined(batch.context), batch.task)
    actions = modes.inverse(model, context, joined(batch.future), modes.action_noise(model, n, generator), n_steps=4)
    return {"inverse_error": _relative_error(actions, batch.actions)}


@torch.inference_mode()
def imitation_metrics(model: Network, windows: Windows, n_steps: int = 2, n: int = 1024) -> dict[str, float]:
    """Measure imitation: the squared error of the policy's actions, relative to always taking the mean action."""
    generator = torch.Generator(model.device).manual_seed(SEED)
    batch = windows.sample(n, generator)
    context = model.encode(joined(batch.context), batch.task)
    actions = modes.policy(model, context, modes.action_noise(model, n, generator), n_steps)
    return {"imitation_error": _relative_error(actions, batch.actions)}


@torch.inference_mode()
def read_out_metrics(model: Network, windows: Windows, n: int = 4096) -> dict[str, float]:
    """Measure precision and recall of the success read-out (p >= 0.9) and the mean absolute error of progress.

    Both are measured on real frames. Precision or recall is NaN without any predicted or true success.
    """
    batch = windows.sample(n, torch.Generator(model.device).manual_seed(SEED))
    future = joined(batch.future)
    p, progress = model.read_frames(future.flatten(0, 1), batch.task.repeat_interleave(future.shape[1]))
    predicted, true = p >= 0.9, batch.success.flatten() > 0.5
    hits = float((predicted & true).sum())
    return {
        "success_precision": hits / float(predicted.sum()) if predicted.any() else math.nan,
        "success_recall": hits / float(true.sum()) if true.any() else math.nan,
        "progress_error": float((progress - batch.progress.flatten()).abs().mean()),
    }


def _relative_error(actions: Tensor, truth: Tensor) -> float:
    """Return the squared error of actions (n, chunk_size, action_dim) divided by that of the mean action."""
    return float((actions - truth).square().mean() / (truth - truth.mean((0, 1))).square().mean())


def _task_metrics(model: Network, batch: Batch, part: slice, generator: torch.Generator) -> dict[str, float]:
    n = len(batch.task)
    context = model.encode(joined(batch.context), batch.task)
    noise = modes.video_noise(model, n, generator)
    shuffled = batch.actions[torch.randperm(n, generator=generator, device=generator.device)]
    truth = batch.future[STATE][:, -1, part]

    def error(frames: Tensor) -> float:
        return float((frames[:, -1, part] - truth).norm(dim=-1).mean())

    predicted = error(modes.dream(model, context, batch.actions, noise, n_steps=1))
    return {
        "error_ratio": predicted / error(batch.context[STATE][:, -1:]),
        "shuffle_ratio": error(modes.dream(model, context, shuffled, noise, n_steps=1)) / predicted,
        "n": float(n),
    }


def _image_row(model: Network, batch: Batch, real: list[Tensor], generator: torch.Generator) -> dict[str, float]:
    """Compute the metrics of one task. `real`: images at the start, after one chunk, and after the last chunk."""
    codec, n, size = model.image_codec, len(batch.task), model.config.chunk_size
    assert codec is not None
    first, next_one, far_one = real

    def dreamed(actions: Tensor) -> list[Tensor]:
        rows = torch.arange(n, device=model.device)
        chunks = modes.dream_on(model, joined(batch.context), batch.task, actions, rows, 1)
        return [codec.decode(frames[:, -1, -codec.code_dim :]) for _, _, frames in chunks]

    near, far = moving(first, next_one), moving(first, far_one)
    true = dreamed(batch.actions)
    shuffled = dreamed(batch.actions[torch.randperm(n, generator=generator, device=generator.device)][:, :size])
    psnr = peak_signal_to_noise(true[0], next_one, near)
    return {
        "psnr": psnr,
        "repeat": peak_signal_to_noise(first, next_one, near),
        "psnr_far": peak_signal_to_noise(true[-1], far_one, far),
        "repeat_far": peak_signal_to_noise(first, far_one, far),
        "codec": peak_signal_to_noise(codec.decode(batch.future[LATENTS][:, size - 1]), next_one, near),
        # A PSNR is 20 * log10(1 / RMSE), so a difference of PSNRs gives the ratio of the RMSEs.
        "shuffle_ratio": 10 ** ((psnr - peak_signal_to_noise(shuffled[0], next_one, near)) / 20),
        "n": float(n),
    }
