"""Simulate gates and evaluations whose truth is known: are intervals right, and what does a dream save?

    python benchmarks/gate_coverage.py                # three minutes on one core
    python benchmarks/gate_coverage.py --most 48      # gates of 48 pairs at most, as in the preset `demo`

Both tables have 1,000 cases a row and rate. A dream copies the outcome of a real episode with probability `copies` and
otherwise draws one of its own, so its correlation with reality (φ) is about that; `opposite` says the contrary of every
outcome, and in `biased` half of the failures of the policy (in a gate: of the challenger) become successes, up to
50 points too many. Champion and challenger share the difficulty of six starts in ten.

*Evaluations*: success of one policy, looked at after each of 64 episodes. `coverage` is the share of cases in which the
95 % interval holds the true rate at every look; `width` is that of the intervals after 16, 32 and 64 episodes; `n` how
many episodes it takes until the interval is 30 points wide.

*Gates*: as shipped (blocks of 8 pairs, at most 192, alpha of one gate of five, any loss is rolled back). `coverage` is
that of the interval of the gain where the gate stopped. `pairs` is where it stopped, with twins, without, and with the
rule before (McNemar on blocks of 64 at Bonferroni's level). The last lines sum up wrong decisions.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from rl.config import GateConfig
from rl.rounds.gate import HIGHEST, LOWEST, Decision, decide, evidence
from rl.sequential import Floats, Observations, corrected, interval, log_evidence, plain
from rl.statistics import wilson

DREAMS = {"none that helps": 0.0, "mediocre": 0.45, "good": 0.8, "perfect": 1.0, "opposite": -1.0, "biased": math.nan}
"""Dream -> how often it copies an outcome; -1: says the contrary; NaN: biased."""

RATES = (0.1, 0.3, 0.5, 0.8, 0.95)
START_RATES = (0.3, 0.5, 0.6)
GAINS = (-0.2, -0.1, 0.0, 0.05, 0.15, 0.3)
SHARED = 0.6
"""Share of starts that are equally difficult for champion and challenger."""

CONFIG = GateConfig()
ALPHA = CONFIG.alpha / 5
"""Of one gate: the preset `dream` has five."""


@dataclass
class Cases:
    """Outcomes of many cases."""

    real: Floats  # (cases, n)
    twins: Floats  # (cases, n)
    others: Floats  # (cases, n, K)


def dreamed(real: Floats, own: Floats, copies: float, rng: np.random.Generator) -> Floats:
    """Return what a dream says about `real` outcomes; `own` are outcomes of its own, of the same distribution."""
    if copies == -1:
        return 1 - real
    if math.isnan(copies):
        return np.maximum(real, rng.random(real.shape) < 0.5)
    return np.where(rng.random(real.shape) < copies, real, own)


def evaluations(rate: float, copies: float, n_cases: int, n: int, k: int, rng: np.random.Generator) -> Cases:
    """Simulate evaluations of a policy with this true success rate."""
    real, own = ((rng.random((n_cases, n, 1 + k)) < rate).astype(float) for _ in range(2))
    dream = dreamed(real, own, copies, rng)
    return Cases(real[..., 0], dream[..., 0], dream[..., 1:])


def gates(rate: float, gain: float, copies: float, shape: tuple[int, int, int], rng: np.random.Generator) -> Cases:
    """Simulate paired gates of a champion with success `rate` and a challenger that is better by `gain`.

    `shape` is (cases, pairs, dreams of a pair).
    """

    def pairs() -> tuple[Floats, Floats]:
        u, v = rng.random((2, *shape))
        v = np.where(rng.random(u.shape) < SHARED, u, v)
        return (u < rate).astype(float), (v < rate + gain).astype(float)

    (old, new), (own_old, own_new) = pairs(), pairs()
    # A biased dream flatters the challenger alone, as a policy does that was trained in it.
    dream_of_old = old if math.isnan(copies) else dreamed(old, own_old, copies, rng)
    dream = dreamed(new, own_new, copies, rng) - dream_of_old
    return Cases((new - old)[..., 0], dream[..., 0], dream[..., 1:])


def print_evaluations(n_cases: int, k: int, rng: np.random.Generator) -> None:
    """Print the table of single evaluations; each row is the mean over all rates, coverage the least of them."""
    print(f"evaluations: {n_cases} for each true rate of {', '.join(f'{100 * r:.0f}' for r in RATES)} %, K = {k}")
    print(
        f"{'dream':<16}{'φ':>6}{'coverage':>10}   "
        "width after 16, 32, 64 episodes, and n: with twins | without (| Wilson)"
    )
    for name, copies in DREAMS.items():
        rows = []
        for rate in RATES:
            cases = evaluations(rate, copies, n_cases, 64, k, rng)
            alone = plain(cases.real, 0.0, 1.0)
            both = [alone, corrected(cases.real, cases.twins, cases.others, 0.0, 1.0)]
            worst = np.maximum(*(log_evidence(both, rate, above, 0.05).max(-1) for above in (True, False)))
            widths = [_widths(of, n, 0.0, 1.0, most=50) for of in (both, [alone]) for n in (16, 32, 64)]
            theirs = [np.mean([np.diff(wilson(int(s), n))[0] for s in cases.real[:, :n].sum(1)]) for n in (16, 32, 64)]
            until = [_episodes_until(of, 0.3) for of in (both, [alone])]
            phi = np.corrcoef(cases.real.ravel(), cases.twins.ravel())[0, 1]
            rows.append([phi, np.mean(worst < math.log(40)), *widths, *theirs, *until])
        found = np.array(rows)
        phi, coverage = found[:, 0].mean(), found[:, 1].min()
        points = " | ".join(" ".join(f"{100 * w:4.0f}" for w in found[:, i : i + 3].mean(0)) for i in (2, 5, 8))
        n_with, n_without = found[:, 11:].mean(0)
        print(
            f"{name:<16}{phi:>+6.2f}{100 * coverage:>8.1f} %   {points}   "
            f"n: {n_with:.0f} | {n_without:.0f} (saved {100 * (1 - n_with / n_without):+.0f} %)"
        )


def _widths(processes: list[Observations], n: int, low: float, high: float, most: int) -> float:
    """Return the mean width of the intervals after n episodes, over the first `most` cases."""
    ends = interval([_first(of, n, most) for of in processes], low, high)
    return float(np.mean(ends[1] - ends[0]))


def _first(of: Observations, n: int, most: int) -> Observations:
    return Observations(of.value[:most, :n], of.low[:most, :n], of.high[:most, :n], of.twin_weight[:most, :n])


def _episodes_until(processes: list[Observations], width: float, most: int = 50) -> float:
    """Return the mean number of episodes, of 64 at most, until the interval is at most this wide."""
    used = np.full(min(most, len(processes[0].value)), 64.0)
    for n in range(60, 11, -4):
        low, high = interval([_first(of, n, most) for of in processes], 0.0, 1.0)
        used[high - low <= width] = n
    return float(used.mean())


@dataclass
class Gates:
    """How many gates ended."""

    n: Floats  # (cases,) pairs used
    accepted: Floats  # (cases,), 0 or 1


def sequential(cases: Cases, most: int, twins: bool) -> tuple[Gates, list[Observations]]:
    """Run the gate of today on all cases; return the processes that it bets on as well."""
    dreams = (cases.twins, cases.others) if twins else ()
    decision = decide(evidence(cases.real, *dreams, alpha=ALPHA), np.arange(1, most + 1), most, ALPHA, CONFIG.z_loss)
    processes = [plain(cases.real, LOWEST, HIGHEST)]
    if twins:
        processes.append(corrected(cases.real, cases.twins, cases.others, LOWEST, HIGHEST))
    return _ended(decision), processes


def _ended(decision: Decision) -> Gates:
    """Return where each gate ends, which looks after each block."""
    looks = slice(CONFIG.n_episodes - 1, None, CONFIG.n_episodes)
    ends = decision.reason[:, looks] != ""
    first = ends.argmax(1)
    accepted = np.take_along_axis(decision.accepted[:, looks], first[:, None], 1)[:, 0]
    return Gates((first + 1.0) * CONFIG.n_episodes, accepted.astype(float))


def before(cases: Cases, most: int) -> Gates:
    """Run the gate of before: McNemar's test on blocks of 64; at the end any loss is rolled back."""
    looks = np.array([min(n, most) for n in range(64, most + 64, 64)]) - 1
    z_clear = NormalDist().inv_cdf(1 - ALPHA / 2 / len(looks))
    total, discordant = (np.cumsum(of, 1)[:, looks] for of in (cases.real, np.abs(cases.real)))
    clear = (total != 0) & (np.abs(total) >= z_clear * np.sqrt(discordant))
    clear[:, -1] = True
    first = clear.argmax(1)
    accepted = np.take_along_axis(total, first[:, None], 1)[:, 0] >= 0
    return Gates(looks[first] + 1.0, accepted.astype(float))


def print_gates(n_cases: int, most: int, k: int, rng: np.random.Generator) -> None:
    """Print the table of gates; each row is the mean over the champion's rates, coverage the least of them."""
    rates = ", ".join(f"{100 * rate:.0f}" for rate in START_RATES)
    print(f"\ngates of at most {most} pairs: {n_cases} for each champion of {rates} %, K = {k}")
    print(f"{'dream':<16}{'gain':>5}{'ρ':>7}{'coverage':>10}{'width':>7}   pairs: with twins | without | before")
    wrong: dict[str, list[Floats]] = {}
    for name, copies in DREAMS.items():
        for gain in GAINS:
            rows = []
            for rate in START_RATES:
                cases = gates(rate, gain, copies, (n_cases, most, 1 + k), rng)
                (ours, processes), (alone, _) = sequential(cases, most, True), sequential(cases, most, False)
                old = before(cases, most)
                at = ours.n.astype(int)[:, None] - 1
                evidences = [log_evidence(processes, gain, above, 0.05) for above in (True, False)]
                covers = np.all([np.take_along_axis(of, at, 1)[:, 0] < math.log(40) for of in evidences], axis=0)
                width = [
                    np.mean(np.subtract(*interval([_row(of, i, n) for of in processes], LOWEST, HIGHEST)[::-1]))
                    for i, n in enumerate(ours.n[:20].astype(int))
                ]
                rho = np.corrcoef(cases.real.ravel(), cases.twins.ravel())[0, 1]
                ended = [of for gate in (ours, alone, old) for of in (gate.n.mean(), gate.accepted.mean())]
                rows.append([rho, covers.mean(), np.mean(width), *ended])
            found = np.array(rows)
            mean = found.mean(0)
            wrong.setdefault(name, []).append(mean[[4, 6, 8]])
            print(
                f"{name:<16}{100 * gain:>+5.0f}{mean[0]:>+7.2f}{100 * found[:, 1].min():>8.1f} %"
                f"{100 * mean[2]:>7.0f}   {mean[3]:4.0f} | {mean[5]:4.0f} | {mean[7]:4.0f}  "
                f"saved {100 * (1 - mean[3] / mean[5]):+3.0f} %, "
                f"{100 * (1 - mean[3] / mean[7]):+3.0f} %   accepted {100 * mean[4]:5.1f} | {100 * mean[6]:5.1f} | "
                f"{100 * mean[8]:5.1f} %",
                flush=True,
            )
    print("\nwrong decisions, % of gates: with twins | without | before")
    for name, of in wrong.items():
        accepted = dict(zip(GAINS, of, strict=True))
        lost = " | ".join(f"{100 * v:.1f}" for v in accepted[-0.1])
        missed = " | ".join(f"{100 * (1 - v):.1f}" for v in accepted[0.15])
        print(f"{name:<16}accepted a loss of 10 points: {lost}   refused a gain of 15 points: {missed}")


def _row(of: Observations, i: int, n: int) -> Observations:
    return Observations(of.value[i, :n], of.low[i, :n], of.high[i, :n], of.twin_weight[i, :n])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="in each row, for each rate")
    parser.add_argument(
        "--most", type=int, default=CONFIG.max_episodes, help="pairs of a gate; other than 192: gates only"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    generator = np.random.default_rng(given.seed)
    if given.most == CONFIG.max_episodes:
        print_evaluations(given.cases, CONFIG.n_dreams, generator)
    print_gates(given.cases, given.most, CONFIG.n_dreams, generator)
