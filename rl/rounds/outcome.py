"""The state of post-training while it runs, and its result: the phases of its rounds, success before and after."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from rl.ppo.buffer import Samples
from rl.rounds.evaluate import EpisodeResult
from rl.rounds.gate import Verdict

Weights = dict[str, Tensor]

STEPS = "time/total_timesteps"
"""Key under which the executed simulator steps are logged; the same as in Stable-Baselines3."""


@dataclass
class PhaseResult:
    """What one phase of a round gave: the verdict of its gate, and the champion after it."""

    phase: str  # "imitation", "sim" or "dream"
    verdict: Verdict | None  # None: no gate ran
    champion: Weights
    sim_steps: int  # executed for training since the run began
    gate_steps: int  # executed for gates since the run began
    seconds: float  # since the run began
    evaluation: list[EpisodeResult] = field(default_factory=list)  # of the champion, on seeds that no gate used
    n_updates: int = 0  # PPO updates since the run began; an imitation phase counts as one
    rounds: float = 0.0  # finished after this phase; each possible phase is an equal fraction of a round

    @property
    def accepted(self) -> bool:
        """Whether the phase made a new champion; without a gate it always does."""
        return self.verdict is None or self.verdict.accepted


@dataclass
class RunState:
    """What a run has reached so far. The schedule and the phases update it, and a saved state holds all of it.

    The names of the fields are keys of saved states: after a rename, `SharedState.load_state_dict` must translate.
    """

    champion: Weights  # the best policy so far
    ref_kl_coef: float  # of the next dream; grows when a gate rolls a dream back
    critic_is_new: bool  # whether the next rollout is for the warm-up of the critic
    n_phases: int = 0  # phases that have ended; those that were skipped count too
    under_way: bool = False  # whether the next phase has begun
    sim_steps: int = 0  # executed for training
    gate_steps: int = 0  # executed for gates
    gate_episodes: int = 0  # seeds that gates have used
    explored: int = 0  # seeds that exploring has used
    n_updates: int = 0  # of PPO; an imitation phase counts as one
    noise_std: float | None = None  # of exploration, if `dream.noise_keeps` has set it, see `rl.rounds.noise`
    real: Samples | None = None  # the last rollout in the simulator, with Monte-Carlo returns; for critics of dreams
    stopped_by: str = ""  # name of the callback that ended the training; empty: none did
    tried: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # see `rl.rounds.exploring.BorrowedTasks`
    tasks_seen: dict[str, Tensor] = field(default_factory=dict)  # place -> counts by task, see `TaskShares`
    before: list[EpisodeResult] = field(default_factory=list)  # the evaluation before the training
    results: list[PhaseResult] = field(default_factory=list)  # of the phases so far, without the skipped ones


@dataclass
class Outcome:
    """The result of post-training. Every evaluation uses the same seeds, which no gate used."""

    before: list[EpisodeResult]
    results: list[PhaseResult]  # of the phases, in the order in which they ran
    sim_steps: int
    gate_steps: int
    n_updates: int = 0
    stopped_by: str = ""  # name of the callback that stopped the training early; empty: none did
    with_noise: list[EpisodeResult] = field(default_factory=list)  # of the last champion, see `eval.obs_noise`

    @property
    def after(self) -> list[EpisodeResult]:
        """Return the evaluation of the last champion."""
        return self.results[-1].evaluation if self.results else self.before
