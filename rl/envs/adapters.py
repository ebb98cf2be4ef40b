"""Adapters: any `BatchedEnv` as a Stable-Baselines3 `VecEnv`, a gymnasium `VectorEnv` or a single gymnasium `Env`.

Observations are flat float32 vectors in numpy; `BatchedEnv` itself works with torch tensors. With images, they are
dicts: `state` is that vector, and `images_CAMERA` the images (SB3 allows no dot in a name).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rewards.errors import UserError
from world_model.env import BatchedEnv, ChunkStep, Obs, discounted
from world_model.spec import STATE, Spec

Array = np.ndarray
NumpyObs = Array | dict[str, Array]
"""Vectors (N, D), or with images a dict of such vectors and of images (N, height, width, 3 * n_context_frames)."""

Indices = int | Iterable[int] | None


def flatten_obs(obs: Obs, spec: Spec) -> Tensor:
    """Return the context frames of each vector, oldest first, then the task as one-hot if there are several.

    Shape: (N, D).
    """
    frames = torch.cat([obs[name].flatten(1) for name in spec.vectors], dim=1)
    if len(spec.tasks) == 1:
        return frames
    return torch.cat([frames, torch.nn.functional.one_hot(obs["task"], len(spec.tasks)).to(frames.dtype)], dim=1)


def unflatten_obs(flat: Tensor | dict[str, Tensor], spec: Spec, n_context_frames: int) -> Obs:
    """Undo `flatten_obs`, or with images `numpy_obs`: return vectors (N, n_context_frames, .), task, images."""
    vector = flat if isinstance(flat, Tensor) else flat[STATE]
    sizes = [n_context_frames * spec.features[name].shape[0] for name in spec.vectors]
    *frames, one_hot = vector.split([*sizes, _n_task_columns(spec)], dim=1)
    task = one_hot.argmax(1) if one_hot.shape[1] else torch.zeros(len(vector), dtype=torch.long, device=vector.device)
    obs = {"task": task}
    for name, of in zip(spec.vectors, frames, strict=True):
        obs[name] = of.reshape(len(vector), n_context_frames, spec.features[name].shape[0])
    for name in spec.images:
        assert not isinstance(flat, Tensor), "observations with images are dicts"
        obs[name] = flat[_key(name)].unflatten(3, (n_context_frames, 3)).movedim(3, 1).to(torch.uint8)
    return obs


def numpy_obs(obs: Obs, spec: Spec) -> NumpyObs:
    """Return an observation as the adapters give it; the context frames of an image are stacked as channels."""
    vector = _to_numpy(flatten_obs(obs, spec))
    if not spec.images:
        return vector
    return {STATE: vector} | {_key(name): _to_numpy(obs[name].movedim(1, 3).flatten(3)) for name in spec.images}


def observation_space(env: BatchedEnv) -> Box | Dict:
    """Return the space of one observation: a vector (D,), with images a dict of it and of the images."""
    spec, n = env.spec, env.n_context_frames
    size = n * sum(spec.features[name].shape[0] for name in spec.vectors) + _n_task_columns(spec)
    vector = Box(-np.inf, np.inf, (size,), np.float32)
    if not spec.images:
        return vector
    spaces: dict[str, Any] = {STATE: vector}
    for name in spec.images:
        height, width, _ = spec.features[name].shape
        spaces[_key(name)] = Box(0, 255, (height, width, 3 * n), np.uint8)
    return Dict(spaces)


def row_of(obs: NumpyObs, i: int) -> Any:
    """Return a copy of the observation of environment `i`."""
    return {name: values[i].copy() for name, values in obs.items()} if isinstance(obs, dict) else obs[i].copy()


def action_space(env: BatchedEnv, k: int = 1) -> Box:
    """Return the space of `k` consecutive actions. Shape: (k * action_dim,)."""
    low, high = (np.tile(np.array(bound, np.float32), k) for bound in (env.spec.action_low, env.spec.action_high))
    return Box(low, high, dtype=np.float32)


class StepVecEnv(VecEnv):
    """A `BatchedEnv` for Stable-Baselines3, one action per step.

    `infos` contain the entries that a `Monitor` would add, so SB3 logs returns and successes without one. The
    environments of a batch share one random generator: `seed(s)` seeds it with `s` at the next reset. With
    `reset_seed`, every reset seeds it with that number, and the same episodes follow.
    """

    def __init__(self, batched: BatchedEnv, reset_seed: int | None = None) -> None:
        self.batched, self.reset_seed = batched, reset_seed
        self._episodes = _Episodes(batched)
        self._actions: Tensor | None = None
        super().__init__(batched.num_envs, observation_space(batched), action_space(batched))

    def reset(self) -> Any:
        """Begin an episode everywhere; return the observations (num_envs, D)."""
        obs = self._episodes.reset(self._seeds[0] if self.reset_seed is None else self.reset_seed)
        self._reset_seeds()
        self._reset_options()
        return obs

    def step_async(self, actions: Array) -> None:
        """Store `actions` (num_envs, ...) for `step_wait`."""
        self._actions = _to_torch(actions, self.batched)

    def step_wait(self) -> tuple[Any, Array, Array, list[dict[str, Any]]]:
        """Execute the stored actions; return observations (num_envs, D), rewards and dones (num_envs,), and infos."""
        assert self._actions is not None, "step_wait() without step_async()"
        result, self._actions = self._execute(self._actions), None
        return self.translate(result)

    def translate(self, result: ChunkStep) -> tuple[Any, Array, Array, list[dict[str, Any]]]:
        """Return the values of `step_wait` for a step that the caller executed on `batched` directly."""
        step = self._episodes.add(result)
        infos: list[dict[str, Any]] = [
            {"TimeLimit.truncated": truncated, "is_success": success}
            for truncated, success in zip(step.truncated.tolist(), step.is_success.tolist(), strict=True)
        ]
        for i in step.done.nonzero()[0]:
            infos[i]["terminal_observation"] = row_of(step.final_obs, int(i))
            infos[i]["episode"] = {"r": float(step.returns[i]), "l": int(step.lengths[i]), "t": step.time}
        return step.obs, self._reward(result), step.done, infos

    def count_anew(self) -> None:
        """Set return and length of every episode to 0; call it after a direct reset of `batched`."""
        self._episodes.begin()

    def close(self) -> None:
        """Close the environments."""
        self.batched.close()

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return an attribute of the batch, repeated for each index."""
        value = None if attr_name == "render_mode" else getattr(self.batched, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of the batch."""
        self._refuse_part(indices)
        setattr(self.batched, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the batch once; return its result, repeated for each environment."""
        self._refuse_part(indices)
        return [getattr(self.batched, method_name)(*method_args, **method_kwargs)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: Indices = None) -> list[bool]:
        """Return True for `Monitor` only: SB3's `evaluate_policy` then reads returns and lengths from `infos`."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def _execute(self, actions: Tensor) -> ChunkStep:
        return self.batched.step(actions)

    def _reward(self, result: ChunkStep) -> Array:
        return _to_numpy(result.reward.sum(1))

    def _refuse_part(self, indices: Indices) -> None:
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise UserError(f"{self.batched.place}: a batch of environments is one object; leave indices={indices} out")


class ChunkVecEnv(StepVecEnv):
    """A `StepVecEnv` with `k` actions per step, flattened to (k * action_dim,); actions after an end are not executed.

    The reward of a chunk is the sum over its executed steps, where step `t` of the chunk (from 0) is discounted by
    `gamma**t`. The return in `infos[i]["episode"]` is not discounted, and its length counts executed steps.
    """

    def __init__(self, batched: BatchedEnv, k: int, gamma: float = 1.0) -> None:
        super().__init__(batched)
        self.k, self.gamma = k, gamma
        self.action_space = action_space(batched, k)

    def _execute(self, actions: Tensor) -> ChunkStep:
        return self.batched.step_chunk(actions.reshape(self.num_envs, self.k, -1))

    def _reward(self, result: ChunkStep) -> Array:
        return _to_numpy(discounted(result.reward, self.gamma))


class GymVectorEnv(gymnasium.vector.VectorEnv[Any, Array, Array]):
    """A `BatchedEnv` for gymnasium's vector interface, in autoreset mode SAME_STEP.

    `infos` follow gymnasium: for an episode that ended, `final_obs` and `final_info` hold its last entries.
    """

    def __init__(self, batched: BatchedEnv) -> None:
        self.batched = batched
        self._episodes = _Episodes(batched)
        self.num_envs = batched.num_envs
        self.metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space, self.single_action_space = observation_space(batched), action_space(batched)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode everywhere; `seed` seeds the random generator that the environments share."""
        if options and "reset_mask" in options:
            raise UserError(f"{self.batched.place}: ended episodes restart by themselves; leave out 'reset_mask'")
        super().reset(seed=seed)
        return self._episodes.reset(seed), {}

    def step(self, actions: Array) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        """Execute one action per environment, (num_envs, action_dim)."""
        result = self.batched.step(_to_torch(actions, self.batched))
        step = self._episodes.add(result)
        done = step.done
        # `_key` is gymnasium's mask: the environments for which `key` is valid.
        infos: dict[str, Any] = {"is_success": step.is_success & ~done, "_is_success": ~done}
        if done.any():
            final_obs = np.full(self.num_envs, None, dtype=object)
            for i in done.nonzero()[0]:
                final_obs[i] = row_of(step.final_obs, int(i))
            final_info = {"is_success": step.is_success & done, "_is_success": done.copy()}
            infos |= {"final_obs": final_obs, "_final_obs": done.copy()}
            infos |= {"final_info": final_info, "_final_info": done.copy()}
        return step.obs, _to_numpy(result.reward.sum(1)), step.terminated, step.truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments."""
        self.batched.close()


class GymEnv(gymnasium.Env[Any, Array]):
    """A `BatchedEnv` of one environment for gymnasium.

    The batch restarts by itself, but gymnasium expects a `reset` first. The first observation of the next episode is
    kept until then.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, batched: BatchedEnv) -> None:
        if batched.num_envs != 1:
            raise UserError(f"{batched.place}: GymEnv takes one environment, num_envs={batched.num_envs}; make it 1")
        self.batched = batched
        self._episodes = _Episodes(batched)
        self.observation_space, self.action_space = observation_space(batched), action_space(batched)
        self._running = False
        self._first_obs: Array | None = None  # first observation of the next episode, between an end and `reset`

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; return its first observation (D,)."""
        super().reset(seed=seed)
        if seed is not None or self._first_obs is None:
            self._first_obs = row_of(self._episodes.reset(seed), 0)
        obs, self._first_obs, self._running = self._first_obs, None, True
        return obs, {}

    def step(self, action: Array) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Execute one action (action_dim,)."""
        if not self._running:
            raise ResetNeeded("no episode is running; call reset() first")
        result = self.batched.step(_to_torch(action[None], self.batched))
        step = self._episodes.add(result)
        obs = row_of(step.obs, 0)
        if step.done[0]:
            self._running, self._first_obs, obs = False, obs, row_of(step.final_obs, 0)
        info = {"is_success": bool(step.is_success[0])}
        return obs, float(result.reward.sum()), bool(step.terminated[0]), bool(step.truncated[0]), info

    def close(self) -> None:
        """Close the environment."""
        self.batched.close()


@dataclass
class _Step:
    """A `ChunkStep` in numpy, with return, length and success of each episode so far."""

    obs: NumpyObs  # num_envs rows
    final_obs: NumpyObs  # the same, before any restart
    terminated: Array  # (num_envs,) bool
    truncated: Array  # (num_envs,) bool
    done: Array  # (num_envs,) bool
    is_success: Array  # (num_envs,) bool, the episode has had a success
    returns: Array  # (num_envs,) float64
    lengths: Array  # (num_envs,) int64, executed steps
    time: float  # seconds since the adapter was made


class _Episodes:
    """Counts return, length and success of the running episodes, and converts observations to numpy."""

    def __init__(self, batched: BatchedEnv) -> None:
        self.batched = batched
        n = batched.num_envs
        self._returns, self._lengths, self._success = np.zeros(n), np.zeros(n, np.int64), np.zeros(n, bool)
        self._made = time.perf_counter()
        self.begin()

    def begin(self) -> None:
        """Count every environment from zero at its next step."""
        self._ended = np.ones(self.batched.num_envs, bool)

    def reset(self, seed: int | None) -> NumpyObs:
        """Reset all environments; return the first observations (num_envs, D)."""
        self.begin()
        return numpy_obs(self.batched.reset(seed), self.batched.spec)

    def add(self, result: ChunkStep) -> _Step:
        """Add `result` to the counts; return it in numpy together with them."""
        # An episode that ended in the previous step starts from zero in this one.
        self._returns = np.where(self._ended, 0.0, self._returns) + _to_numpy(result.reward.sum(1))
        self._lengths = np.where(self._ended, 0, self._lengths) + _to_numpy(result.executed.sum(1))
        self._success = (self._success & ~self._ended) | _to_numpy(result.is_success)
        terminated, truncated = _to_numpy(result.terminated), _to_numpy(result.truncated)
        self._ended = terminated | truncated
        return _Step(
            obs=numpy_obs(result.obs, self.batched.spec),
            final_obs=numpy_obs(result.final_obs, self.batched.spec),
            terminated=terminated,
            truncated=truncated,
            done=self._ended.copy(),
            is_success=self._success,
            returns=self._returns,
            lengths=self._lengths,
            time=round(time.perf_counter() - self._made, 6),
        )


def _key(name: str) -> str:
    return name.replace(".", "_")


def _n_task_columns(spec: Spec) -> int:
    return len(spec.tasks) if len(spec.tasks) > 1 else 0


def _to_numpy(values: Tensor) -> Array:
    # Copy even on the CPU, so that a caller who changes the array does not change the environment.
    return values.to("cpu", copy=True).numpy()


def _to_torch(actions: Array, env: BatchedEnv) -> Tensor:
    return torch.tensor(actions, dtype=torch.float32, device=env.device)
