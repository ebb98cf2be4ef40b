"""Training windows cut from episodes: context frames, a chunk of actions, and the frames after each action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rewards.errors import UserError, closest_or_known

if TYPE_CHECKING:
    from world_model.data.episodes import Episode

PROGRESS_DECAY = 0.98
"""Progress of a frame: PROGRESS_DECAY ** (steps left to the first success); 0 in an episode without success."""


@dataclass
class Batch:
    """A batch of windows."""

    context: dict[str, Tensor]  # feature -> (batch, n_context_frames, *shape), the newest last
    task: Tensor  # (batch,) int64
    actions: Tensor  # (batch, chunk_size, action_dim)
    future: dict[str, Tensor]  # feature -> (batch, chunk_size, *shape), its value after each action
    success: Tensor  # (batch, chunk_size), 1.0 if the future frame is a success
    progress: Tensor  # (batch, chunk_size), of the future frames

    @property
    def obs(self) -> dict[str, Tensor]:
        """The observation before the chunk: the context and `task`."""
        return self.context | {"task": self.task}


class Windows:
    """All full windows of a list of episodes, stored as a few long tensors and an index.

    Args:
        episodes: at least one must have `chunk_size` steps; shorter ones are ignored.
        tasks: task names; `Batch.task` is the index of the episode's task in them.
        n_context_frames: frames before a chunk; at the start of an episode the first frame is repeated.
        chunk_size: actions in a chunk.
        every: steps between new values of the features that the model does not get at each step, such as images. In
            between it keeps the last one; a window does the same, even if the episodes have a value for each frame.
        ends: for episodes with images, add a window for the steps after the last image if they are fewer than a chunk.
            The last action is repeated to fill the chunk; frames after the end are NaN, and the loss ignores them.
            Without images this changes nothing: windows begin at every step and cover the end already.
        pads: let windows begin in the whole episode, for losses that leave out what is unknown: actions after the end
            are NaN. Episodes may be shorter than a chunk.

    Raises:
        UserError: no episode has `chunk_size` steps.
    """

    def __init__(
        self,
        episodes: list[Episode],
        tasks: tuple[str, ...],
        n_context_frames: int,
        chunk_size: int,
        every: Mapping[str, int] | None = None,
        ends: bool = False,
        pads: bool = False,
    ) -> None:
        # 1. Keep the episodes that are long enough for one window.
        usable = [e for e in episodes if e.length >= (1 if pads else chunk_size)]
        if not usable:
            raise UserError(f"none of {len(episodes)} episodes has {chunk_size} steps or more; collect longer ones")
        self.episodes, self.n_context_frames, self.chunk_size = usable, n_context_frames, chunk_size
        self.every, self.ends, self.pads = dict(every or {}), ends, pads
        # 2. Concatenate all episodes, each with its first frame repeated in front, so that the context of the first
        # window exists. Row r of all tensors is then a frame, row r of `action` the action that follows it. Features
        # are stored without repeats: `value_row` has for each frame the row of its value.
        pad = n_context_frames - 1
        names = list(usable[0].obs)
        value_row: dict[str, list[Tensor]] = {name: [] for name in names}
        n_values = dict.fromkeys(names, 0)
        actions, success, progress, starts, offset = [], [], [], [], 0
        for episode in usable:
            for name in names:
                rows = episode.rows_of(name) + n_values[name]
                value_row[name].append(torch.cat([rows[:1].expand(pad), rows]))
                n_values[name] += len(episode.obs[name])
            # Pad actions and labels at the front as well, so that the same row index is valid in all tensors.
            actions.append(_pad_front(episode.action, pad))
            success.append(_pad_front(episode.success.float(), pad + 1))
            progress.append(_pad_front(progress_labels(episode.success), pad))
            # The last frame has no action; a row of zeros keeps the rows of all tensors aligned.
            actions[-1] = torch.cat([actions[-1], torch.zeros_like(actions[-1][:1])])
            # A window starts only where a new image was taken.
            period = max(episode.every.values(), default=1)
            stop = episode.length if pads or (ends and period > 1) else episode.length - chunk_size + 1
            starts.append(offset + pad + torch.arange(0, stop, period))
            offset += episode.length + 1 + pad
        self.values = {name: torch.cat([episode.obs[name] for episode in usable]) for name in names}
        self.value_row = {name: torch.cat(rows) for name, rows in value_row.items()}
        self.action = torch.cat(actions)
        self.success, self.progress = torch.cat(success), torch.cat(progress)
        self.start = torch.cat(starts)
        # 3. Index of the episode of each window, and the first and last row of each episode.
        lengths = torch.tensor([len(s) for s in starts])
        self.episode = torch.repeat_interleave(torch.arange(len(usable)), lengths)
        if unknown := sorted({e.task for e in usable} - set(tasks)):
            hint = closest_or_known(unknown[0], tasks)
            raise UserError(f"there are episodes of task {unknown[0]!r}, which is none of those to learn; {hint}")
        self.task = torch.tensor([tasks.index(e.task) for e in usable])
        rows = torch.tensor([e.length + 1 + pad for e in usable])
        self.first = rows.cumsum(0) - rows + pad  # row of the first frame of each episode
        self.last = rows.cumsum(0) - 1  # row of the last frame of each episode

    def __len__(self) -> int:
        return len(self.start)

    @property
    def begins(self) -> Tensor:
        """The step of its episode at which each window begins (n,)."""
        return self.start - self.first[self.episode]

    def to(self, device: torch.device) -> Windows:
        """Move all tensors of the windows to a device, in place; `episodes` stay where they are."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        for of in (self.values, self.value_row):
            of |= {name: value.to(device) for name, value in of.items()}
        return self

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw `n` windows with replacement, uniformly."""
        return self.at(torch.randint(len(self), (n,), generator=generator, device=generator.device))

    def at(self, index: Tensor) -> Batch:
        """Return the windows of `index` (n,)."""
        start = self.start[index][:, None]  # row of the newest context frame, and of the first action
        steps = torch.arange(1, self.chunk_size + 1, device=start.device)
        # Rows after the end of the episode become its last row.
        last = self.last[self.episode[index]][:, None]
        future, beyond = (start + steps).minimum(last), start + steps > last
        context, followed = {}, {}
        for name, values in self.values.items():
            # A frame has the newest value that the model would have at that step, if it gets one at the start.
            every, row = self.every.get(name, 1), self.value_row[name]
            past = torch.arange(1 - self.n_context_frames, 1, device=start.device).div(every, rounding_mode="floor")
            at = start + past * every
            if every > 1:  # the rows before an episode are its repeated first frame, but only so many
                at = at.maximum(self.first[self.episode[index]][:, None])
            context[name] = values[row[at]]
            followed[name] = values[row[(start + steps // every * every).minimum(last)]]
            if self.ends and followed[name].is_floating_point():
                followed[name][beyond] = torch.nan
        actions = self.action[future - 1]
        if self.pads:
            actions[beyond] = torch.nan
        return Batch(
            context=context,
            task=self.task[self.episode[index]],
            actions=actions,
            future=followed,
            success=self.success[future],
            progress=self.progress[future],
        )


def progress_labels(success: Tensor) -> Tensor:
    """Return the progress label of each frame (T + 1,) of an episode with `success` (T,) after each step.

    It rises to 1 at the first success and stays 1; see `PROGRESS_DECAY`.
    """
    hits = success.nonzero()
    frames = len(success) + 1
    if len(hits) == 0:
        return torch.zeros(frames)
    steps_left = (int(hits[0]) + 1 - torch.arange(frames)).clamp(min=0)
    return PROGRESS_DECAY ** steps_left.float()


def _pad_front(values: Tensor, n: int) -> Tensor:
    """Put `n` rows of zeros before `values`."""
    return torch.cat([values.new_zeros(n, *values.shape[1:]), values])
