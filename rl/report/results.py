"""Where the gain of a run came from and what it cost, for the terminal and the report: `results.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rl.rounds.evaluate import mean_reward
from rl.rounds.outcome import PhaseResult
from rl.runs.state import Run
from rl.statistics import success_rate

RESULTS = "results.json"
"""File of a run folder with one entry for the run and for each of its controls, see `results_of`."""

Result = Mapping[str, Any]
"""One entry of `results.json`."""

SOURCES = {"imitation": "from imitation", "dream": "from the dream", "sim": "from the simulator"}
"""Phase of a round -> the row of a table that shows its share of the gain."""


def results_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return what each run reached after each of its phases, with its costs, as plain numbers for JSON."""
    return [
        {
            "name": run.name,
            "before": success_rate(run.outcome.before),
            "phases": [_phase(result) for result in run.outcome.results],
            "reward": [mean_reward(results) for results in (run.outcome.before, run.outcome.after)],
            "sim_steps": run.outcome.sim_steps,
            "gate_steps": run.outcome.gate_steps,
            "minutes": run.minutes,
            "with_noise": success_rate(run.outcome.with_noise) if run.outcome.with_noise else None,
        }
        for run in runs
    ]


def gain_from(result: Result, phase: str) -> float:
    """Return the sum of the changes in success over the phases with this name: imitation, sim or dream."""
    rates = [result["before"], *(of["success"] for of in result["phases"])]
    changes = zip(result["phases"], rates, rates[1:], strict=False)
    return sum(new - old for of, old, new in changes if of["phase"] == phase)


def sources(simulated: bool) -> dict[str, str]:
    """Return the phases of `SOURCES` that a run can have; `simulated`: it has a simulator."""
    return {phase: row for phase, row in SOURCES.items() if simulated or phase != "sim"}


def decomposition(result: Result, simulated: bool) -> dict[str, str]:
    """Return the rows of a table: the points of the gain by phase; `simulated`: the run has a simulator."""
    return {row: f"{100 * gain_from(result, phase):+.1f}" for phase, row in sources(simulated).items()}


def costs(result: Result, simulated: bool) -> dict[str, str]:
    """Return the rows of a table: time, and if the run has a simulator its steps, without those of evaluations."""
    steps = {
        "simulator steps, all in": f"{all_steps(result):,}",
        "steps of training": f"{result['sim_steps']:,}",
        "steps of gates": f"{result['gate_steps']:,}",
    }
    return {**(steps if simulated else {}), "minutes": f"{result['minutes']:.1f}"}


def all_steps(result: Result) -> int:
    """Return all simulator steps that a run needed: of training and gates."""
    return int(result["sim_steps"] + result["gate_steps"])


def with_noise(result: Result, obs_noise: float) -> dict[str, str]:
    """Return the row of a table: success of the champion with noise on observations; {} if it was not measured."""
    rate = result.get("with_noise")
    return {} if rate is None else {f"after, noise of {obs_noise:g}": f"{100 * rate:.1f} %"}


def reward(result: Result, simulated: bool) -> dict[str, str]:
    """Return the row of a table: the reward of an episode, before and after: the simulator's own if there is one."""
    before, after = result["reward"]
    return {"simulator's reward" if simulated else "reward": f"{before:.4g} → {after:.4g}"}


def _phase(result: PhaseResult) -> dict[str, Any]:
    return {
        "phase": result.phase,
        "accepted": result.accepted,
        "success": success_rate(result.evaluation),
        "rounds": result.rounds,
    }
