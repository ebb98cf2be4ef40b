"""What a simulator did, as episodes: recorded while PPO trains and while the gate judges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from world_model.data.episodes import Episode
from world_model.env import ChunkStep


class Recorder:
    """Keeps every episode that ends, in the order of ending; one that is given up before its end is dropped."""

    def __init__(self, tasks: tuple[str, ...], picture_every: int = 1) -> None:
        self.tasks, self.picture_every = tasks, picture_every
        self.episodes: list[Episode] = []
        self._open: dict[int, list[tuple[Tensor, ...]]] = {}  # chunks of frames, actions and success, by environment

    def add(self, first: Tensor, elapsed: Tensor, task: Tensor, seed: Tensor, actions: Tensor, step: ChunkStep) -> None:
        """Add a chunk: newest frame (n, state_dim), steps, task, seed (n,) before it, and what was executed in it."""
        first, actions, frames, successes = (x.cpu() for x in (first, actions, step.frames, step.success))
        done, counts = (step.terminated | step.truncated).tolist(), step.executed.sum(1).tolist()
        for j, (count, begun) in enumerate(zip(counts, elapsed.tolist(), strict=True)):
            if begun == 0:
                self._open[j] = [(first[j : j + 1], actions[j, :0], successes[j, :0])]
            if j not in self._open:  # it began before anyone recorded
                continue
            self._open[j].append((frames[j, :count], actions[j, :count], successes[j, :count]))
            if done[j]:
                state, action, success = (torch.cat(parts) for parts in zip(*self._open.pop(j), strict=True))
                told = self.tasks[int(task[j])], "policy", int(seed[j])
                self.episodes.append(Episode(state, action, success, *told, picture_every=self.picture_every))

    def state_dict(self) -> dict[str, Any]:
        """Return finished and open episodes."""
        return {"episodes": [*self.episodes], "open": {j: [*chunks] for j, chunks in self._open.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.episodes, self._open = state["episodes"], state["open"]

    def take(self) -> list[Episode]:
        """Hand over the finished episodes and forget them."""
        episodes, self.episodes = self.episodes, []
        return episodes
