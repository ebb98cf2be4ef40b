"""Teach the read-outs of success and progress a task from recorded episodes, in the frames that are dreamed of them.

A refit trains the prediction of frames alone. Success is then judged by read-outs that learned it from true frames of
other episodes, and on a task that the checkpoint was never trained on it is a guess from other tasks. The recorded
episodes have true labels. They are few, and most of their frames are no success, so:

1. A task is learned only if one of its episodes has a success: failures alone would teach that nothing ever succeeds.
2. A quarter of the frames of a task show a success (`SUCCESSES`), however rare these are.
3. Half of all frames are from the checkpoint's own episodes, drawn in the same way. Their target is what the read-outs
   said before, so that what they knew stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from world_model.data.episodes import Episode
from world_model.data.windows import progress_labels
from world_model.tree import join, rows, to
from world_model.wam.features import joined
from world_model.wam.network import Network

SUCCESSES = 0.25
"""Share of the frames with a success among those that the read-outs are trained on, for each task."""


@dataclass
class FrameBatch:
    """Single frames with the targets of the read-outs; a `Tree`."""

    frames: Tensor  # (n, frame_dim)
    task: Tensor  # (n,) int64
    success: Tensor  # (n,) probability
    progress: Tensor  # (n,)

    @staticmethod
    def of(episodes: list[Episode], tasks: tuple[str, ...]) -> FrameBatch:
        """Return all frames of encoded episodes with their labels, but for the first of each, which has none."""
        parts = [
            FrameBatch(
                joined({name: values[episode.rows_of(name)[1:]][None] for name, values in episode.obs.items()})[0],
                torch.full((episode.length,), tasks.index(episode.task)),
                episode.success.float(),
                progress_labels(episode.success)[1:],
            )
            for episode in episodes
        ]
        return join(parts)

    def at(self, index: Tensor) -> FrameBatch:
        """Return the frames of `index` (n,)."""
        return rows(self, index)


class FrameData:
    """What the read-outs are trained on: half of the frames are of new episodes, half of known ones.

    Args:
        model: its read-outs, as they are now, give the targets of the known frames.
        new: frames of the tasks to learn.
        known: frames of the checkpoint's own episodes.
    """

    def __init__(self, model: Network, new: FrameBatch, known: FrameBatch) -> None:
        self.model, self.before, self.new, self.known = model, copy.deepcopy(model.read_out), new, known
        self.weights, self.known_weights = _weights(new), _weights(known)

    def sample(self, n: int, generator: torch.Generator) -> FrameBatch:
        """Draw `n` frames with replacement."""
        model, n_new = self.model, n // 2
        new = self.new.at(torch.multinomial(self.weights, n_new, replacement=True, generator=generator))
        kept = self.known.at(torch.multinomial(self.known_weights, n - n_new, replacement=True, generator=generator))
        new.task, kept.task = (model.reworded(of.task, generator) for of in (new, kept))
        with torch.no_grad():
            logit, progress = self.before(model.codec.state(kept.frames), model.told(kept.task))
        kept.success, kept.progress = logit.sigmoid(), progress
        return join([new, kept])


def frame_data(model: Network, episodes: list[Episode], own: list[Episode], tasks: Collection[str]) -> FrameData | None:
    """Return the data for `tasks`; None if none of them has an episode with a success, or there are no `own` episodes.

    Args:
        model: see `FrameData`.
        episodes: recorded ones, with the features of its `predicted_spec`, see `replays.dreamed_episodes`.
        own: those of its checkpoint.
        tasks: to learn.
    """
    solved = {episode.task for episode in episodes if episode.is_success} & set(tasks)
    if not solved or not own:
        return None
    new = [episode for episode in episodes if episode.task in solved]
    return FrameData(model, *(to(FrameBatch.of(of, model.spec.tasks), model.device) for of in (new, own)))


def frame_losses(model: Network, batch: FrameBatch) -> dict[str, Tensor]:
    """Return the mean binary cross-entropy of success and the mean squared error of progress."""
    logit, progress = model.read_out(model.codec.state(batch.frames), model.told(batch.task))
    return {
        "success": F.binary_cross_entropy_with_logits(logit, batch.success),
        "progress": (progress - batch.progress).square().mean(),
    }


def _weights(batch: FrameBatch) -> Tensor:
    """Return how often each frame is drawn (n,): every task equally often, `SUCCESSES` of its frames with a success."""
    weights = torch.zeros_like(batch.success)
    for index in batch.task.unique():
        for wanted, share in ((True, SUCCESSES), (False, 1 - SUCCESSES)):
            of = (batch.task == index) & (batch.success.bool() == wanted)
            weights[of] = share / max(int(of.sum()), 1)
    return weights
