"""Training windows cut from episodes: context frames, a chunk of actions, and the frames after each action."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rewards.errors import UserError

if TYPE_CHECKING:
    from world_model.data.episodes import Episode

PROGRESS_DECAY = 0.98
"""Progress of a frame: PROGRESS_DECAY ** (steps left to the first success); 0 in an episode without success."""


@dataclass
class Batch:
    """A batch of windows."""

    context: Tensor  # (batch, n_context_frames, state_dim), the newest last
    task: Tensor  # (batch,) int64
    actions: Tensor  # (batch, chunk_size, action_dim)
    future: Tensor  # (batch, chunk_size, state_dim), the frame after each action
    success: Tensor  # (batch, chunk_size), 1.0 if the future frame is a success
    progress: Tensor  # (batch, chunk_size), of the future frames


class Windows:
    """All full windows of a list of episodes, stored as a few long tensors and an index.

    Args:
        episodes: at least one must have `chunk_size` steps; shorter ones are ignored.
        tasks: task names; `Batch.task` is the index of the episode's task in them.
        n_context_frames: frames before a chunk; at the start of an episode the first frame is repeated.
        chunk_size: actions in a chunk.
        pictures: slice of a frame that holds codes of images. A model gets a new image every `picture_every` steps and
            keeps the last one in between; a window does the same, even if the episodes have an image for each frame.
        picture_every: steps between two images of the model.
        ends: for episodes with images, add a window for the steps after the last image if they are fewer than a chunk.
            The last action is repeated to fill the chunk; frames after the end are NaN, and the loss ignores them.
            Without images this changes nothing: windows begin at every step and cover the end already.

    Raises:
        UserError: no episode has `chunk_size` steps.
    """

    def __init__(
        self,
        episodes: list[Episode],
        tasks: tuple[str, ...],
        n_context_frames: int,
        chunk_size: int,
        pictures: slice | None = None,
        picture_every: int = 8,
        ends: bool = False,
    ) -> None:
        # 1. Keep the episodes that are long enough for one window.
        usable = [e for e in episodes if e.length >= chunk_size]
        if not usable:
            raise UserError(
                f"none of {len(episodes)} episodes has the {chunk_size} steps of a chunk; collect longer ones"
            )
        self.episodes, self.n_context_frames, self.chunk_size = usable, n_context_frames, chunk_size
        self.pictures, self.picture_every, self.ends = pictures, picture_every, ends
        # 2. Concatenate all episodes, each with its first frame repeated in front, so that the context of the first
        # window exists. Row r of `state` is then a frame, row r of `action` the action that follows it.
        pad = n_context_frames - 1
        states, actions, success, progress, starts, offset = [], [], [], [], [], 0
        for episode in usable:
            states.append(torch.cat([episode.state[:1].expand(pad, -1), episode.state]))
            # Pad actions and labels at the front as well, so that the same row index is valid in all tensors.
            actions.append(_pad_front(episode.action, pad))
            success.append(_pad_front(episode.success.float(), pad + 1))
            progress.append(_pad_front(progress_labels(episode.success), pad))
            # The last frame has no action; a row of zeros keeps the rows of all tensors aligned.
            actions[-1] = torch.cat([actions[-1], torch.zeros_like(actions[-1][:1])])
            # A window starts only where a new image was taken.
            stop = episode.length if ends and episode.picture_every > 1 else episode.length - chunk_size + 1
            starts.append(offset + pad + torch.arange(0, stop, episode.picture_every))
            offset += len(states[-1])
        self.state, self.action = torch.cat(states), torch.cat(actions)
        self.success, self.progress = torch.cat(success), torch.cat(progress)
        self.start = torch.cat(starts)
        # 3. Index of the episode of each window, and the first and last row of each episode.
        lengths = torch.tensor([len(s) for s in starts])
        self.episode = torch.repeat_interleave(torch.arange(len(usable)), lengths)
        self.task = torch.tensor([tasks.index(e.task) for e in usable])
        rows = torch.tensor([e.length + 1 + pad for e in usable])
        self.first = rows.cumsum(0) - rows + pad  # row of the first frame of each episode
        self.last = rows.cumsum(0) - 1  # row of the last frame of each episode

    def __len__(self) -> int:
        return len(self.start)

    def to(self, device: torch.device) -> Windows:
        """Move all tensors of the windows to a device, in place; `episodes` stay where they are."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw `n` windows with replacement, uniformly."""
        return self.at(torch.randint(len(self), (n,), generator=generator, device=generator.device))

    def at(self, index: Tensor) -> Batch:
        """Return the windows of `index` (n,)."""
        start = self.start[index][:, None]  # row of the newest context frame, and of the first action
        steps = torch.arange(1, self.chunk_size + 1, device=start.device)
        # Rows before the episode are its repeated first frame, so the context needs no special case.
        context = start + torch.arange(1 - self.n_context_frames, 1, device=start.device)
        # Rows after the end of the episode become its last row.
        last = self.last[self.episode[index]][:, None]
        future, beyond = (start + steps).minimum(last), start + steps > last
        frames, followed = self.state[context], self.state[future]
        if self.pictures is not None:
            # Each frame gets the codes of the newest image that the model would have at that step: older context frames
            # the image one period before the start, future frames the last multiple of `picture_every` steps.
            since = steps // self.picture_every * self.picture_every
            before = (start - self.picture_every).maximum(self.first[self.episode[index]][:, None])
            frames[:, :-1, self.pictures] = self.state[before][..., self.pictures]
            followed[..., self.pictures] = self.state[(start + since).minimum(last)][..., self.pictures]
        if self.ends:
            followed[beyond] = torch.nan
        return Batch(
            context=frames,
            task=self.task[self.episode[index]],
            actions=self.action[future - 1],
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
