"""The dream: a world model as an environment, drop-in for the simulator."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from rewards import RewardManager
from rewards.errors import UserError
from world_model.api import WorldModel
from world_model.data.episodes import Episode
from world_model.env import Advance, BatchedEnv, ChunkStep, Obs, Start

SURE = 0.5
"""A dreamed frame is a success if the success probabilities of it and of the previous frame reach this threshold."""

_STATE = ("chunks", "_sure", "_waiting")
"""State of a dream, besides that of every `BatchedEnv`."""


@dataclass
class StartStates:
    """Real states in which episodes begin, as starts of dreams. All tensors have `n` rows."""

    context: Tensor  # (n, n_context_frames, state_dim)
    task: Tensor  # (n,)
    seed: Tensor  # (n,) of the episode; with `in_order` a dream draws its noise from it, as the simulator does

    @staticmethod
    def from_episodes(episodes: list[Episode], tasks: tuple[str, ...], n_context_frames: int) -> StartStates:
        """Take the first state of each episode."""
        if not episodes:
            raise UserError("a dream needs at least one recorded episode to start from; collect episodes first")
        context = torch.stack([episode.state[:1].repeat(n_context_frames, 1) for episode in episodes])
        task = torch.tensor([tasks.index(episode.task) for episode in episodes])
        return StartStates(context, task, seed=torch.tensor([episode.seed for episode in episodes]))

    @staticmethod
    def join(parts: list[StartStates]) -> StartStates:
        """Concatenate several sets of states."""
        return StartStates(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(StartStates)))

    def to(self, device: torch.device) -> StartStates:
        """Move to a device."""
        return StartStates(*(getattr(self, f.name).to(device) for f in fields(StartStates)))

    def __len__(self) -> int:
        return len(self.task)


class DreamEnv(BatchedEnv):
    """Environments whose next frames the model predicts; a branch is truncated after `horizon` chunks.

    A chunk shorter than the model's is completed with its last action, and only its own frames are used. A single
    `step` is buffered: until a chunk is complete, nothing is executed and the observation stays; then the whole chunk
    is dreamed at once, and what it did comes out of that step. So `k` is 0 or `chunk_size` in what `step` returns.

    Args:
        model: predicts frames, and reads success and progress from them.
        num_envs: branches dreamed together.
        starts: real states to begin from, drawn at random (or in order, see `in_order`).
        horizon: chunks before a branch is truncated.
        n_denoising_steps: integration steps of a chunk; models are trained for one, which uses no noise.
        max_expected_error: a branch is truncated, without a success, where the model expects a larger error, in the
            units of `position_error`; None: nowhere. `doubt` of such a branch is `pessimism`. It is subtracted from
            the value that the truncation is bootstrapped with, so that a policy does not learn to seek such states.
        in_order: begin branch i of every reset from start i, with the seed of its episode; for paired evaluation.
        max_steps, rewards, terminate_on_success, action_delay, obs_noise, seed: see `BatchedEnv`; the device is that of
            the model.
    """

    place = "dream"
    expected_error: Tensor

    def __init__(
        self,
        model: WorldModel,
        num_envs: int,
        starts: StartStates,
        horizon: int = 2,
        n_denoising_steps: int = 1,
        max_steps: int = 150,
        in_order: bool = False,
        rewards: RewardManager | None = None,
        terminate_on_success: bool = True,
        action_delay: int = 0,
        obs_noise: float = 0.0,
        seed: int = 0,
        max_expected_error: float | None = None,
        pessimism: float = 0.0,
    ) -> None:
        rest = max_steps, rewards, model.read_frames, terminate_on_success, action_delay, obs_noise, seed, model.device
        super().__init__(model.spec, num_envs, model.n_context_frames, *rest)
        self.model, self.starts, self.horizon = model, starts.to(self.device), horizon
        self.n_denoising_steps = n_denoising_steps
        self.chunk_size, self.in_order, self.picture_codec = model.chunk_size, in_order, model.image_codec
        self.max_expected_error, self.pessimism = max_expected_error, pessimism
        self.doubt = torch.zeros(num_envs, device=self.device)
        self.expected_error = torch.zeros(num_envs, device=self.device)
        self.chunks = torch.zeros(num_envs, dtype=torch.long, device=self.device)  # dreamed since the branch began
        self._sure = torch.zeros(num_envs, dtype=torch.bool, device=self.device)  # last frame reached the threshold
        self._waiting = torch.zeros(num_envs, 0, model.spec.action_dim, device=self.device)  # actions of an open chunk

    def reset(self, seed: int | None = None) -> Obs:
        """Begin a branch everywhere and forget the actions of an open chunk."""
        self._waiting = self._waiting[:, :0]
        return super().reset(seed)

    def step(self, action: Tensor) -> ChunkStep:
        """Add one action (num_envs, action_dim) to the open chunk; the last one of a chunk dreams it."""
        actions = torch.cat([self._waiting, self._checked(action.unsqueeze(1))], dim=1)
        if actions.shape[1] < self.chunk_size:
            self._waiting = actions
            return self._unchanged()
        self._waiting = actions[:, :0]
        return self.step_chunk(actions)

    def _restart(self, mask: Tensor) -> Start:
        m = int(mask.sum())
        index = torch.randint(len(self.starts), (m,), generator=self.generator, device=self.device)
        seed = torch.randint(2**31, (m,), generator=self.generator, device=self.device)
        if self.in_order:
            index = mask.nonzero().squeeze(1) % len(self.starts)
            seed = self.starts.seed[index]
        self.chunks[mask], self._sure[mask] = 0, False
        return Start(self.starts.context[index], self.starts.task[index], seed)

    def _advance(self, actions: Tensor, limit: Tensor) -> Advance:
        k = actions.shape[1]
        if k > self.chunk_size:
            raise UserError(
                f"dream: a chunk of {k} actions is longer than the {self.chunk_size} the model was trained on"
            )
        frames = self._dream(_complete(actions, self.chunk_size))[:, :k]
        p, _ = self.model.read_frames(frames.flatten(0, 1), self.task.repeat_interleave(k))
        sure = p.view(-1, k) >= SURE
        success = sure & torch.cat([self._sure[:, None], sure[:, :-1]], dim=1)
        self.chunks, self._sure = self.chunks + 1, sure[:, -1]
        distrusted = self.expected_error > (self.max_expected_error or math.inf)
        success &= ~distrusted[:, None]  # an unreliable success does not count
        truncated = torch.zeros_like(sure)
        truncated[:, -1] = (self.chunks >= self.horizon) | distrusted
        self.doubt = self.pessimism * distrusted
        return Advance(frames, success, terminated=torch.zeros_like(sure), truncated=truncated)

    def _unchanged(self) -> ChunkStep:
        obs, steps = self.observe(), torch.zeros(self.num_envs, 0, device=self.device)
        never = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        terms = [] if self.rewards is None else self.rewards.names
        return ChunkStep(
            obs=obs,
            reward=steps,
            executed=steps.bool(),
            terminated=never,
            truncated=never.clone(),
            is_success=never.clone(),
            final_obs=obs,
            frames=steps.new_zeros(self.num_envs, 0, self.spec.state_dim),
            success=steps.bool(),
            raw={name: steps.clone() for name in terms},
            weighted={name: steps.clone() for name in terms},
        )

    def _dream(self, actions: Tensor) -> Tensor:
        """Dream the frames of a whole chunk, and keep how wrong they are expected to be, where the model can tell."""
        predicted = self.model.predict(
            self.context, self.task, actions, self.episode_seed, self.chunks, self.n_denoising_steps
        )
        if predicted.expected_error is not None:
            self.expected_error = predicted.expected_error
        return predicted.frames

    def state_dict(self) -> dict[str, Any]:
        """Add the state of the branches and the open chunk."""
        return super().state_dict() | {name: getattr(self, name).clone() for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        super().load_state_dict(state)
        for name in _STATE:
            setattr(self, name, state[name].to(self.device, copy=True))


def _complete(actions: Tensor, chunk_size: int) -> Tensor:
    missing = chunk_size - actions.shape[1]
    return torch.cat([actions, actions[:, -1:].expand(-1, missing, -1)], dim=1) if missing else actions
