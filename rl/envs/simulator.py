"""What every simulator offers beside the batched contract: episodes that have names, and a record of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rewards.errors import UserError
from rl.envs.recorder import Recorder
from world_model.data.episodes import Episode
from world_model.env import BatchedEnv, ChunkStep


def is_isaac(env_id: str) -> bool:
    """Whether an environment is one of Isaac Lab, whose ids begin alike."""
    return env_id.startswith("Isaac-")


def pick_device(device: str, env_id: str, isaac_device: str = "auto") -> str:
    """Return where model and dream are, and what a simulator hands over: `device`, unless that is "auto".

    Then it is the CPU, where a simulator is, and for a task of Isaac Lab what `isaac_device` says; "auto" there is the
    GPU if there is one.

    Raises:
        UserError: there is no such device.
    """
    if device == "auto" and not is_isaac(env_id):
        return "cpu"
    field, wanted = ("env.isaac.device", isaac_device) if device == "auto" else ("device", device)
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError) as error:  # torch has many words for it
        raise UserError(f"{field}={wanted}: torch cannot use that here; expected cpu, cuda:0, ... or auto") from error
    return wanted


IDLE = -1
"""Seed of an environment that has nothing to do: all episodes that were named have begun elsewhere."""


class Simulator(BatchedEnv):
    """A place where things really happen, as far as a computer can tell.

    A subclass sets `_executed` to the actions of the last chunk, after any delay, and begins episodes with the seeds
    that `_next_seeds` hands out.
    """

    place = "sim"
    wave: int | None = None
    """Episodes that can be named at once: those that a `reset` begins. None: any number, one after the other."""
    alone = False
    """There can be only one at a time in a process: who trains and who is judged share it."""

    picture_every = 1
    """Steps between new pictures, where frames end in codes of them."""

    _executed: Tensor  # (num_envs, k, action_dim)
    _seeds: list[int] | None = None  # of the named episodes, those that have not begun; None: seeds are drawn
    recorder: Recorder | None = None  # see `record`

    def expert_actions(self) -> Tensor:
        """Return what a scripted expert does in the present state (num_envs, action_dim).

        Raises:
            UserError: there is none.
        """
        raise UserError("sim: there is no scripted expert here; only Meta-World tasks have one")

    def set_episode_seeds(self, seeds: Sequence[int]) -> None:
        """Name the episodes to come: each restart takes the next seed, then `IDLE`. Empty: seeds are drawn again."""
        self._seeds = [int(seed) for seed in seeds] or None

    def record(self, on: bool) -> list[Episode]:
        """Return the episodes that have ended since recording began; record on, or stop."""
        episodes = self.recorder.take() if self.recorder else []
        self.recorder = (self.recorder or Recorder(self.spec.tasks, self.picture_every)) if on else None
        return episodes

    def state_dict(self) -> dict[str, Any]:
        """Add what the recorder holds."""
        return super().state_dict() | {"recorder": None if self.recorder is None else self.recorder.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        super().load_state_dict(state)
        self.record(state["recorder"] is not None)
        if self.recorder is not None:
            self.recorder.load_state_dict(state["recorder"])

    def step_chunk(self, actions: Tensor) -> ChunkStep:
        """Execute a chunk, as every `BatchedEnv` does, and let the recorder have it."""
        if self.recorder is None:
            return super().step_chunk(actions)
        before = self.context[:, -1].clone(), self.elapsed.clone(), self.task.clone(), self.episode_seed.clone()
        step = super().step_chunk(actions)
        self.recorder.add(*before, self._executed, step)
        return step

    def _next_seeds(self, n: int) -> Tensor:
        if self._seeds is None:
            return torch.randint(2**31, (n,), generator=self.generator, device=self.device)
        seeds = (self._seeds + [IDLE] * n)[:n]
        self._seeds = self._seeds[n:]
        return torch.tensor(seeds, device=self.device)
