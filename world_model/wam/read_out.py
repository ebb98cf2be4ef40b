"""Teach the read-outs of success and progress tasks that a checkpoint was never trained on, from recorded episodes.

A refit trains the prediction of frames alone, so on such a task the success of a dream is a guess from other tasks. The
recorded episodes have true labels. They are few, and most of their frames are no success, so:

1. A task is learned only if one of its episodes has a success: failures alone would teach that nothing ever succeeds.
2. Half of the windows of a task show a success, however rare these are. The frames just before it are in them, and say
   where success begins.
3. Half of all windows are from the checkpoint's own episodes, drawn in the same way. Their target is what the read-outs
   said before, so that the known tasks stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from world_model.data.episodes import Episode
from world_model.data.windows import Batch, Windows
from world_model.wam.features import joined
from world_model.wam.network import Network


@dataclass
class FrameBatch:
    """Single frames with the targets of the read-outs."""

    frames: Tensor  # (n, frame_dim)
    task: Tensor  # (n,) int64
    success: Tensor  # (n,) probability
    progress: Tensor  # (n,)

    @staticmethod
    def of(batch: Batch) -> FrameBatch:
        """Return the future frames of windows with their labels, without those that are unknown."""
        frames = joined(batch.future)
        known = frames.isfinite().all(2)
        task = batch.task[:, None].expand_as(known)
        return FrameBatch(frames[known], task[known], batch.success[known], batch.progress[known])


class FrameData:
    """What the read-outs are trained on: half windows of new tasks, half of known ones.

    Args:
        model: its read-outs, as they are now, give the targets of the known tasks.
        new: windows of the new tasks.
        known: windows of the checkpoint's own episodes.
    """

    def __init__(self, model: Network, new: Windows, known: Windows) -> None:
        self.model, self.before, self.new, self.known = model, copy.deepcopy(model.read_out), new, known
        self.weights, self.known_weights = _weights(new), _weights(known)

    def sample(self, n: int, generator: torch.Generator) -> FrameBatch:
        """Draw the frames of `n` windows with replacement."""
        model, n_new = self.model, n // 2
        new = _drawn(self.new, self.weights, n_new, generator)
        kept = _drawn(self.known, self.known_weights, n - n_new, generator)
        new.task, kept.task = (model.reworded(of.task, generator) for of in (new, kept))
        with torch.no_grad():
            logit, progress = self.before(model.codec.state(kept.frames), model.told(kept.task))
        kept.success, kept.progress = logit.sigmoid(), progress
        return FrameBatch(**{name: torch.cat([of, getattr(kept, name)]) for name, of in vars(new).items()})


def frame_data(model: Network, episodes: list[Episode], own: list[Episode], tasks: Collection[str]) -> FrameData | None:
    """Return the data for `tasks`; None if none of them has an episode with a success, or there are no `own` episodes.

    Args:
        model: see `FrameData`.
        episodes: recorded ones, with the features of its `predicted_spec`.
        own: those of its checkpoint.
        tasks: to learn.
    """
    solved = {episode.task for episode in episodes if episode.is_success} & set(tasks)
    if not solved or not own:
        return None
    new = [episode for episode in episodes if episode.task in solved]
    parts = (model.windows_of(of, model.spec.tasks, model.config.chunk_size, ends=True, pads=True) for of in (new, own))
    return FrameData(model, *parts)


def frame_losses(model: Network, batch: FrameBatch) -> dict[str, Tensor]:
    """Return the mean binary cross-entropy of success and the mean squared error of progress."""
    logit, progress = model.read_out(model.codec.state(batch.frames), model.told(batch.task))
    return {
        "success": F.binary_cross_entropy_with_logits(logit, batch.success),
        "progress": (progress - batch.progress).square().mean(),
    }


def _drawn(windows: Windows, weights: Tensor, n: int, generator: torch.Generator) -> FrameBatch:
    """Draw the frames of `n` windows with replacement, by their weights."""
    return FrameBatch.of(windows.at(torch.multinomial(weights, n, replacement=True, generator=generator)))


def _weights(windows: Windows) -> Tensor:
    """Return how often each window is drawn (n,): every task equally often, half of its windows with a success."""
    shown, task = windows.shows_success, windows.task[windows.episode]
    weights = torch.zeros(len(windows), device=shown.device)
    for index in task.unique():
        for wanted in (True, False):
            of = (task == index) & (shown == wanted)
            weights[of] = 0.5 / max(int(of.sum()), 1)
    return weights
