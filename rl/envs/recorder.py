"""Record what a simulator executes as episodes, during PPO and during gate evaluations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from world_model.data.episodes import Episode
from world_model.env import ChunkStep, Frames
from world_model.spec import Spec, periods


class Recorder:
    """Keeps finished episodes in the order in which they ended; an episode cut short by a reset is dropped."""

    def __init__(self, spec: Spec) -> None:
        self.tasks = spec.tasks
        self.every = periods(spec.features)
        self.episodes: list[Episode] = []
        # Unfinished episodes: environment -> its chunks of (actions, success) and of features.
        self._open: dict[int, list[tuple[Tensor, Tensor, Frames]]] = {}

    def add(self, first: Frames, elapsed: Tensor, task: Tensor, seed: Tensor, step: ChunkStep) -> None:
        """Add one chunk of every environment.

        Args:
            first: newest frame before the chunk, feature -> (n, *shape).
            elapsed: steps of the episode before the chunk, (n,); 0 starts an episode.
            task: index of the task, (n,).
            seed: of the episode, (n,).
            step: result of the chunk.
        """
        actions, successes = step.actions.cpu(), step.success.cpu()
        first, frames = ({name: x.cpu() for name, x in of.items()} for of in (first, step.frames))
        done, counts = (step.terminated | step.truncated).tolist(), step.executed.sum(1).tolist()
        for j, (count, begun) in enumerate(zip(counts, elapsed.tolist(), strict=True)):
            if begun == 0:
                # An episode has one frame more than actions: the first frame comes with no action.
                self._open[j] = [(actions[j, :0], successes[j, :0], {name: x[j : j + 1] for name, x in first.items()})]
            if j not in self._open:  # recording started in the middle of this episode
                continue
            kept = {name: x[j, self._new(name, begun, count, done[j])] for name, x in frames.items()}
            self._open[j].append((actions[j, :count], successes[j, :count], kept))
            if done[j]:
                action, success, obs = zip(*self._open.pop(j), strict=True)
                episode = Episode(
                    obs={name: torch.cat([of[name] for of in obs]) for name in frames},
                    action=torch.cat(action),
                    success=torch.cat(success),
                    task=self.tasks[int(task[j])],
                    source="policy",
                    seed=int(seed[j]),
                    every=self.every,
                )
                self.episodes.append(episode)

    def _new(self, name: str, begun: int, count: int, done: bool) -> list[int]:
        """Return the steps of a chunk, of which `count` were executed, after which a feature has a row."""
        every = self.every.get(name, 1)
        return [j for j in range(count) if (begun + j + 1) % every == 0 or (done and j + 1 == count)]

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
