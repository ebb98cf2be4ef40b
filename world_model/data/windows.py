"""Training windows cut from episodes: context frames, a chunk of actions, the frames that followed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rewards.errors import UserError

if TYPE_CHECKING:
    from world_model.data.episodes import Episode

PROGRESS_DECAY = 0.98
"""The progress of a frame is this to the power of the steps left to success; 0 in an episode without success."""


@dataclass
class Batch:
    """A batch of windows."""

    context: Tensor  # (batch, n_context_frames, state_dim)
    task: Tensor  # (batch,) int64
    actions: Tensor  # (batch, chunk_size, action_dim)
    future: Tensor  # (batch, chunk_size, state_dim)
    success: Tensor  # (batch, chunk_size), 1 where the frame is a success
    progress: Tensor  # (batch, chunk_size)


class Windows:
    """Every full window of a list of episodes.

    Args:
        episodes: at least one with `chunk_size` steps.
        tasks: task names; an episode's index into them conditions the model.
        n_context_frames: frames before a chunk; at the start of an episode the first frame is repeated.
        chunk_size: actions in a chunk.
        pictures: slice of a frame that holds codes of images. A model gets a new image every `picture_every` steps and
            keeps the last one in between; a window does the same, even if the episodes have an image for each frame.
        ends: add a window for what is left of an episode after its last picture, where that is less than a chunk. Its
            actions go on with the last one; its frames after the end are NaN, which no loss of the future counts.
            Without pictures nothing is left: windows begin at every step.
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
        usable = [e for e in episodes if e.length >= chunk_size]
        if not usable:
            raise UserError(
                f"none of {len(episodes)} episodes has the {chunk_size} steps of a chunk; collect longer ones"
            )
        self.episodes, self.n_context_frames, self.chunk_size = usable, n_context_frames, chunk_size
        self.pictures, self.picture_every, self.ends = pictures, picture_every, ends
        pad = n_context_frames - 1
        states, actions, success, progress, starts, offset = [], [], [], [], [], 0
        for episode in usable:
            states.append(torch.cat([episode.state[:1].expand(pad, -1), episode.state]))
            # Actions and labels are padded at the front as well, so that one index serves all of them.
            actions.append(_pad_front(episode.action, pad))
            success.append(_pad_front(episode.success.float(), pad + 1))
            progress.append(_pad_front(progress_labels(episode.success), pad))
            actions[-1] = torch.cat([actions[-1], torch.zeros_like(actions[-1][:1])])
            stop = episode.length if ends and episode.picture_every > 1 else episode.length - chunk_size + 1
            starts.append(offset + pad + torch.arange(0, stop, episode.picture_every))
            offset += len(states[-1])
        self.state, self.action = torch.cat(states), torch.cat(actions)
        self.success, self.progress = torch.cat(success), torch.cat(progress)
        self.start = torch.cat(starts)
        lengths = torch.tensor([len(s) for s in starts])
        self.episode = torch.repeat_interleave(torch.arange(len(usable)), lengths)
        self.task = torch.tensor([tasks.index(e.task) for e in usable])
        rows = torch.tensor([e.length + 1 + pad for e in usable])
        self.first = rows.cumsum(0) - rows + pad  # row of the first frame of each episode
        self.last = rows.cumsum(0) - 1  # and of the last one

    def __len__(self) -> int:
        return len(self.start)

    def to(self, device: torch.device) -> Windows:
        """Move everything but `episodes` to a device, in place."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw `n` windows with replacement."""
        return self.at(torch.randint(len(self), (n,), generator=generator, device=generator.device))

    def at(self, index: Tensor) -> Batch:
        """Return the windows of `index` (n,)."""
        start = self.start[index][:, None]  # row of the newest context frame, and of the first action
        steps = torch.arange(1, self.chunk_size + 1, device=start.device)
        context = start + torch.arange(1 - self.n_context_frames, 1, device=start.device)
        last = self.last[self.episode[index]][:, None]
        future, beyond = (start + steps).minimum(last), start + steps > last
        frames, followed = self.state[context], self.state[future]
        if self.pictures is not None:
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
    """Progress of each frame (T + 1,) of an episode with `success` (T,) after each step."""
    hits = success.nonzero()
    frames = len(success) + 1
    if len(hits) == 0:
        return torch.zeros(frames)
    steps_left = (int(hits[0]) + 1 - torch.arange(frames)).clamp(min=0)
    return PROGRESS_DECAY ** steps_left.float()


def _pad_front(values: Tensor, n: int) -> Tensor:
    return torch.cat([values.new_zeros(n, *values.shape[1:]), values])
