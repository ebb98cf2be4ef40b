"""The all-in budget of a run: what its training and its gates may use of the simulator, or of a robot, together.

`budget_steps` and `budget_episodes` count everything that the run learns from or decides by: PPO in the simulator,
exploring, and the episodes of both policies in every gate. Evaluation is not part of it: what comes before and after
training, and the pairs of the report.

The config says how much training there is. Gates get the rest: each an equal share of what is left, so what one gate
does not use goes to those after it. A share is planned as if every episode lasted `env.max_steps`. So no outcome can
exceed the budget, and a gate knows its size before its first episode, from what earlier gates used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rewards.errors import UserError
from rl.build import judged_in
from rl.config import TrainConfig
from rl.rounds.outcome import RunState


@dataclass(frozen=True)
class Limit:
    """One budget of a run, and what the run needs of it."""

    key: str  # of the config
    given: int  # for all tasks together
    unit: str  # what it counts
    training: int  # that training uses at most
    pair: int  # that a pair of a gate uses at most


@dataclass(frozen=True)
class GateBudget:
    """What all gates of a run may use together.

    Args:
        steps: in the simulator; inf: there is no limit.
        episodes: of both policies; inf: there is no limit.
        max_steps: of an episode.
    """

    steps: float = math.inf
    episodes: float = math.inf
    max_steps: int = 1

    def pairs(self, used_steps: int, used_pairs: int, n_gates: int) -> float:
        """Return how many pairs the next of the last `n_gates` gates may run: a whole number, or inf.

        `used_steps` and `used_pairs` are those of the gates before.
        """
        episodes = min((self.steps - used_steps) / self.max_steps, self.episodes - 2 * used_pairs) / n_gates
        return episodes if math.isinf(episodes) else math.floor(episodes / 2)


def pairs_of_gate(
    config: TrainConfig, chunk_size: int, n_tasks: int, state: RunState, n_gates: int, n_simulators: int
) -> tuple[int, int]:
    """Return the pairs that the next gate may use at most, and those of each task for its guard.

    Args:
        config: of the run.
        chunk_size: of the policy.
        n_tasks: of the run.
        state: what the run has used.
        n_gates: how many gates are left, this one included.
        n_simulators: in which gates run their episodes: one for each task, or a single one for all tasks. A single one
            cannot run the episodes of one task, so there is no guard, and all pairs are for the mean.
    """
    verdicts = [result.verdict for result in state.results if result.verdict is not None]
    used = state.gate_episodes + sum(pairs.n for verdict in verdicts for pairs in verdict.looked_at)
    share = gate_budget(config, chunk_size, n_tasks).pairs(state.gate_steps, used, max(n_gates, 1))
    pairs, guard = with_guard(share, block_of(config, n_simulators), n_simulators, config.gate.n_guard)
    return int(min(pairs, config.gate.max_episodes)), guard


def with_guard(share: float, block: int, n_simulators: int, n_guard: int) -> tuple[float, int]:
    """Divide the pairs of one gate: return the most pairs for the mean, and those of each task for its guard.

    The guard gets at most half of what is left after one block, and `n_guard` pairs of a task. With one simulator
    there is no guard (see `pairs_of_gate`).
    """
    if n_simulators == 1:
        return share, 0
    guard = int(min(n_guard, max(share - block, 0) // (2 * n_simulators)))
    return share - guard * n_simulators, guard


def rollout_size(config: TrainConfig, chunk_size: int) -> int:
    """Return the largest number of steps that a rollout in the simulator executes, in all environments together."""
    return config.env.n_envs * config.n_decisions(config.ppo.n_steps, chunk_size) * config.n_action_steps


def block_of(config: TrainConfig, n_simulators: int) -> int:
    """Return the pairs of one block of a gate, in which every simulator has equally many; see `pairs_of_gate`."""
    return -(-config.gate.n_episodes // n_simulators) * n_simulators


def gate_budget(config: TrainConfig, chunk_size: int, n_tasks: int) -> GateBudget:
    """Return what gates may use: the budget without what training uses at most."""
    left = {of.unit: of.given - of.training for of in _limits(config, chunk_size, n_tasks)}
    return GateBudget(**left, max_steps=config.env.max_steps)


def check_budget(config: TrainConfig, chunk_size: int, n_tasks: int, n_simulators: int, can_imitate: bool) -> None:
    """Refuse fewer simulator steps than one rollout executes, and a budget that is too small for the run.

    A budget must be enough for all training, and for one block of pairs in each gate. `n_simulators` is as in
    `pairs_of_gate`.

    Raises:
        UserError: it is too small.
    """
    size = rollout_size(config, chunk_size)
    if config.env.kind != "dream" and config.total_timesteps < size:
        raise UserError(
            f"total_timesteps={config.total_timesteps}: a rollout executes {size:,} steps (env.n_envs="
            f"{config.env.n_envs}, ppo.n_steps={config.ppo.n_steps} chunks of {chunk_size}); "
            "expected at least one; raise it, or lower env.n_envs or ppo.n_steps"
        )
    n_gates, block = config.n_gates(can_imitate), block_of(config, n_simulators)
    for of in _limits(config, chunk_size, n_tasks):
        needed = of.training + n_gates * block * of.pair
        if of.given < needed:
            n_each = n_tasks if of.unit == "episodes" else 1
            on_all = f" on {n_tasks} tasks" if n_tasks > 1 else ""
            raise UserError(
                f"{of.key}={of.given // n_each}: training takes up to {of.training:,} {of.unit}{on_all}, and {n_gates} "
                f"gates at least {needed - of.training:,} ({block} pairs each); expected at least "
                f"{-(-needed // n_each)}; raise it (null: no limit), or lower n_rounds, total_timesteps, "
                "dream.n_episodes or gate.n_episodes"
            )


def checked_plan(config: TrainConfig, chunk_size: int, n_tasks: int, n_simulators: int, can_imitate: bool) -> str:
    """Return in words how the run divides its budget; "" without one.

    Raises:
        UserError: the budget is too small, see `check_budget`.
    """
    check_budget(config, chunk_size, n_tasks, n_simulators, can_imitate)
    n_gates = config.n_gates(can_imitate)
    parts = [
        f"at most {of.given:,} {of.unit} in {judged_in(config)}, of them up to {of.training:,} to train and the rest "
        f"for {n_gates} gates"
        for of in _limits(config, chunk_size, n_tasks)
    ]
    return f"budget: {'; '.join(parts)}; evaluation is not counted" if parts else ""


def _limits(config: TrainConfig, chunk_size: int, n_tasks: int) -> list[Limit]:
    """Return the budgets that are set."""
    max_steps = config.env.max_steps
    in_sim, explored = _training(config, chunk_size)
    limits = []
    if config.budget_steps is not None:
        n_steps = in_sim + explored * max_steps
        limits.append(Limit("budget_steps", config.budget_steps, "steps", n_steps, 2 * max_steps))
    if config.budget_episodes is not None:
        given = config.budget_episodes * n_tasks
        # A rollout has no whole number of episodes: it counts by its steps.
        n_episodes = -(-in_sim // max_steps) + explored
        limits.append(Limit("budget_episodes", given, "episodes", n_episodes, 2))
    return limits


def _training(config: TrainConfig, chunk_size: int) -> tuple[int, int]:
    """Return the steps of PPO in the simulator at most, and the exploring episodes before dreams."""
    places = [config.places(i, can_imitate=True) for i in range(config.n_rounds)]
    explored = config.dream.n_episodes * sum("dream" in of for of in places)
    if not any("sim" in of for of in places):
        return 0, explored
    # It ends at the rollout that is nearest to `total_timesteps`.
    return config.total_timesteps + rollout_size(config, chunk_size) // 2, explored
