"""What post-training gave: the parts of its rounds, and success before and after."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from rl.rounds.evaluate import EpisodeResult
from rl.rounds.gate import Verdict

Weights = dict[str, Tensor]

STEPS = "time/total_timesteps"
"""Key under which the executed simulator steps are logged, in the word of Stable-Baselines3."""


@dataclass
class Part:
    """One part of a round: where PPO ran, the verdict of the gate, and the champion after it."""

    place: str  # "sim" or "dream"
    verdict: Verdict | None
    champion: Weights
    sim_steps: int  # executed for training so far
    gate_steps: int  # and for the gates
    seconds: float
    evaluation: list[EpisodeResult] = field(default_factory=list)  # of the champion, on seeds no gate saw
    n_updates: int = 0  # so far: of PPO in simulator and dream; a part of imitation is one
    rounds: float = 0.0  # that have ended with it; the parts that a round may have are equal shares of it

    @property
    def accepted(self) -> bool:
        """The part has a champion of its own; without a gate it always does."""
        return self.verdict is None or self.verdict.accepted


@dataclass
class Outcome:
    """What post-training gave. Every evaluation is on the same fresh seeds."""

    before: list[EpisodeResult]
    parts: list[Part]
    sim_steps: int
    gate_steps: int
    n_updates: int = 0
    stopped_by: str = ""  # name of the callback that ended the training; empty: it ran to its end

    @property
    def after(self) -> list[EpisodeResult]:
        """Evaluation of the last champion."""
        return self.parts[-1].evaluation if self.parts else self.before
