"""Simulate whole runs whose truth is known: what do their gates cost, and what does a budget cost in success?

    python benchmarks/budget.py                                            # dream and mix; twenty seconds on one core
    python benchmarks/budget.py dream budget_episodes=150 n_rounds=2       # any preset with overrides

Each row has 1,000 runs of the gates of a preset, with its budget and without. The champion begins at 50 %. Each phase
changes it by -20, -10, 0, +5, +15 or +30 points, drawn at random (within 5 and 98 %), and a gate accepts the change or
rolls it back. A success takes 75 steps, a failure `env.max_steps`. The dream copies 45 % of the outcomes.

`steps` are those of all gates and of training; `pairs` those of a gate; `lost` and `missed` are the shares of losses of
10 points or more that were accepted, and of gains of 15 points or more that were refused; `success` is the true success
of the last champion. A gate that knew the truth would give the `success` of the last row.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace

import numpy as np
from gate_coverage import GAINS, SHARED, dreamed

from rl.compose import compose
from rl.config import TrainConfig
from rl.rounds.budget import GateBudget, gate_budget
from rl.rounds.gate import decide, evidence
from rl.sequential import Floats

COPIES, SUCCESS_STEPS, START = 0.45, 75, 0.5
CHUNK_SIZE = 8


@dataclass
class Runs:
    """What many runs have reached."""

    rate: Floats  # (runs,) true success of the champion
    steps: Floats  # (runs,) of gates
    pairs: Floats  # (runs,) of gates
    n_pairs: list[Floats] = field(default_factory=list)  # of each gate
    lost: list[Floats] = field(default_factory=list)  # accepted, where the new policy was worse
    missed: list[Floats] = field(default_factory=list)  # refused, where it was better


def simulate(config: TrainConfig, n_runs: int, rng: np.random.Generator, all_knowing: bool = False) -> Runs:
    """Run the gates of `config` in `n_runs` runs; with `all_knowing` they decide by the truth, without an episode."""
    n_gates = config.n_gates(can_imitate=True)
    budget = gate_budget(config, CHUNK_SIZE, 1)
    runs = Runs(np.full(n_runs, START), np.zeros(n_runs), np.zeros(n_runs))
    for left in range(n_gates, 0, -1):
        rate = np.clip(runs.rate + rng.choice(GAINS, n_runs), 0.05, 0.98)
        gain = rate - runs.rate
        accepted = gain >= 0 if all_knowing else run_gates(config, budget, runs, gain, left, rng)
        if (worse := gain <= -0.1).any():
            runs.lost.append(accepted[worse])
        if (better := gain >= 0.15).any():
            runs.missed.append(~accepted[better])
        runs.rate = np.where(accepted, rate, runs.rate)
    return runs


def run_gates(
    config: TrainConfig, budget: GateBudget, runs: Runs, gain: Floats, left: int, rng: np.random.Generator
) -> Floats:
    """Run the next gate of each run, of which `left` are left; return which accepted, and count what they used."""
    longest, alpha = config.gate.max_episodes, config.gate.alpha / config.n_gates(can_imitate=True)
    used = zip(runs.steps, runs.pairs, strict=True)
    most = np.array([min(budget.pairs(int(s), int(p), left), longest) for s, p in used], int)
    shape = len(gain), longest, 1 + config.gate.n_dreams

    def outcomes() -> tuple[Floats, Floats]:
        u, v = rng.random((2, *shape))
        v = np.where(rng.random(shape) < SHARED, u, v)
        before = runs.rate[:, None, None]
        return (u < before).astype(float), (v < before + gain[:, None, None]).astype(float)

    (old, new), (own_old, own_new) = outcomes(), outcomes()
    dream = dreamed(new, own_new, COPIES, rng) - dreamed(old, own_old, COPIES, rng)
    found = evidence((new - old)[..., 0], dream[..., 0], dream[..., 1:], alpha=alpha)
    n, accepted = np.zeros(len(gain), int), np.zeros(len(gain), bool)
    for size in np.unique(most):
        block = config.gate.n_episodes
        looks, of = np.array([min(i, size) for i in range(block, size + block, block)]), most == size
        cut = replace(found, **{name: values[of][:, looks - 1] for name, values in vars(found).items()})
        decision = decide(cut, looks, int(size), alpha, config.gate.z_loss)
        first = (decision.reason != "").argmax(1)
        n[of], accepted[of] = looks[first], np.take_along_axis(decision.accepted, first[:, None], 1)[:, 0]
    lengths = np.where(np.stack([old[..., 0], new[..., 0]]) > 0, SUCCESS_STEPS, config.env.max_steps).sum(0)
    runs.steps = runs.steps + np.take_along_axis(np.cumsum(lengths, 1), n[:, None] - 1, 1)[:, 0]
    runs.pairs = runs.pairs + n
    runs.n_pairs.append(n)
    return accepted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="a preset and overrides; dream and mix unless given")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"{'gates':<24}{'steps, mean':>12}{'95 %':>9}{'most':>9}{'pairs':>7}{'lost':>8}{'missed':>8}{'success':>9}")
    for words in [given.words] if given.words else [["dream"], ["mix"]]:
        config = compose(words[0], words[1:], TrainConfig)
        free = replace(config, budget_steps=None, budget_episodes=None)
        training = 0 if config.env.kind == "dream" else config.total_timesteps
        for name, of in ((words[0], config), (f"{words[0]}, no budget", free)):
            runs = simulate(of, given.runs, np.random.default_rng(given.seed))
            steps = runs.steps + training
            print(
                f"{name:<24}{steps.mean():>12,.0f}{np.quantile(steps, 0.95):>9,.0f}{steps.max():>9,.0f}"
                f"{np.mean(runs.n_pairs):>7.0f}{_percent(runs.lost)}{_percent(runs.missed)}"
                f"{100 * runs.rate.mean():>7.1f} %",
                flush=True,
            )
        runs = simulate(config, given.runs, np.random.default_rng(given.seed), all_knowing=True)
        print(f"{'the truth':<69}{_percent(runs.lost)}{_percent(runs.missed)}{100 * runs.rate.mean():>7.1f} %")


def _percent(parts: list[Floats]) -> str:
    return f"{100 * np.concatenate(parts).mean():>6.1f} %"


if __name__ == "__main__":
    main()
