"""What PPO dreams in: the model as an environment, kept close to what the simulator has shown so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rewards.errors import UserError
from rl.build import SAME, make_rewards
from rl.config import DreamConfig, TrainConfig
from rl.ppo.buffer import Rollout
from rl.rounds.gate import Verdict
from rl.rounds.trust_signals import flipped, trust_weights
from world_model.data.episodes import Episode
from world_model.dream_env import DreamEnv, StartStates
from world_model.wam.metrics import prediction_metrics
from world_model.wam.model import WorldActionModel
from world_model.wam.training import StageConfig, train_stage
from world_model.wam.trust import HORIZON, calibrate, dream_of_real_actions

_STATE = ("episodes", "n_refitted", "success", "gap", "n_widenings")
"""Attributes of `Dreams` that change from round to round; the weights are the model's."""


class Dreams:
    """The episodes that were recorded, and the dream that is refitted on them.

    Raises:
        UserError: a reward term of `config` that a dream cannot serve, by name.
    """

    def __init__(self, config: TrainConfig, model: WorldActionModel) -> None:
        self.config, self.model = config, model
        self.rewards = make_rewards(config, model.spec, DreamEnv.place, model)
        self.episodes: list[Episode] = []
        self.n_refitted = 0  # of the episodes, in the last refit
        self.success = math.nan  # dreamed, in the last rollout
        self.gap = math.inf  # what the last dream promised more than the gate saw
        self.n_widenings = 0  # dreams in a row that won nothing and promised ever more

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next dream depends on, but the model."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name in _STATE:
            setattr(self, name, state[name])

    def env(self, starts: StartStates) -> DreamEnv:
        """Build the dream, with branches that begin in `starts`.

        Raises:
            UserError: trust is asked for, and it was never calibrated.
        """
        dream, model = self.config.dream, self.model
        if dream.reads_trust and not model.trust.given.fitted:
            raise UserError(
                "dream.max_expected_error, dream.weigh_by_trust: the checkpoint's trust was never calibrated, nor were "
                f"there new episodes of {HORIZON * model.config.chunk_size} steps to do it on; collect some "
                "(dream.n_episodes, dream.refit_steps), or leave these fields out"
            )
        return DreamEnv(
            model,
            dream.n_envs,
            starts,
            self.config.n_decisions(dream.horizon, model.config.chunk_size),
            dream.n_denoising_steps,
            rewards=self.rewards,
            seed=self.config.seed + len(self.episodes),
            max_expected_error=dream.max_expected_error,
            pessimism=dream.pessimism,
            **{name: getattr(self.config.env, name) for name in SAME},
        )

    def weigh(self, rollout: Rollout, seed: int) -> dict[str, float]:
        """Set what each chunk of a dreamed rollout counts, and take back successes that flip; returns what was seen."""
        config, seen = self.config.dream, {"expected_error": float(rollout.expected_error.mean())}
        if config.weigh_by_trust:
            rollout.weight = trust_weights(rollout.expected_error)
        if config.redream:
            marks = flipped(self.model, rollout, config.n_denoising_steps, seed, self.config.env.action_delay)
            n_successes = int(rollout.success.sum())
            rollout.weight, rollout.success = rollout.weight * ~marks, rollout.success & ~marks
            seen["flipped"] = 1 - int(rollout.success.sum()) / max(n_successes, 1)
        return seen

    @property
    def end(self) -> bool:
        """Whether dreams have promised ever more than they kept, and are not to be believed any longer."""
        most = self.config.dream.max_widenings
        return most is not None and self.n_widenings >= most

    def judge(self, verdict: Verdict) -> None:
        """Hear what a gate said of the last dream."""
        gap = self.success - verdict.challenger
        # A dream that promises less than it keeps does no harm, nor does one that won; of a NaN nothing is wider.
        harmless = verdict.won > verdict.lost or not gap > max(self.gap, 0.0)
        self.n_widenings, self.gap = 0 if harmless else self.n_widenings + 1, gap

    def error(self) -> float | None:
        """Prediction error on the episodes that no refit has seen; None where there is nothing to measure."""
        new = self._unseen(self.model.config.chunk_size)
        if not new or "object_pos" not in self.model.spec.slices:
            return None
        found = prediction_metrics(self.model, self.model.windows(new))["mean"]
        return found["error_ratio"] if found["n"] else None

    def refit(self, tick: Callable[[float], None] = lambda share: None) -> None:
        """Train the world decoder on all recorded episodes; policy, encoder and read-outs keep every bit.

        Before that, trust is calibrated on those that the world decoder has not seen yet. `tick` is called with
        the share of the training that is done.
        """
        config = self.config.dream
        if config.refit_steps == 0 or not self.episodes:
            return
        if config.reads_trust and (new := self._unseen(HORIZON * self.model.config.chunk_size)):
            retold = dream_of_real_actions(self.model, new)
            calibrate(self.model, retold.given.flatten(0, 1), retold.errors.flatten())
        refit(self.model, self.episodes, config, self.config.seed + len(self.episodes), tick)
        self.n_refitted = len(self.episodes)

    def _unseen(self, n_steps: int) -> list[Episode]:
        """Episodes of at least so many steps that no refit has seen."""
        return [e for e in self.episodes[self.n_refitted :] if e.length >= n_steps]


def refit(
    model: WorldActionModel,
    episodes: list[Episode],
    config: DreamConfig,
    seed: int,
    tick: Callable[[float], None] = lambda share: None,
) -> None:
    """Train the world decoder of `model` on episodes; policy, encoder and read-outs keep every bit."""
    stage = StageConfig(
        n_steps=config.refit_steps,
        batch_size=128,  # more steps buy more than larger batches
        learning_rate=config.refit_learning_rate,
        warmup_steps=config.refit_steps // 10 + 1,
        atoms=(0.0, 0.0, 1.0, 0.0, 0.0),
        seed=seed,
    )
    train_stage(
        "dynamics",
        model,
        model.windows(episodes, ends=True),
        stage,
        log=lambda step, _: tick(step / config.refit_steps),
    )
