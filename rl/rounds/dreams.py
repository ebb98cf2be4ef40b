"""The dream that PPO trains in: the world model as an environment, refitted on the episodes recorded so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rewards.errors import BadNumbers, UserError
from rl.build import SAME, make_rewards
from rl.config import TrainConfig
from rl.envs.recorded import refit_read_out
from rl.ppo.buffer import Rollout
from rl.ppo.distributed import Distributed
from rl.rounds.gate import Verdict
from rl.rounds.trust_signals import make_signals
from rl.world_models import load_world_model_state, world_model_state
from world_model.api import WorldModel
from world_model.data.episodes import Episode
from world_model.dream_env import DreamEnv, StartStates
from world_model.replays import HORIZON, error_ratio

_STATE = ("episodes", "n_refitted", "success", "gap", "n_widenings")
"""Attributes of `Dreams` that change from round to round; the weights belong to the model."""


class Dreams:
    """The recorded episodes, and the dream that is refitted on them.

    Args:
        config: of the run; in several processes, of the share of this one.
        model: dreams.
        images: see `DreamEnv`.
        distributed: the processes that dream and refit together. None: there is one process.

    Raises:
        UserError: a dream cannot compute a reward term of `config`, or a trust signal cannot be built; both are named.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: WorldModel,
        images: tuple[str, ...] = (),
        distributed: Distributed | None = None,
    ) -> None:
        self.config, self.model, self.images = config, model, images
        self.distributed = distributed or Distributed()
        self.rewards = make_rewards(config, model.predicted_spec, DreamEnv.place, model)
        self.signals = make_signals(config)
        self.episodes: list[Episode] = []
        self.n_refitted = 0  # how many of the episodes the last refit used
        self.success = math.nan  # success rate of the last dreamed rollout
        self.gap = math.inf  # success in the last dream minus success at its gate
        self.n_widenings = 0  # consecutive dreams without a gain at the gate and with a wider gap each time

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next dream depends on, except the model."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, also in an older version, which saved more."""
        for name in _STATE:
            setattr(self, name, state[name])

    def env(self, starts: StartStates) -> DreamEnv:
        """Build the dream, whose branches begin in `starts`.

        Raises:
            UserError: the config uses the expected error of the model, which it cannot estimate.
        """
        dream, model = self.config.dream, self.model
        if dream.reads_trust and not model.estimates_error:
            fields = "dream.max_expected_error, dream.weigh_by_trust, dream.trust"
            if dream.brought is not None:
                raise UserError(
                    f"{fields}: dream.world_model={dream.brought.func} estimates no error; give its predictions an "
                    "expected_error and let estimates_error be True, or leave these fields out"
                )
            raise UserError(
                f"{fields}: the checkpoint's trust was never calibrated, nor were there new episodes of "
                f"{HORIZON * model.chunk_size} steps to do it on; collect some (dream.n_episodes, dream.refit_steps), "
                "or leave these fields out"
            )
        return DreamEnv(
            model,
            dream.n_envs,
            starts,
            self.config.n_decisions(dream.horizon, model.chunk_size),
            rewards=self.rewards,
            seed=self.config.seed + len(self.episodes),  # another one after new episodes, and the same after a resume
            max_expected_error=dream.max_expected_error,
            pessimism=dream.pessimism,
            images=self.images,
            **{name: getattr(self.config.env, name) for name in SAME},
        )

    def weigh(self, rollout: Rollout, seed: int) -> dict[str, float]:
        """Multiply the weight of each chunk of a dreamed rollout by all trust signals; return statistics to log.

        In a chunk of weight 0 the success is removed as well, so it is neither counted nor imitated.

        Raises:
            UserError: a signal failed, see `Signal`.
            BadNumbers: no chunk has any weight left.
        """
        seen = {"expected_error": float(rollout.expected_error.mean())}
        n_successes = int(rollout.success.sum())
        # Compute all signals before any is applied, so that each sees the rollout as it was dreamed.
        trusts = [(signal, signal(rollout, self.model, seed)) for signal in self.signals]
        for signal, trust in trusts:
            if signal.func == "redream":
                n_flipped = int((rollout.success & (trust == 0)).sum())
                seen["flipped"] = n_flipped / max(n_successes, 1)
            if signal.at:
                seen[f"trust/{signal.name}"] = float(trust.mean())
        # Apply them: weights multiply, and a success counts only where every signal is above 0.
        for _, trust in trusts:
            rollout.weight, rollout.success = rollout.weight * trust, rollout.success & (trust > 0)
        if not self.distributed.any(bool(rollout.weight.any())):
            names = ", ".join(signal.name for signal in self.signals)
            raise BadNumbers(f"every chunk of a dreamed rollout got weight 0 from the trust signals {names} together")
        return self.distributed.mean(seen)

    @property
    def are_over(self) -> bool:
        """Whether the gap has widened too often (`dream.max_widenings`), so that no more dreams are run."""
        most = self.config.dream.max_widenings
        return most is not None and self.n_widenings >= most

    def update_gap(self, verdict: Verdict) -> None:
        """Update the gap and the count of widenings from the gate after the last dream.

        Where the environment reports no success, the dreamed one has no counterpart, so there is no gap.
        """
        if verdict.by_reward:
            return
        gap = self.success - verdict.challenger
        # Harmless: a gain at the gate, or a gap that is negative or no wider than the last. `not >` holds for NaN too.
        harmless = verdict.won > verdict.lost or not gap > max(self.gap, 0.0)
        self.n_widenings, self.gap = 0 if harmless else self.n_widenings + 1, gap

    def error(self) -> float | None:
        """Return the prediction error on episodes that no refit has used; None if it cannot be measured."""
        new = self._unseen(self.model.chunk_size)
        if not new or "object_pos" not in self.model.predicted_spec.slices:
            return None
        return error_ratio(self.model, new)

    def refit(self, tick: Callable[[float], None] = lambda share: None) -> None:
        """Train the prediction of frames on all recorded episodes; of our own model that is the world decoder alone.

        On tasks that it was never trained on, our own model also learns success, see `dream.refit_read_out`. First,
        trust is calibrated on the episodes that it was not trained on.

        Args:
            tick: called with the share of the work that is done.
        """
        config = self.config.dream
        n_steps = round(config.refit_steps * (config.later_refits if self.n_refitted else 1.0))
        if n_steps == 0 or not self.episodes:
            return
        calibration = 0.0  # its share of the work
        # Calibrate before the refit: afterwards these episodes are training data, and errors on them are too small.
        if config.reads_trust and (new := self._unseen(HORIZON * self.model.chunk_size)):
            calibration = 1 / 3  # of the time, roughly
            self.model.calibrate_trust(new, lambda share: tick(calibration * share))
        seed = self.config.seed + len(self.episodes)
        self.model.refit_together(
            self.episodes,
            n_steps=n_steps,
            learning_rate=config.refit_learning_rate,
            seed=seed,
            tick=lambda share: tick(calibration + (1 - calibration) * share),
            share=self.distributed.share,
        )
        # The world decoder does not depend on the read-out, so the frames are the same with it and without it.
        refit_read_out(self.config, self.model, self.episodes, seed)
        self._copy_from_first()
        self.n_refitted = len(self.episodes)

    def _copy_from_first(self) -> None:
        """Give all processes the weights of process 0: a processor of another kind may round differently."""
        if self.distributed.world_size > 1:
            state = world_model_state(self.model)
            self.distributed.copy_from_first(state)
            load_world_model_state(self.model, state)

    def _unseen(self, n_steps: int) -> list[Episode]:
        """Return the episodes of at least `n_steps` steps that no refit has used."""
        return [e for e in self.episodes[self.n_refitted :] if e.length >= n_steps]
