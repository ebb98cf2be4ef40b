"""Isaac Lab as a `BatchedEnv`: any registered task, manager-based or direct, on its own device.

Isaac Lab's environments step together, restart by themselves, return their own buffers and leave actions unbounded.
This adapter keeps the contract of `BatchedEnv`: a chunk ends where its episode ends and the next episode begins after
the chunk, returned tensors belong to the caller, and actions stay within `action_bound`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import gymnasium
import torch
from torch import Tensor

from rewards.errors import UserError
from rewards.manager import ISAAC
from rl.envs.features import given_spec
from rl.envs.isaac.launch import OWN, IsaacTerm, as_bytes, images_of, launch, parts_of, read_spec
from rl.envs.names import IsaacOptions, typed_options
from rl.envs.simulator import Request, Simulator, usable_device
from world_model.env import Advance, Frames, Obs, Start, repeated
from world_model.spec import STATE, Feature

_open: list[str] = []
"""Id of the environment that this process holds, at most one: Isaac Lab cannot hold two in a process."""


class IsaacEnv(Simulator):
    """`num_envs` copies of an Isaac Lab task.

    Args:
        env_id: a registered id, such as "Isaac-Cartpole".
        groups: observation groups to read; their vectors form the state, in order, and each image is a feature
            `images.NAME`, named by its term.
        features: what the policy reads, see `given_spec`; None: the state and all images of the groups.
        success: the termination term that counts as success, such as "time_out" if surviving is the goal. A task of
            the direct workflow has no terms; name an entry of `extras` with one number per environment. None: the
            task has no success.
        action_bound: actions are within ± this, since Isaac Lab declares no bounds.
        overrides: changes to the task's own config, in Isaac Lab's syntax, such as "physics=newton_mjwarp".
        own_rewards: Isaac Lab's reward functions to compute, name -> (function, params).
        device: "cpu", "cuda:0", or "auto": the GPU if there is one.

    The other arguments, including those in `batched`, are those of `BatchedEnv`. An episode ends at the task's own
    limit if that is shorter than `max_steps`. After `set_episode_seeds`, a `reset` seeds Isaac Lab with the first
    seed, so an episode is identified by that seed and its place in the batch. An episode that begins later, before the
    next such reset, has seed -1 and cannot be repeated.

    Raises:
        UserError: Isaac Lab, the device, the id or an asset is missing, the state is no vector, there is no such
            termination term, or this process already holds an environment.
    """

    id_is_task = True
    provides = frozenset({"task_reward", ISAAC})
    max_steps = 10_000  # or the task's own limit, which is shorter
    alone = True

    @classmethod
    def build(cls, request: Request, **common: Any) -> Self:
        """Build environments as a config asks for them; see `Simulator.build`."""
        if not request.id:
            raise UserError("env.id: simulator isaac needs the id of a task, such as env.id=Isaac-Cartpole")
        own = vars(cls._typed(request.options)) | {"own_rewards": request.own_rewards, "features": request.features}
        # The device in `common` is the one that `pick_device` chose.
        return cls(request.id, request.n_envs, **own | common)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse an option that is not a field of `IsaacOptions`."""
        cls._typed(options)

    @classmethod
    def pick_device(cls, device: str, options: Mapping[str, Any]) -> str:
        """Return `device`, or if that is "auto" the value of `env.options.device`; see `Simulator.pick_device`."""
        if device != "auto":
            return usable_device("device", device)
        return usable_device("env.options.device", cls._typed(options).device)

    @staticmethod
    def _typed(options: Mapping[str, Any]) -> IsaacOptions:
        found: IsaacOptions = typed_options("isaac", options, IsaacOptions)
        return found

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        n_context_frames: int = 1,
        max_steps: int = 10_000,
        terminate_on_success: bool = True,
        seed: int = 0,
        groups: Sequence[str] = ("policy",),
        features: Mapping[str, Feature] | None = None,
        success: str | None = "success",
        action_bound: float = 1.0,
        overrides: Sequence[str] = (),
        own_rewards: Mapping[str, IsaacTerm] | None = None,
        device: str = "auto",
        **batched: Any,
    ) -> None:
        if _open:
            raise UserError(f"sim: this process already holds {_open[0]}, and Isaac Lab can hold one; close it first")
        self.env_id, self.groups, self.success, self.wave = env_id, tuple(groups), success, num_envs
        self.own = list(own_rewards or {})
        self._seen: dict[str, Tensor] = {}  # "success" -> (num_envs,), filled if a success must not end an episode
        only_seen = None if terminate_on_success or success in (None, "time_out") else (success, self._seen)
        self._env, self._launched = launch(
            env_id, num_envs, seed, overrides, own_rewards or {}, usable_device("env.options.device", device), only_seen
        )
        _open.append(env_id)
        try:
            obs = self._env.reset()[0]
            self._check_success()
            own = read_spec(self._env, obs, self.groups, env_id, action_bound)
            spec = given_spec(own, features, renders=False, robot_slices=self.robot_slices)
        except BaseException:
            self.close()  # or this process could make no other environment
            raise
        options = {**batched, "terminate_on_success": terminate_on_success, "seed": seed, "device": self._env.device}
        super().__init__(spec, num_envs, n_context_frames, min(max_steps, int(self._env.max_episode_length)), **options)
        self._images = self.spec.images
        self._newest = self._read(obs)
        # Environments that Isaac Lab itself restarted at the last step.
        self._begun_anew = torch.ones(num_envs, dtype=torch.bool, device=self.device)

    def expert_actions(self) -> Tensor:
        """Return the actions of the task's expert. Shape: (num_envs, action_dim).

        The registration of a task names its expert as `expert_entry_point`, a function from a dict of the state's
        slices, each (n, width), to actions (n, action_dim).

        Raises:
            UserError: the task has no expert.
        """
        name = gymnasium.spec(self.env_id).kwargs.get("expert_entry_point")
        if name is None:
            raise UserError(f"sim: {self.env_id} has no scripted expert; register it with an expert_entry_point")
        module, _, function = name.partition(":")
        state = self.context[STATE][:, -1]
        parts = {name: state[:, part] for name, part in self.spec.slices.items()}
        actions: Tensor = getattr(importlib.import_module(module), function)(parts)
        return actions

    def reset(self, seed: int | None = None) -> Obs:
        """Begin an episode everywhere; `seed` also seeds Isaac Lab's random generators."""
        if seed is not None and not self._seeds:
            self._env.seed(seed)
            self._begun_anew[:] = False
        return super().reset(seed)

    def close(self) -> None:
        """Close the simulator; after that, this process can make another one."""
        if _open:
            _open.clear()
            self._env.close()
            self._launched.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of `Simulator`, positions and velocities of the scene, and the step counts of the episodes.

        State that a task stores elsewhere, such as its commands or values drawn by its events, is not included. So a
        resumed run continues almost, but not exactly, as it would have.
        """
        scene = _cloned(self._env.scene.get_state(is_relative=True))
        targets = {name: [t.clone() for t in parts] for name, parts in self._targets().items()}
        clock = self._env.episode_length_buf.clone()
        return {**super().state_dict(), "scene": scene, "targets": targets, "clock": clock}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        everyone = torch.arange(self.num_envs, device=self.device, dtype=torch.int32)
        # Reset the scene, not the environment, since its reset events would draw new masses and gains.
        self._env.scene.reset_to(_cloned(state["scene"]), everyone, is_relative=True)
        # `reset_to` sets the target of each joint to its current position; restore the saved targets.
        for name, parts in self._targets().items():
            for target, saved in zip(parts, state["targets"][name], strict=True):
                target.copy_(saved)
        self._env.sim.forward()
        self._env.episode_length_buf[:] = state["clock"]

    def _targets(self) -> dict[str, list[Tensor]]:
        """Return the targets (position, velocity, effort) of each robot's actuators: Isaac Lab's own buffers."""
        commands = {name: robot.actuators.target_command for name, robot in self._env.scene.articulations.items()}
        return {name: [c.position.torch, c.velocity.torch, c.effort.torch] for name, c in commands.items()}

    def _restart(self, mask: Tensor) -> Start:
        which = mask.nonzero().squeeze(1)
        named = bool(self._seeds)  # a reset that starts named episodes
        seeds = self._next_seeds(len(which))
        if named:
            self._newest = self._read(self._env.reset(seed=int(seeds[0]))[0])
        elif (late := mask & ~self._begun_anew).any():
            # These did not restart in Isaac Lab at the last step. Either it restarted them earlier in the chunk, or
            # only this adapter ended the episode (`max_steps`, success). Restart them now.
            self._newest = self._read(self._begin_anew(late.nonzero().squeeze(1).int()))
        context = {name: repeated(values[mask], self.n_context_frames) for name, values in self._newest.items()}
        return Start(context, torch.zeros_like(which), seeds)

    def _begin_anew(self, which: Tensor) -> Mapping[str, Any]:
        """Restart some environments as Isaac Lab does within a step; return the observations of all."""
        env = self._env
        env._reset_idx(which)
        env.scene.write_data_to_sim()
        env.sim.forward()
        manager = getattr(env, "observation_manager", None)
        obs: Mapping[str, Any] = manager.compute(update_history=True) if manager else env._compute_observations()
        return obs

    def _advance(self, actions: Tensor, limit: Tensor) -> Advance:
        alive = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        steps, frames = [], []
        before = {name: values[:, -1] for name, values in self.context.items()}
        for j in range(actions.shape[1]):
            # All environments step together. One whose episode has ended gets zero actions until the chunk ends.
            obs, reward, terminated, truncated, extras = self._env.step(actions[:, j] * alive[:, None])
            ended = terminated | truncated
            self._newest = frame = self._read(obs)
            # Isaac Lab has already restarted ended environments, so `obs` shows their next episode. The last
            # observation of an ended episode is in `final_obs`, which changes only when an episode ends.
            if ended.any():
                final = self._read(extras["final_obs"])
                frame = {name: _where(ended, final[name], values) for name, values in frame.items()}
            # The manager's sum contains the added terms; `task_reward` is the sum without them, over one step.
            own = self._own_rewards()
            success = self._succeeded(extras, truncated)
            steps.append((success, terminated.clone(), truncated.clone(), reward - own.sum(1) * self._env.step_dt, own))
            # A camera slower than the control loop repeats its last image, except at the end of an episode.
            for name in self.spec.images:
                due = ((self.elapsed + j + 1) % self.spec.features[name].every == 0) | ended | success
                due |= j + 1 == limit
                frame[name] = _where(due, frame[name], before[name])
            frames.append(frame)
            before, self._begun_anew = frame, ended
            alive &= ~(ended | success) if self.terminate_on_success else ~ended
        success, terminated, truncated, reward, own = (torch.stack(parts, 1) for parts in zip(*steps, strict=True))
        return Advance(
            frames={name: torch.stack([frame[name] for frame in frames], 1) for name in self.context},
            success=success,
            terminated=terminated,
            truncated=truncated,
            task_reward=reward,
            own_rewards={name: own[..., i] for i, name in enumerate(self.own)},
        )

    def _read(self, obs: Mapping[str, Any]) -> Frames:
        """Return copies of the state (num_envs, state_dim) and of the images that are read, uint8."""
        vectors = [part.float() for _, part in parts_of(self._env, obs, self.groups) if part.dim() == 2]
        images = images_of(self._env, obs, self.groups)
        return {STATE: torch.cat(vectors, dim=1)} | {name: as_bytes(images[name]) for name in self._images}

    def _own_rewards(self) -> Tensor:
        """Return the values of Isaac Lab's own reward functions in the last step, per second. Shape: (num_envs, n)."""
        if not self.own:
            return torch.zeros(self.num_envs, 0, device=self.device)
        manager = self._env.reward_manager
        return manager._step_reward[:, [manager.active_terms.index(OWN + name) for name in self.own]].clone()

    def _succeeded(self, extras: Mapping[str, Any], truncated: Tensor) -> Tensor:
        """Return where the last step succeeded. Shape: (num_envs,)."""
        manager = getattr(self._env, "termination_manager", None)
        if self.success is None:
            return torch.zeros_like(truncated)
        if self._seen:
            return self._seen["success"].clone()
        if manager is not None:
            return manager.get_term(self.success).clone()
        return truncated.clone() if self.success == "time_out" else torch.as_tensor(extras[self.success]).bool().clone()

    def _check_success(self) -> None:
        manager = getattr(self._env, "termination_manager", None)
        known = [*manager.active_terms] if manager else ["time_out", *self._env.extras]
        if self.success is not None and self.success not in known:
            raise UserError(
                f"env.options.success={self.success}: {self.env_id} has no such termination term; expected one of "
                f"{', '.join(known)}, or null where there is no success"
            )


def _cloned(state: Any) -> Any:
    return state.clone() if isinstance(state, Tensor) else {key: _cloned(value) for key, value in state.items()}


def _where(rows: Tensor, values: Tensor, others: Tensor) -> Tensor:
    """Return `values` (num_envs, ...) where `rows` (num_envs,) is True, else `others`."""
    return torch.where(rows.view(-1, *(1 for _ in values.shape[1:])), values, others)
