"""The part of a saved state that is the same in all processes of a run: weights, optimizer, dream and what was reached.

The part that is different in each process is in `rl.rounds.process_state`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rewards.errors import UserError
from rl.policies.api import Denoiser
from rl.policies.chain import load_weights
from rl.ppo.callbacks import RunCallbacks
from rl.ppo.update import PPO
from rl.rounds.dreams import Dreams
from rl.rounds.outcome import RunState
from rl.world_models import load_world_model_state, world_model_state
from world_model.api import WorldModel

_OLD_KEYS = {"n_places": "n_phases", "parts": "results", "_critic_is_new": "critic_is_new"}
"""Fields of `RunState` in the saved states of older versions, and what they are called now."""


@dataclass(frozen=True)
class SharedState:
    """What all processes have alike, in the objects of a run."""

    chunk_size: int
    n_action_steps: int
    ppo: PPO
    denoiser: Denoiser | None  # the network of a policy that was brought
    world_model: WorldModel | None  # that dreams, if it is another network than the policy; a refit changes it
    dreams: Dreams | None
    callbacks: RunCallbacks
    state: RunState

    def state_dict(self) -> dict[str, Any]:
        """Return the part that all processes share."""
        return {
            "run": dict(vars(self.state)),
            "weights": self._weights(),
            "world_model": None if self.world_model is None else world_model_state(self.world_model),
            "optimizer": self.ppo.optimizer.state_dict(),
            "dreams": None if self.dreams is None else self.dreams.state_dict(),
            "callbacks": self.callbacks.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, also in an older version.

        Raises:
            UserError: an older version began the run, and counted its chunks in another way.
        """
        self._load_run(saved["run"])
        if self.denoiser is None:
            load_weights(self.ppo.policy, saved["weights"])
        else:
            self.ppo.policy.load_state_dict(saved["weights"], strict=False)
        if self.world_model is not None and saved.get("world_model") is not None:
            load_world_model_state(self.world_model, saved["world_model"])
        self.ppo.optimizer.load_state_dict(saved["optimizer"])
        if self.dreams is not None:
            self.dreams.load_state_dict(saved["dreams"])
        self.callbacks.load_state_dict(saved.get("callbacks"))  # an older state has none

    def _weights(self) -> dict[str, Tensor]:
        """Return the weights of the policy: of one that was brought, those that training changes."""
        weights = dict(self.ppo.policy.state_dict())
        if self.denoiser is None:
            return weights
        trained = {name for name, parameter in self.ppo.policy.named_parameters() if parameter.requires_grad}
        return {name: of for name, of in weights.items() if name in trained or not name.startswith("denoiser.")}

    def _load_run(self, saved: dict[str, Any]) -> None:
        # States of older versions have no `n_updates`; their log used simulator steps as its axis.
        is_older = "n_updates" not in saved
        if is_older and self.n_action_steps < self.chunk_size:
            raise UserError(
                f"n_action_steps={self.n_action_steps}: an older version began this run, whose ppo.n_steps "
                "and dream.horizon counted the executed parts of chunks; finish it there, or begin a new one"
            )
        # In place, because the phases hold the same object.
        for name, value in saved.items():
            setattr(self.state, _OLD_KEYS.get(name, name), value)
        if self.ppo.policy.noise_std > 0:  # 0: the policy sets its noise itself
            self.ppo.policy.noise_std = self.state.noise_std or self.ppo.config.noise_std
        if is_older:
            self.state.n_updates = self.state.sim_steps  # continue the axis where it ended
