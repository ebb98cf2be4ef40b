"""The interface of batched environments, shared by simulators and dreams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rewards import RewardManager
from rewards.errors import BadNumbers
from rewards.transitions import chunk_transition
from world_model.flow import seeded_noise
from world_model.guards import check_advance, checked_actions
from world_model.history import ActionDelay, ActionHistory, window
from world_model.seeds import NOISE_SEED
from world_model.spec import Spec

Obs = dict[str, Tensor]
"""Feature -> (n, n_context_frames, *shape), the newest frame last; `task` -> (n,) int64, index into `Spec.tasks`."""

Frames = dict[str, Tensor]
"""Feature -> (n, k, *shape): one value after each of `k` steps. A slow camera repeats its last image in between."""

ReadOut = Callable[[Frames, Tensor], tuple[Tensor, Tensor]]
"""(features, each (n, n_frames, *shape), and task (n,)) -> success probability and progress, each (n, n_frames)."""

_STATE = ("task", "elapsed", "episode_seed")
"""Attributes of a `BatchedEnv` that change from step to step, in addition to `context`; `state_dict` saves them under
these names."""


@dataclass
class Start:
    """First observations of `m` episodes."""

    context: Frames  # feature -> (m, n_context_frames, *shape), oldest first
    task: Tensor  # (m,) int64, index into spec.tasks
    seed: Tensor  # (m,) int64, identifies the episode; policies seed their noise with it


@dataclass
class Advance:
    """What a simulator or a dream returns for `k` steps; `BatchedEnv` adds rewards and episode ends.

    Rows after the end of an episode are ignored.
    """

    frames: Frames  # feature -> (num_envs, k, *shape), its value after each action
    success: Tensor  # (num_envs, k) bool
    terminated: Tensor  # (num_envs, k) bool, ends other than success, such as a failure
    truncated: Tensor  # (num_envs, k) bool, limits other than `max_steps`, such as the horizon of a dream
    task_reward: Tensor | None = None  # (num_envs, k), the simulator's own reward
    own_rewards: dict[str, Tensor] = field(default_factory=dict)  # term -> (num_envs, k), computed by the simulator


@dataclass
class ChunkStep:
    """Result of a chunk of `k` actions. The caller may keep and change all tensors.

    After the end of an episode the rest of its chunk is not executed. The environment restarts at the end of the chunk
    (autoreset mode SAME_STEP): `obs` is then the first observation of the next episode, and `final_obs` the last one of
    the finished episode.
    """

    obs: Obs  # feature -> (num_envs, n_context_frames, *shape), and task (num_envs,)
    reward: Tensor  # (num_envs, k), 0 where not executed
    executed: Tensor  # (num_envs, k) bool, True for the first steps of each row up to the end of its episode
    terminated: Tensor  # (num_envs,) bool
    truncated: Tensor  # (num_envs,) bool, never together with terminated
    is_success: Tensor  # (num_envs,) bool, success was seen in this chunk
    final_obs: Obs  # like obs, but before the restart
    frames: Frames  # feature -> (num_envs, k, *shape), its value after each action
    actions: Tensor  # (num_envs, k, action_dim), executed ones: within their bounds, after the delay
    success: Tensor  # (num_envs, k) bool, at each executed step
    raw: dict[str, Tensor] = field(default_factory=dict)  # reward term -> (num_envs, k)
    weighted: dict[str, Tensor] = field(default_factory=dict)  # reward term -> (num_envs, k), raw times its weight
    task_reward: Tensor | None = None  # (num_envs, k), the simulator's own reward


class BatchedEnv(ABC):
    """`num_envs` environments that are stepped together, in torch, on one device.

    A subclass implements `_advance` and `_restart`. This class computes context frames, rewards, episode ends, action
    delay and observation noise, so that they are identical in simulator and dream. `context` holds the newest frames of
    every feature, without noise.

    Args:
        spec: features, action bounds and tasks.
        num_envs: number of environments in the batch.
        n_context_frames: frames in an observation, the newest last.
        max_steps: an episode is truncated after this many steps.
        rewards: reward terms; without them the reward is 1 for a success and 0 otherwise.
        read_out: the model's estimate of success and progress, needed by reward terms that require `progress`.
        terminate_on_success: end an episode at its first success.
        action_delay: steps between a command and its execution; zeros are executed first.
        obs_noise: standard deviation of the noise added to the vectors of observations (see `Spec`), in their units.
        seed: seed of all random choices of the environment.
        device: device of all tensors.
    """

    place: str
    autoreset_mode = "same_step"
    begun = False  # whether `reset` or `load_state_dict` was called, so that there are episodes to continue
    value_penalty: Tensor | float = 0.0  # (num_envs,), penalty on the bootstrap value of a truncation; see `DreamEnv`
    expected_error: Tensor | float = 0.0  # (num_envs,), of the last chunk of a dream

    def __init__(
        self,
        spec: Spec,
        num_envs: int,
        n_context_frames: int,
        max_steps: int,
        rewards: RewardManager | None = None,
        read_out: ReadOut | None = None,
        terminate_on_success: bool = True,
        action_delay: int = 0,
        obs_noise: float = 0.0,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.spec, self.num_envs, self.n_context_frames, self.max_steps = spec, num_envs, n_context_frames, max_steps
        self.rewards, self.read_out = rewards, read_out
        self.terminate_on_success, self.action_delay, self.obs_noise = terminate_on_success, action_delay, obs_noise
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.action_low = torch.tensor(spec.action_low, device=self.device)
        self.action_high = torch.tensor(spec.action_high, device=self.device)
        self.context: Frames = {
            name: torch.zeros(
                num_envs, n_context_frames, *feature.shape, dtype=getattr(torch, feature.dtype), device=self.device
            )
            for name, feature in spec.features.items()
        }
        self.task = torch.zeros(num_envs, dtype=torch.long, device=self.device)
        self.elapsed = torch.zeros(num_envs, dtype=torch.long, device=self.device)
        self.episode_seed = torch.zeros(num_envs, dtype=torch.long, device=self.device)
        self._delay = ActionDelay(num_envs, action_delay, spec.action_dim, self.device)
        self._history = ActionHistory(num_envs, spec.action_dim, self.device)

    @abstractmethod
    def _restart(self, mask: Tensor) -> Start:
        """Begin an episode in each environment of `mask` (num_envs,) bool; return rows for these only."""

    @abstractmethod
    def _advance(self, actions: Tensor, limit: Tensor) -> Advance:
        """Execute at most `limit` (num_envs,) of the `actions` (num_envs, k, action_dim), which are within bounds."""

    def reset(self, seed: int | None = None) -> Obs:
        """Begin an episode in every environment; a `seed` restarts the random generator of the environment."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self._begin(torch.ones(self.num_envs, dtype=torch.bool, device=self.device))
        self.begun = True
        return self.observe()

    def observe(self) -> Obs:
        """Return the current observation; calls at the same step return the same observation noise."""
        obs = {name: frames.clone() for name, frames in self.context.items()}
        if self.obs_noise > 0.0:  # seeded by episode and step, so that it does not depend on the other rows
            sizes = [obs[name].shape[2] for name in self.spec.vectors]
            shape = self.n_context_frames, sum(sizes)
            noise = seeded_noise(self.episode_seed + NOISE_SEED, self.elapsed, shape)
            for name, of_vector in zip(self.spec.vectors, torch.split(noise, sizes, dim=2), strict=True):
                obs[name] = obs[name] + self.obs_noise * of_vector
        return obs | {"task": self.task.clone()}

    def step(self, action: Tensor) -> ChunkStep:
        """Execute one action (num_envs, action_dim): a chunk of length 1."""
        return self.step_chunk(action.unsqueeze(1))

    @torch.no_grad()
    def step_chunk(self, actions: Tensor) -> ChunkStep:
        """Execute up to `k` actions (num_envs, k, action_dim), clamped to their bounds.

        Raises:
            UserError: an action, returned frame or reward is not finite or too large; the message names environment and
                step.
        """
        # 1. Execute the chunk.
        actions = self._checked(actions)
        sent = self._delay(actions)
        advance = self._advance(sent, self.max_steps - self.elapsed)
        # 2. Find the first end of each episode; later steps of the chunk do not count.
        steps = self.elapsed[:, None] + torch.arange(1, actions.shape[1] + 1, device=self.device)
        terminated = advance.terminated | (advance.success if self.terminate_on_success else False)
        truncated = (advance.truncated | (steps >= self.max_steps)) & ~terminated
        ended = (terminated | truncated).long()
        executed = ended.cumsum(1) - ended == 0  # up to and including the first end
        # 3. Check the numbers and compute the rewards; an error carries the tensors that explain it.
        try:
            check_advance(
                self._vectors(advance.frames),
                advance.task_reward,
                executed,
                place=self.place,
                tasks=self.spec.tasks,
                task=self.task,
                elapsed=self.elapsed,
            )
            reward, raw, weighted = self._reward(actions, advance, executed, steps, terminated)
        except BadNumbers as error:
            frames = self._vectors(advance.frames)
            error.tensors |= {"context": self._vectors(self.context), "actions": actions, "frames": frames}
            error.tensors |= {"task": self.task, "elapsed": self.elapsed, "seed": self.episode_seed}
            raise
        # 4. Move context, counters and action history forward by the executed steps of each row.
        n_executed = executed.sum(1)
        self.context = {
            name: window(torch.cat([frames, advance.frames[name]], dim=1), n_executed, self.n_context_frames)
            for name, frames in self.context.items()
        }
        self.elapsed = self.elapsed + n_executed
        self._history.add(actions, n_executed)
        final_obs = self.observe()
        result = ChunkStep(
            obs=final_obs,
            reward=reward,
            executed=executed,
            terminated=(terminated & executed).any(1),
            truncated=(truncated & executed).any(1),
            is_success=(advance.success & executed).any(1),
            final_obs=final_obs,
            frames={name: advance.frames[name].clone() for name in self.context},
            actions=sent.clone(),
            success=advance.success & executed,
            raw=raw,
            weighted=weighted,
            task_reward=None if advance.task_reward is None else advance.task_reward * executed,
        )
        # 5. Restart finished episodes (SAME_STEP); `final_obs` keeps their last observation.
        done = result.terminated | result.truncated
        if done.any():
            self._begin(done)
            result.obs = self.observe()
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on; a subclass adds its own state."""
        state: dict[str, Any] = {name: getattr(self, name).clone() for name in _STATE}
        state["context"] = {name: frames.clone() for name, frames in self.context.items()}
        state |= {"_delayed": self._delay.queue.clone(), "action_history": self._history.past.clone()}
        state["_fresh"] = self._history.is_empty.clone()
        rewards = {} if self.rewards is None else self.rewards.state_dict()
        return state | {"generator": self.generator.get_state(), "rewards": rewards}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        for name in _STATE:
            setattr(self, name, state[name].to(self.device, copy=True))
        self.context = {name: frames.to(self.device, copy=True) for name, frames in state["context"].items()}
        self._delay.queue = state["_delayed"].to(self.device, copy=True)
        self._history.past = state["action_history"].to(self.device, copy=True)
        self._history.is_empty = state["_fresh"].to(self.device, copy=True)
        self.begun = True
        self.generator.set_state(state["generator"])
        if self.rewards is not None:
            self.rewards.load_state_dict(state["rewards"])

    def close(self) -> None:  # noqa: B027 - most environments have nothing to release
        """Release processes and windows."""

    def _checked(self, actions: Tensor) -> Tensor:
        """Check actions (num_envs, k, action_dim) and clamp them to their bounds; see `checked_actions`."""
        return checked_actions(
            actions, self.action_low, self.action_high, place=self.place, context=self._vectors(self.context)
        )

    def _vectors(self, frames: Frames) -> Tensor:
        """Return state and `environment_state`, if there is one, joined. Shape: (num_envs, n_frames, .)."""
        return torch.cat([frames[name] for name in self.spec.vectors], dim=-1)

    def _begin(self, mask: Tensor) -> None:
        """Start a new episode where `mask` (num_envs,) is True, and clear all state of the previous one there."""
        start = self._restart(mask)
        for name, frames in self.context.items():
            frames[mask] = start.context[name]
        self.task[mask] = start.task
        self.elapsed[mask], self.episode_seed[mask] = 0, start.seed
        self._delay.reset(mask)
        self._history.reset(mask)
        if self.rewards is not None:
            self.rewards.reset(mask)

    def _reward(
        self, actions: Tensor, advance: Advance, executed: Tensor, steps: Tensor, terminated: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return total reward, raw and weighted terms, each (num_envs, k), 0 where not executed."""
        if self.rewards is None:
            return (advance.success & executed).to(actions.dtype), {}, {}
        # All terms are computed in one call: each executed step becomes one row of a transition.
        k = actions.shape[1]
        frames = {
            name: torch.cat([context[:, -1:], advance.frames[name]], dim=1) for name, context in self.context.items()
        }
        computed = self.rewards.compute(
            chunk_transition(
                frames=self.rewards.with_features(frames),
                actions=actions,
                past=self._history.before(actions),
                success=advance.success,
                terminated=terminated,
                elapsed=steps,
                task=self.task,
                slices=self.spec.vector_slices,
                progress=self._progress(frames) if "progress" in self.rewards.requires else None,
                task_reward=advance.task_reward,
                own_rewards=advance.own_rewards,
                images=self.rewards.images,
            ),
            executed.flatten(),
            n_steps=k,
        )
        raw = {name: value.view(-1, k) for name, value in computed.raw.items()}
        weighted = {name: value.view(-1, k) for name, value in computed.weighted.items()}
        return computed.total.view(-1, k), raw, weighted

    def _progress(self, frames: Frames) -> Tensor:
        """Estimate the progress of frames, each (num_envs, k + 1, *shape). Shape: (num_envs, k + 1)."""
        assert self.read_out is not None, "a RewardManager that requires progress was built without a read-out"
        return self.read_out(frames, self.task)[1]


def discounted(reward: Tensor, gamma: float) -> Tensor:
    """Return the sum of the rewards (n, k) of a chunk, discounted to its first step. Shape: (n,)."""
    return (reward * gamma ** torch.arange(reward.shape[1], device=reward.device)).sum(1)


def repeated(first: Tensor, n_context_frames: int) -> Tensor:
    """Return the context of new episodes (m, n_context_frames, *shape): their first frame (m, *shape), repeated."""
    return first.unsqueeze(1).repeat(1, n_context_frames, *(1 for _ in first.shape[1:]))
