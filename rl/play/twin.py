"""Simulator and dream that begin alike and execute the same actions, so that they differ by the dream's error alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rl.envs.simulator import Simulator
from world_model.api import WorldModel
from world_model.data.episodes import Episode
from world_model.dream_env import DreamEnv, StartStates
from world_model.env import BatchedEnv, Frames
from world_model.replays import chunk_errors
from world_model.tree import rows

SETTLING = 2
"""Chunks that a simulator rests before the dream begins: in Meta-World's first numbers an object may be elsewhere."""

MOST_CHUNKS = 600
"""Longest play from one start, in chunks."""

N_EPISODES = 12
"""Recorded episodes at most from which the usual error is measured."""


@dataclass(frozen=True)
class Moment:
    """What is known after a chunk."""

    expected: float | None  # error that the model expects of the chunk, in its `error_unit`; None: it cannot
    measured: float | None  # mean error of the dreamed frames of the chunk; None without a simulator
    solved: dict[str, bool]  # place -> whether the task was solved there up to now
    dream: dict[str, Any]  # state of the dream, from which it goes on
    actions: Tensor | None  # (1, chunk_size, action_dim) that led here; None at the start


class Twin:
    """One dream, and beside it one simulated environment if there is a simulator.

    Args:
        model: dreams, on the CPU.
        starts: recorded states in which dreams begin without a simulator.
        make_sim: builds the simulator for a task; None: the dream is alone.
    """

    def __init__(
        self, model: WorldModel, starts: StartStates | None, make_sim: Callable[[str], Simulator] | None
    ) -> None:
        self.model, self.starts, self.make_sim = model, starts, make_sim
        self.sim: Simulator | None = None
        self.dream: DreamEnv
        self.moments: list[Moment] = []
        self.task, self.seed = "", 0

    @property
    def eye(self) -> BatchedEnv:
        """The environment whose observations a policy gets: the simulator if there is one."""
        return self.dream if self.sim is None else self.sim

    @property
    def now(self) -> Moment:
        """The newest moment."""
        return self.moments[-1]

    def begin(self, task: str, seed: int) -> None:
        """Begin an episode of `task`; the same `seed` gives the same start.

        Raises:
            UserError: there is no such task in the simulator, or no recorded start of it.
        """
        if self.make_sim is not None and (self.sim is None or task != self.task):
            self.close()
            self.sim = self.make_sim(task)
        self.task, self.seed = task, seed
        starts = self._recorded_start() if self.sim is None else self._simulated_start()
        self.dream = self._dream_from(starts)
        self.moments = [Moment(None, None, dict.fromkeys(self._places(), False), self.dream.state_dict(), None)]

    @torch.no_grad()
    def step(self, actions: Tensor) -> None:
        """Execute one chunk (1, chunk_size, action_dim) in both."""
        dreamed, solved, measured = self.dream.step_chunk(actions), dict(self.now.solved), None
        solved["dream"] |= bool(dreamed.is_success)
        if self.sim is not None:
            real = self.sim.step_chunk(actions)
            solved["sim"] |= bool(real.is_success)
            true = self.model.encode_obs(self._read(real.frames))
            measured = float(self.model.frame_error(true, dreamed.frames).mean())
        expected = float(self.dream.expected_error[0]) if self.model.estimates_error else None
        self.moments.append(Moment(expected, measured, solved, self.dream.state_dict(), actions))

    def rewind(self, n: int) -> None:
        """Go back to the state after the first `n` chunks."""
        self.moments = self.moments[: n + 1]
        self.dream.load_state_dict(self.now.dream)
        if self.sim is not None:  # a simulator goes back by repeating what it did
            self._simulated_start()
            for moment in self.moments[1:]:
                assert moment.actions is not None
                self.sim.step_chunk(moment.actions)

    def redream(self) -> None:
        """Begin the dream anew in the current state of the simulator."""
        if self.sim is None:
            return
        before = self.dream
        self.dream = self._dream_from(StartStates.of(self.sim))
        self.dream.elapsed = before.elapsed.clone()
        now = self.now
        self.moments[-1] = Moment(None, None, now.solved, self.dream.state_dict(), now.actions)

    def close(self) -> None:
        """Close the simulator."""
        if self.sim is not None:
            self.sim.close()
            self.sim = None

    def _simulated_start(self) -> StartStates:
        """Begin the episode of the current seed in the simulator, let it settle, and return its state."""
        sim = self.sim
        assert sim is not None
        sim.set_episode_seeds([self.seed])
        sim.reset()
        rest = torch.zeros(1, self.model.chunk_size, sim.spec.action_dim, device=sim.device)
        for _ in range(SETTLING):
            sim.step_chunk(rest)  # clamped to the bounds
        return StartStates.of(sim)

    def _recorded_start(self) -> StartStates:
        """Return the recorded start of the current task whose turn the seed says."""
        assert self.starts is not None
        index = (self.starts.task == self.model.spec.tasks.index(self.task)).nonzero()[:, 0]
        row = index[[self.seed % len(index)]]
        return replace(rows(self.starts, row), seed=torch.tensor([self.seed]))

    def _dream_from(self, starts: StartStates) -> DreamEnv:
        chunks = MOST_CHUNKS + 1  # it never ends by itself
        starts.context = self._read(starts.context)
        dream = DreamEnv(
            self.model,
            1,
            starts,
            horizon=chunks,
            max_steps=chunks * self.model.chunk_size,
            in_order=True,
            terminate_on_success=False,
        )
        dream.reset()
        return dream

    def _read(self, frames: Frames) -> Frames:
        """Return the features that the model reads or predicts: a simulator may show more to a person."""
        known = {**self.model.spec.features, **self.model.predicted_spec.features}
        return {name: values for name, values in frames.items() if name in known}

    def _places(self) -> tuple[str, ...]:
        return ("dream",) if self.sim is None else ("dream", "sim")


def recorded_starts(model: WorldModel, episodes: list[Episode]) -> StartStates:
    """Return a state of each episode to begin in: the one in which the simulator has settled."""
    first = SETTLING * model.chunk_size
    settled = [episode.cut(first, episode.length) for episode in episodes if episode.length > first]
    return StartStates.from_episodes(settled or episodes, model.spec.tasks, model.n_context_frames)


def usual_error(model: WorldModel, episodes: list[Episode]) -> float:
    """Return the median error of a chunk when the model dreams the actions of recorded episodes, in its `error_unit`.

    Raises:
        UserError: no episode is long enough.
    """
    return float(chunk_errors(model, episodes[:: -(-len(episodes) // N_EPISODES)]).errors.median())
