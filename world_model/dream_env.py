"""The dream: a world model as a batched environment, with the interface of the simulator."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards import RewardManager
from rewards.errors import UserError
from world_model.api import Session, WorldModel
from world_model.data.episodes import Episode
from world_model.env import Advance, BatchedEnv, ChunkStep, Frames, Obs, Start, repeated
from world_model.tree import map_tree, replaced, rows, to

SURE = 0.5
"""A dreamed frame is a success if the success probabilities of it and of the previous frame reach this threshold."""

_STATE = ("chunks", "_sure", "_waiting")
"""State of a dream, in addition to that of every `BatchedEnv`; `state_dict` saves it under these names."""


@dataclass
class StartStates:
    """Initial states of real episodes, from which dreams start: a `Tree` of `n` rows."""

    context: Frames  # feature -> (n, n_context_frames, *shape)
    task: Tensor  # (n,) int64
    seed: Tensor  # (n,) int64, of the episode; with `in_order` it is also the episode seed of the dream

    @staticmethod
    def from_episodes(episodes: list[Episode], tasks: tuple[str, ...], n_context_frames: int) -> StartStates:
        """Take the first state of each episode, repeated `n_context_frames` times.

        Raises:
            UserError: there are no episodes.
        """
        if not episodes:
            raise UserError("a dream needs at least one recorded episode to start from; collect episodes first")
        firsts = {name: torch.stack([e.obs[name][0] for e in episodes]) for name in episodes[0].obs}
        context = {name: repeated(first, n_context_frames) for name, first in firsts.items()}
        task = torch.tensor([tasks.index(episode.task) for episode in episodes])
        return StartStates(context, task, seed=torch.tensor([episode.seed for episode in episodes]))

    @staticmethod
    def of(env: BatchedEnv) -> StartStates:
        """Copy the current states of an environment."""
        context = {name: frames.clone() for name, frames in env.context.items()}
        return StartStates(context, env.task.clone(), env.episode_seed.clone())

    def __len__(self) -> int:
        return len(self.task)


class DreamEnv(BatchedEnv):
    """Environments whose frames a world model predicts. Each environment is called a branch.

    Branches begin in real states and are truncated after `horizon` chunks, as in MBPO (Janner et al., 1906.08253). The
    session of the model has a row for each branch, which is replaced when the branch begins anew.

    `step` buffers single actions: until a chunk is complete, nothing is executed and the observation does not change;
    the last action of a chunk executes all of it. So the result of `step` has `k` = 0 or `k` = `chunk_size` steps.

    Args:
        model: predicts frames and success.
        num_envs: branches dreamed together.
        starts: real states to begin from, drawn at random (or in order, see `in_order`).
        horizon: chunks before a branch is truncated.
        max_expected_error: a branch is truncated, without a success, if the expected error of its last chunk is larger
            than this, in the model's `error_unit`; None: no limit.
        pessimism: penalty on the value with which such a truncation is bootstrapped (attribute `value_penalty`), so
            that the policy does not learn to seek states where the model is unreliable. MOReL (Kidambi et al.,
            2005.05951) has an absorbing state with a fixed penalty in this place.
        in_order: begin branch i at start i, with the seed of its episode; for paired evaluation.
        images: names of images that observations have beside the latents, for a policy that reads images; they are
            decoded at the end of each chunk.
        max_steps: this and all others as in `BatchedEnv`. The device is that of the model.
    """

    place = "dream"
    expected_error: Tensor
    task_shares: Tensor | None = None
    """Share of each task of the spec in the branches that begin (n_tasks,); None: that of its starts."""

    def __init__(
        self,
        model: WorldModel,
        num_envs: int,
        starts: StartStates,
        horizon: int = 2,
        max_steps: int = 150,
        in_order: bool = False,
        rewards: RewardManager | None = None,
        terminate_on_success: bool = True,
        action_delay: int = 0,
        obs_noise: float = 0.0,
        seed: int = 0,
        max_expected_error: float | None = None,
        pessimism: float = 0.0,
        images: Collection[str] = (),
    ) -> None:
        super().__init__(
            spec=model.predicted_spec,
            num_envs=num_envs,
            n_context_frames=model.n_context_frames,
            max_steps=max_steps,
            rewards=rewards,
            read_out=model.frame_read_out,
            terminate_on_success=terminate_on_success,
            action_delay=action_delay,
            obs_noise=obs_noise,
            seed=seed,
            device=model.device,
        )
        self.model, self.starts, self.horizon = model, to(starts, self.device), horizon
        # Simulators start with images, and with what a policy reads and the model does not predict.
        context = model.encode_obs(self.starts.context)
        newest = slice(-model.n_context_frames, None)
        self.starts.context = {name: context[name][:, newest] for name in model.predicted_spec.features}
        self.images = tuple(images)
        self.chunk_size, self.in_order = model.chunk_size, in_order
        self.max_expected_error, self.pessimism = max_expected_error, pessimism
        self.value_penalty = torch.zeros(num_envs, device=self.device)
        self.expected_error = torch.zeros(num_envs, device=self.device)
        self.chunks = torch.zeros(num_envs, dtype=torch.long, device=self.device)  # chunks since the branch began
        self.session: Session = None  # of the model, a row for each branch; there is none before the first `reset`
        self._sure = torch.zeros(num_envs, dtype=torch.bool, device=self.device)  # last frame reached `SURE`
        self._waiting = torch.zeros(num_envs, 0, model.spec.action_dim, device=self.device)  # buffered by `step`

    def reset(self, seed: int | None = None) -> Obs:
        """Begin all branches anew and discard the actions that `step` has buffered."""
        self._waiting = self._waiting[:, :0]
        return super().reset(seed)

    def observe(self) -> Obs:
        """Return the current observation, with the images that the policy reads."""
        obs = super().observe()
        return obs | self.model.decode_obs(obs, self.images) if self.images else obs

    def step(self, action: Tensor) -> ChunkStep:
        """Buffer one action (num_envs, action_dim); the last action of a chunk executes the whole chunk."""
        actions = torch.cat([self._waiting, self._checked(action.unsqueeze(1))], dim=1)
        if actions.shape[1] < self.chunk_size:
            self._waiting = actions
            return self._unchanged()
        self._waiting = actions[:, :0]
        return self.step_chunk(actions)

    def _restart(self, mask: Tensor) -> Start:
        m = int(mask.sum())
        # Draw also with `in_order`, which does not use the draws: the generator then advances in the same way.
        index = torch.randint(len(self.starts), (m,), generator=self.generator, device=self.device)
        seed = torch.randint(2**31, (m,), generator=self.generator, device=self.device)
        if self.task_shares is not None:
            index = self._drawn_by_task(m)
        if self.in_order:
            index = mask.nonzero().squeeze(1) % len(self.starts)
            seed = self.starts.seed[index]
        self.chunks[mask], self._sure[mask] = 0, False
        chosen = rows(self.starts, index)
        return Start(chosen.context, chosen.task, seed)

    def _drawn_by_task(self, m: int) -> Tensor:
        """Draw `m` starts so that tasks occur by `task_shares`; those without a start leave theirs to the others."""
        assert self.task_shares is not None
        counts = torch.bincount(self.starts.task, minlength=len(self.task_shares))
        weight = (self.task_shares.to(self.device) / counts.clamp(min=1))[self.starts.task]
        return torch.multinomial(weight, m, replacement=True, generator=self.generator)

    @torch.no_grad()
    def _begin(self, mask: Tensor) -> None:
        """Begin branches, and with each of them a new row of the session."""
        super()._begin(mask)
        begun = self.model.begin(self._history_of(mask), self.episode_seed[mask])
        self.session = begun if mask.all() else replaced(self.session, mask, begun)

    def _history_of(self, mask: Tensor) -> Obs:
        """Return the frames that the model has seen of the branches of a mask, without noise, and their tasks."""
        return {name: frames[mask] for name, frames in self.context.items()} | {"task": self.task[mask]}

    @torch.no_grad()  # the model may have trainable parameters
    def _advance(self, actions: Tensor, limit: Tensor) -> Advance:
        k = actions.shape[1]
        if k > self.chunk_size:
            raise UserError(
                f"dream: a chunk of {k} actions is longer than the {self.chunk_size} the model was trained on"
            )
        for name, feature in self.spec.features.items():
            if k % feature.every:
                raise UserError(
                    f"dream: a chunk of {k} actions ends between two {name}, which the model predicts every "
                    f"{feature.every} steps; take {feature.every} actions or a multiple"
                )
        self.session, predicted = self.model.predict(self.session, actions)
        if predicted.expected_error is not None:
            self.expected_error = predicted.expected_error
        sure = predicted.success >= SURE
        success = solved(sure, self._sure)
        self.chunks, self._sure = self.chunks + 1, sure[:, -1]
        # Truncate branches at the horizon, and those whose predictions are unreliable.
        most = math.inf if self.max_expected_error is None else self.max_expected_error  # 0 is a limit as well
        distrusted = self.expected_error > most
        success &= ~distrusted[:, None]  # an unreliable success does not count
        truncated = torch.zeros_like(sure)
        truncated[:, -1] = (self.chunks >= self.horizon) | distrusted
        self.value_penalty = self.pessimism * distrusted
        return Advance(predicted.frames, success, terminated=torch.zeros_like(sure), truncated=truncated)

    def _unchanged(self) -> ChunkStep:
        """Return the result of a `step` that only buffers its action: no steps (k = 0), the same observation."""
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
            frames={name: values[:, :0].clone() for name, values in self.context.items()},
            actions=steps.new_zeros(self.num_envs, 0, self.spec.action_dim),
            success=steps.bool(),
            raw={name: steps.clone() for name in terms},
            weighted={name: steps.clone() for name in terms},
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of `BatchedEnv`, the branches, the session of the model and the buffered actions."""
        own = {name: getattr(self, name).clone() for name in _STATE}
        session = None if self.session is None else map_tree(Tensor.clone, self.session)
        return super().state_dict() | own | {"session": session}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`, also of an older version."""
        super().load_state_dict(state)
        for name in _STATE:
            setattr(self, name, state[name].to(self.device, copy=True))
        session = state.get("session")
        if session is not None:
            self.session = map_tree(lambda values: values.to(self.device, copy=True), session)
            return
        # An older version saved no session: its models carried nothing but these frames and the number of the chunk.
        everywhere = torch.ones_like(self.task, dtype=torch.bool)
        self.session = self.model.begin(self._history_of(everywhere), self.episode_seed)
        if isinstance(self.session, dict) and "counter" in self.session:
            self.session["counter"] = self.chunks.clone()


def solved(sure: Tensor, before: Tensor) -> Tensor:
    """Return where a dream succeeds: in each frame that is sure and follows a sure one, which filters single errors.

    Args:
        sure: (n, k) bool, whether the success probability of a frame reaches `SURE`.
        before: (n,) bool, the same of the frame before them; False at the start of a dream.

    Returns:
        (n, k) bool.
    """
    return sure & torch.cat([before[:, None], sure[:, :-1]], dim=1)
