"""What a simulator did, as episodes: recorded while PPO trains and while the gate judges."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from world_model.env import ChunkStep
from world_model.episodes import Episode


@dataclass
class _Open:
    """An episode that has not ended: tensors of the chunks so far."""

    frames: list[Tensor]
    actions: list[Tensor] = field(default_factory=list)
    success: list[Tensor] = field(default_factory=list)


class Recorder:
    """Keeps every episode that ends, in the order of ending; one that is given up before its end is dropped."""

    def __init__(self, tasks: tuple[str, ...]) -> None:
        self.tasks = tasks
        self.episodes: list[Episode] = []
        self._open: dict[int, _Open] = {}

    def add(self, first: Tensor, elapsed: Tensor, task: Tensor, seed: Tensor, actions: Tensor, step: ChunkStep) -> None:
        """Add a chunk: newest frame (n, state_dim), steps, task, seed (n,) before it, and what was executed in it."""
        done, counts = (step.terminated | step.truncated).tolist(), step.executed.sum(1).tolist()
        for j, (count, begun) in enumerate(zip(counts, elapsed.tolist(), strict=True)):
            if begun == 0:
                self._open[j] = _Open([first[j : j + 1].clone()])
            part = self._open.get(j)
            if part is None:  # it began before anyone recorded
                continue
            part.frames.append(step.frames[j, :count].clone())
            part.actions.append(actions[j, :count].clone())
            part.success.append(step.success[j, :count].clone())
            if done[j]:
                self._close(j, self.tasks[int(task[j])], int(seed[j]))

    def take(self) -> list[Episode]:
        """Hand over the finished episodes and forget them."""
        episodes, self.episodes = self.episodes, []
        return episodes

    def _close(self, j: int, task: str, seed: int) -> None:
        part = self._open.pop(j)
        state, action, success = (torch.cat(parts) for parts in (part.frames, part.actions, part.success))
        self.episodes.append(Episode(state, action, success, task, "policy", seed))
