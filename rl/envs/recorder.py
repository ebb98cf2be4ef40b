"""Record what a simulator executes as episodes, during PPO and during gate evaluations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from world_model.data.episodes import Episode
from world_model.env import ChunkStep


class Recorder:
    """Keeps finished episodes in the order in which they ended; an episode cut short by a reset is dropped."""

    def __init__(self, tasks: tuple[str, ...], picture_every: int = 1) -> None:
        self.tasks, self.picture_every = tasks, picture_every
        self.episodes: list[Episode] = []
        # Unfinished episodes: environment -> its chunks of (frames, actions, success).
        self._open: dict[int, list[tuple[Tensor, ...]]] = {}

    def add(self, first: Tensor, elapsed: Tensor, task: Tensor, seed: Tensor, actions: Tensor, step: ChunkStep) -> None:
        """Add one chunk of every environment.

        Args:
            first: newest frame before the chunk, (n, state_dim).
            elapsed: steps of the episode before the chunk, (n,); 0 starts an episode.
            task: index of the task, (n,).
            seed: of the episode, (n,).
            actions: executed ones, (n, k, action_dim).
            step: result of the chunk.
        """
        first, actions, frames, successes = (x.cpu() for x in (first, actions, step.frames, step.success))
        done, counts = (step.terminated | step.truncated).tolist(), step.executed.sum(1).tolist()
        for j, (count, begun) in enumerate(zip(counts, elapsed.tolist(), strict=True)):
            if begun == 0:
                # An episode has one frame more than actions: the first frame comes with no action.
                self._open[j] = [(first[j : j + 1], actions[j, :0], successes[j, :0])]
            if j not in self._open:  # recording started in the middle of this episode
                continue
            self._open[j].append((frames[j, :count], actions[j, :count], successes[j, :count]))
            if done[j]:
                state, action, success = (torch.cat(parts) for parts in zip(*self._open.pop(j), strict=True))
                episode = Episode(
                    state=state,
                    action=action,
                    success=success,
                    task=self.tasks[int(task[j])],
                    source="policy",
                    seed=int(seed[j]),
                    picture_every=self.picture_every,
                )
                self.episodes.append(episode)

    def state_dict(self) -> dict[str, Any]:
        """Return finished and unfinished episodes."""
        return {"episodes": [*self.episodes], "open": {j: [*chunks] for j, chunks in self._open.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.episodes, self._open = state["episodes"], state["open"]

    def take(self) -> list[Episode]:
        """Return the finished episodes and remove them here."""
        episodes, self.episodes = self.episodes, []
        return episodes
