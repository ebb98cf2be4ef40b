"""The result of post-training: the parts of its rounds, and success before and after."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from rl.rounds.evaluate import EpisodeResult
from rl.rounds.gate import Verdict

Weights = dict[str, Tensor]

STEPS = "time/total_timesteps"
"""Key under which the executed simulator steps are logged; the same as in Stable-Baselines3."""


@dataclass
class Part:
    """One part of a round: where it trained, the verdict of the gate, and the champion after it."""

    place: str  # "imitation", "sim" or "dream"
    verdict: Verdict | None  # None: no gate ran
    champion: Weights
    sim_steps: int  # executed for training since the run began
    gate_steps: int  # executed for gates since the run began
    seconds: float  # since the run began
    evaluation: list[EpisodeResult] = field(default_factory=list)  # of the champion, on seeds that no gate used
    n_updates: int = 0  # PPO updates since the run began; an imitation part counts as one
    rounds: float = 0.0  # finished after this part; each possible part is an equal fraction of a round

    @property
    def accepted(self) -> bool:
        """Whether the part made a new champion; without a gate it always does."""
        return self.verdict is None or self.verdict.accepted


@dataclass
class Outcome:
    """The result of post-training. Every evaluation uses the same seeds, which no gate used."""

    before: list[EpisodeResult]
    parts: list[Part]
    sim_steps: int
    gate_steps: int
    n_updates: int = 0
    stopped_by: str = ""  # name of the callback that stopped the training early; empty: none did

    @property
    def after(self) -> list[EpisodeResult]:
        """Return the evaluation of the last champion."""
        return self.parts[-1].evaluation if self.parts else self.before
