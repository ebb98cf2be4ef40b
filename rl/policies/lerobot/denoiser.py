"""A policy of LeRobot as a `Denoiser`: observations to its batches, its chunks to actions of the environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards.errors import UserError
from rl.policies.api import Denoiser
from rl.policies.lerobot.conditioned import ConditionedFamily
from rl.policies.lerobot.families import STATE as LEROBOT_STATE
from rl.policies.lerobot.families import Family
from rl.policies.lerobot.fastwam import FastwamFamily
from rl.policies.lerobot.jepa import JepaFamily
from rl.policies.lerobot.loading import load, load_policy_weights
from rl.policies.lerobot.lora import add_lora, merged_state
from rl.policies.lerobot.regression import RegressionFamily
from rl.policies.lerobot.velocity import VelocityFamily
from world_model.env import Obs
from world_model.spec import IMAGES, STATE, Feature, Spec
from world_model.tree import Tree, join, n_rows, rows

FAMILIES: dict[str, type[Family]] = {
    "act": RegressionFamily,
    "diffusion": ConditionedFamily,
    "fastwam": FastwamFamily,
    "multi_task_dit": ConditionedFamily,
    "pi0": VelocityFamily,
    "pi05": VelocityFamily,
    "smolvla": VelocityFamily,
    "vla_jepa": JepaFamily,
}
"""Type of a policy -> its family."""

OBSERVATION = "observation."

AT_ONCE = 256
"""Observations that are encoded at once; more would need too much memory."""


class LeRobotDenoiser(Denoiser):
    """A policy of LeRobot, whose action side is trained; LeRobot's own training loss is its imitation loss.

    Args:
        checkpoint: folder with LeRobot's `config.json`, weights and processors.
        rename: feature that the policy reads -> feature of the environment, such as
            {"observation.images.top": "images.front"}; for all others the beginning `observation.` is left out.
        lora_rank: 0 trains the action side itself; above 0 train low-rank changes of its linear layers (Hu et al.,
            2106.09685), which needs the package peft.
        device: of the weights.

    Raises:
        UserError: the checkpoint cannot be loaded, see `rl.policies.lerobot.loading.load`; a feature is not supported
            or renamed to none.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        rename: Mapping[str, str] | None = None,
        lora_rank: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        self.masks_unknown = True
        self.checkpoint, self.loaded = Path(checkpoint), load(Path(checkpoint), device)
        self.policy: nn.Module = self.loaded.policy
        config = self.loaded.policy.config
        self.names = self._environment_names(config, dict(rename or {}))
        self.n_context_frames = int(config.n_obs_steps)
        self.family = FAMILIES[self.loaded.type](self.loaded.policy)
        self.horizon, self.chain_dim, self.first = self.family.horizon, self.family.chain_dim, self.family.first
        self.starts_at_zero, self.is_stochastic = self.family.starts_at_zero, self.family.is_stochastic
        self.n_denoising_steps = self.family.own_steps
        self.n_action_steps = int(config.n_action_steps)
        self.reads = {ours: self._feature(name, ours, config.input_features[name]) for name, ours in self.names.items()}
        if STATE not in self.reads:
            raise UserError(f"{checkpoint}: it reads no observation.state, which every environment has")
        trained = self.family.parameters()
        self._trained = add_lora(self.policy, trained, lora_rank) if lora_rank else trained
        self.n_features = self.family.condition(self._batch(self._zeros(), ["nothing"]))[1].shape[1]

    def attach(self, spec: Spec) -> None:
        """Keep action bounds, tasks and instructions of the environment.

        Raises:
            UserError: the environment has actions of another size.
        """
        if spec.action_dim != self.family.action_dim:
            raise UserError(
                f"{self.checkpoint}: it outputs actions of {self.family.action_dim} numbers, the environment expects "
                f"{spec.action_dim}; choose a policy that was trained on this environment"
            )
        super().attach(spec)

    def encode(self, obs: Obs, generator: torch.Generator | None = None) -> Tree:
        """Return the conditioning, or the observation itself if it is smaller; and features for the critic."""
        own = {name: obs[name] for name in (*self.reads, "task")}
        parts = [self._encode(rows(own, slice(i, i + AT_ONCE))) for i in range(0, n_rows(own), AT_ONCE)]
        return join(parts)

    def features(self, encoded: Tree) -> Tensor:
        """Return what the critic reads."""
        features: Tensor = encoded["features"]
        return features

    def prepare(self, encoded: Tree) -> Tree:
        """Return the conditioning of all steps."""
        kept = encoded["kept"]
        if not self.family.keeps_observation:
            return kept
        return self.family.condition(self._batch(kept, self._sentences(kept["task"])))[0]

    def step(self, prepared: Tree, x: Tensor, i: int, n_steps: int) -> tuple[Tensor, Tensor | None]:
        """Take a step as LeRobot's own sampler does with `n_steps`."""
        return self.family.step(prepared, x, i, n_steps)

    def to_actions(self, encoded: Tree, x: Tensor) -> Tensor:
        """Cut padding and past rows, and return the actions in the units of the dataset."""
        self._set_state(encoded["state"])
        chunk = x[:, :, : self.family.action_dim]
        actions: Tensor = self.loaded.postprocessor(chunk).to(x.device)
        return actions[:, self.first :]

    def noised(self, encoded: Tree, actions: Tensor, noise: Tensor, i: int, n_steps: int) -> Tensor | None:
        """Return normalised actions on the path of the policy's own noise; None for a regression."""
        clean = self._normalised(actions, encoded["state"])
        # In training the padded columns are zeros, to which noise is added.
        padded = torch.nn.functional.pad(clean, (0, self.chain_dim - self.family.action_dim))
        return self.family.noised(padded, noise, i, n_steps)

    def imitation_loss(self, encoded: Tree, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Return LeRobot's training loss, in evaluation mode: without dropout and random crops."""
        known = torch.isfinite(actions).all(-1, keepdim=True)
        # Unknown rows are filled, and the loss leaves them out.
        filled = torch.where(known, actions, actions[:, :1])
        normalised = self._normalised(filled, encoded["state"])
        errors = self.family.errors(self.prepare(encoded), normalised, generator)[:, self.first :]
        # A mean over the known rows, as LeRobot's mask of padded actions gives.
        return torch.where(known, errors, 0).sum() / (known.sum() * errors.shape[-1])

    def action_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the action side, or of LoRA."""
        return self._trained

    def own_chunk(self, obs: Obs, noise: Tensor) -> Tensor:
        """Return the actions (n, chunk_size, A) of LeRobot's own sampler from a starting noise, to compare with."""
        batch = self._batch({name: obs[name] for name in self.reads}, self._sentences(obs["task"]))
        chunk = self.family.own_sample(batch, noise)
        state = obs[STATE][:, -1]
        padded = torch.zeros(len(chunk), self.horizon, self.chain_dim, device=chunk.device)
        padded[:, : chunk.shape[1], : chunk.shape[2]] = chunk
        return self.to_actions({"state": state}, padded)

    def save(self, folder: Path) -> None:
        """Write a folder that LeRobot and this class load; the changes of LoRA are added to the weights.

        Its configuration has as many denoising steps and executed actions as this policy was trained with.
        """
        config = self.loaded.policy.config
        config.n_action_steps = self.n_action_steps
        if self.family.steps_key:
            setattr(config, self.family.steps_key, self.n_denoising_steps)
        self.loaded.policy.save_pretrained(folder, state_dict=merged_state(self.policy))
        for processor in (self.loaded.preprocessor, self.loaded.postprocessor):
            processor.save_pretrained(folder)

    def load_weights(self, folder: Path) -> None:
        """Load the weights that `save` wrote.

        Raises:
            UserError: they do not fit, or LoRA has split the layers of this policy.
        """
        if merged_state(self.policy).keys() != self.policy.state_dict().keys():
            raise UserError(f"{folder}: LoRA was added to this policy; load the folder as a new policy")
        load_policy_weights(self.policy, folder)

    def _encode(self, own: Obs) -> Tree:
        conditioning, features = self.family.condition(self._batch(own, self._sentences(own["task"])))
        kept = own if self.family.keeps_observation else conditioning
        # The state in raw units, for actions that are relative to it.
        return {"kept": kept, "features": features, "state": own[STATE][:, -1]}

    def _environment_names(self, config: Any, rename: dict[str, str]) -> dict[str, str]:
        """Return feature of the policy -> feature of the environment."""
        known = list(config.input_features)
        for name in rename:
            if name not in known:
                raise UserError(f"rename: the policy reads no {name!r}; it reads {', '.join(known)}")
        names = {}
        for name in known:
            ours = rename.get(name, name).removeprefix(OBSERVATION)
            if ours == "image":  # the name of a single camera in older datasets
                ours = f"{IMAGES}front"
            names[name] = ours
        return names

    def _feature(self, name: str, ours: str, feature: Any) -> Feature:
        if ours.startswith(IMAGES):
            channels, height, width = feature.shape
            if channels != 3:
                raise UserError(f"{self.checkpoint}: {name} has {channels} channels; only images of 3 are supported")
            return Feature((height, width, 3), dtype="uint8")
        return Feature(tuple(feature.shape))

    def _zeros(self) -> Obs:
        """Return an observation of one row, to measure sizes with."""
        device, n_frames = self.device, self.n_context_frames
        return {
            name: torch.zeros(1, n_frames, *feature.shape, dtype=getattr(torch, feature.dtype), device=device)
            for name, feature in self.reads.items()
        }

    def _sentences(self, task: Tensor) -> list[str]:
        return [self.spec.instruction(self.spec.tasks[i]) for i in task.tolist()]

    def _batch(self, obs: Obs, sentences: list[str]) -> dict[str, Any]:
        """Return LeRobot's preprocessed batch of an observation."""
        raw: dict[str, Any] = {"task": sentences}
        for name, ours in self.names.items():
            values = obs[ours]
            if ours.startswith(IMAGES):  # (n, n_frames, height, width, 3) in 0..255 -> (n, n_frames, 3, height, width)
                values = values.movedim(-1, -3).float() / 255
            raw[name] = values[:, -self.n_context_frames :] if self.family.has_time else values[:, -1]
        with torch.no_grad():
            batch: dict[str, Any] = self.loaded.preprocessor(raw)
        return batch

    def _normalised(self, actions: Tensor, state: Tensor) -> Tensor:
        """Return actions (n, chunk_size, A) as the preprocessor gives them to the training loss, (n, horizon, A).

        The rows of the past, before the first executed action, are unknown and repeat that action.
        """
        past = actions[:, :1].expand(-1, self.first, -1)
        transition = {"action": torch.cat([past, actions], dim=1), "observation": {LEROBOT_STATE: state}}
        for step in self.loaded.preprocessor.steps:
            if type(step).__name__ == "RelativeActionsProcessorStep":
                transition = step(transition)
            elif type(step).__name__ == "NormalizerProcessorStep":
                transition = {**transition, "action": step._normalize_action(transition["action"], inverse=False)}
        normalised: Any = transition["action"]
        assert isinstance(normalised, Tensor)
        return normalised

    def _set_state(self, state: Tensor) -> None:
        """Set the state that relative actions refer to: LeRobot keeps that of the last observation it processed."""
        for step in self.loaded.preprocessor.steps:
            if type(step).__name__ == "RelativeActionsProcessorStep":
                step._last_state = state
