"""Measure how well dreamed success orders many policies: at least ten lineages of five policies each, on six tasks.

    python benchmarks/panel.py OUT.jsonl [--lineages 10] [--n-episodes 100] [--tasks TASK ...]

A lineage is an action decoder with weights of its own, which imitates demonstrations of its own: its seed says which,
and how many (1 to 15 a task). Its policies are the decoder after so many steps. Encoder and world decoder stay those
of the checkpoint, so all policies act in one dream, from the same first states as in the simulator. Two dreams are
compared: `shipped`, of the checkpoint as it is, and `refitted` on `--n-refit` exploring episodes a task of the
checkpoint's own policy, which is not in the panel. Each row of OUT.jsonl is one policy on one task; a command that
was interrupted goes on where it stopped. Figures for each task, and their median over tasks:

| column | says |
|---|---|
| `r`, `ρ` | correlation of dreamed and simulated success over policies (Pearson, Spearman) |
| `MMRV` | mean maximum rank violation, in points: see `rl.statistics.rank_violation` for the formula |
| `regret` | simulated success of the best policy less that of the one with most dreamed success, in points |
| `bias` | dreamed less simulated success, mean over policies, in points |

Intervals (95 %) resample lineages, since policies of one lineage are alike. The best policy is chosen on one half of
the simulated episodes and judged on the other, both ways: the best of many noisy figures would look better than it is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from agreement import simulator
from scipy.stats import pearsonr, spearmanr

from rl.policies.wam import flow_policy
from rl.rounds.evaluate import EpisodeResult, Exploring, evaluate_dream, evaluate_sim, first_states, whole_episodes
from rl.stages.collect import collect_scripted
from rl.stages.config import TuneConfig
from rl.statistics import rank_violation
from world_model.data.episodes import Episode
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model
from world_model.wam.training import train_stage

TASKS = ("assembly", "box-close", "hand-insert", "hammer", "peg-insert-side", "pick-place-wall")
SNAPSHOTS = 200, 400, 800, 1400, 2000
"""Steps of imitation after which a lineage gives a policy to the panel."""

DEMONSTRATIONS, REFIT, TEST = 7_200_000, 7_300_000, 7_400_000
"""Seeds of the first episodes; no checkpoint was trained, selected or evaluated on these episodes."""

DREAMS = "shipped", "refitted"

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Row:
    """Outcomes of one policy on one task, 0 or 1, on the same starts."""

    lineage: int
    n_steps: int  # of imitation
    task: str
    real: list[int]  # (n_episodes,)
    dreamed: dict[str, list[int]]  # a dream's name -> (n_episodes,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="rows, JSON Lines; a finished row is not made again")
    parser.add_argument("--checkpoint", default="metaworld-tuned")
    parser.add_argument("--pretrained", default="metaworld-pretrained", help="checkpoint the lineages begin from")
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--lineages", type=int, default=10)
    parser.add_argument("--n-episodes", type=int, default=100, help="of each policy and task")
    parser.add_argument("--n-refit", type=int, default=150, help="exploring episodes a task for the refit")
    parser.add_argument("--steps", type=int, default=2000, help="of the refit")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [Row(**json.loads(line)) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(row.lineage, row.n_steps, row.task) for row in rows}
    wanted = {(i, n, task) for i in range(options.lineages) for n in SNAPSHOTS for task in options.tasks}
    todo = sorted({i for i, _, _ in wanted - done})
    if todo:
        dreams = {"shipped": load_model(options.checkpoint), "refitted": refitted(options)}
        for lineage in todo:
            for n_steps, weights in grow(options.pretrained, options.tasks, lineage):
                for row in judge(dreams, weights, options, lineage, n_steps):
                    if (row.lineage, row.n_steps, row.task) not in done:
                        rows.append(row)
                        with options.out.open("a") as file:
                            file.write(f"{json.dumps(asdict(row))}\n")
    for name in DREAMS:
        print_figures(name, rows)


def refitted(options: argparse.Namespace) -> WorldActionModel:
    """Return the checkpoint with its world decoder refitted on exploring episodes of its own policy."""
    model = load_model(options.checkpoint)
    episodes: list[Episode] = []
    for task in options.tasks:
        with contextlib.closing(simulator(model, task, options.n_refit)) as env:
            env.record(True)
            exploring = Exploring(flow_policy(model, env), torch.Generator().manual_seed(REFIT))
            evaluate_sim(exploring, env, range(REFIT, REFIT + options.n_refit))
            episodes += env.record(False)
    model.refit(episodes, options.steps, 1e-3, seed=0)
    return model


def grow(checkpoint: str, tasks: list[str], lineage: int) -> list[tuple[int, Weights]]:
    """Imitate demonstrations of this lineage; return the weights of its action decoder at each of `SNAPSHOTS`."""
    torch.manual_seed(1000 + lineage)
    model = load_model(checkpoint)
    # A new decoder: with that of the checkpoint all lineages would be siblings.
    model.action.load_state_dict(WorldActionModel(model.config, model.spec).action.state_dict())
    rng = np.random.default_rng(lineage)
    demos: list[Episode] = []
    for task in tasks:
        n = int(2 ** rng.uniform(0, 4))  # 1 to 15
        demos += collect_scripted("expert", [task], n, DEMONSTRATIONS + 100 * lineage)
    found: list[tuple[int, Weights]] = []

    def keep(step: int, _: dict[str, object]) -> None:
        if step in SNAPSHOTS:
            found.append((step, {name: value.clone() for name, value in model.action.state_dict().items()}))

    config = replace(TuneConfig().stage, n_steps=SNAPSHOTS[-1], save_every=200, seed=lineage)
    train_stage("tune", model, model.windows(demos), config, save=keep)
    return found


def judge(
    dreams: dict[str, WorldActionModel], weights: Weights, options: argparse.Namespace, lineage: int, n_steps: int
) -> Iterator[Row]:
    """Run one policy in the simulator and in each dream, on every task, from the same first states."""
    seeds = range(TEST, TEST + options.n_episodes)
    for model in dreams.values():
        model.action.load_state_dict(weights)
    for task in options.tasks:
        acting = dreams["shipped"]
        with contextlib.closing(simulator(acting, task, options.n_episodes)) as env:
            real = outcomes(evaluate_sim(flow_policy(acting, env), env, seeds))
            starts = first_states(env, seeds)
            dreamed = {}
            for name, model in dreams.items():
                policy = flow_policy(model, env)
                dreamed[name] = outcomes(evaluate_dream(policy, whole_episodes(model, env, policy, starts)))
        row = Row(lineage, n_steps, task, real, dreamed)
        shown = ", ".join(f"{name} {np.mean(values):.2f}" for name, values in dreamed.items())
        print(f"lineage {lineage}, {n_steps} steps, {task}: simulator {np.mean(real):.2f}, {shown}", flush=True)
        yield row


def outcomes(results: list[EpisodeResult]) -> list[int]:
    """Return success by seed, 0 or 1."""
    return [int(result.success) for result in sorted(results, key=lambda result: result.seed)]


def print_figures(dream: str, rows: list[Row]) -> None:
    """Print the figures of one dream for each task, and their medians over tasks, with intervals."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    n_policies, lineages = len({(row.lineage, row.n_steps) for row in rows}), sorted({row.lineage for row in rows})
    print(f"\nthe {dream} dream: {n_policies} policies of {len(lineages)} lineages")
    print(f"{'task':>16}", *(f"{name:>22}" for name in FIGURES))
    rng = np.random.default_rng(0)
    resampled = [rng.choice(lineages, len(lineages)) for _ in range(1000)]
    every: dict[str, np.ndarray] = {}
    for task in tasks:
        of = {i: [row for row in rows if row.task == task and row.lineage == i] for i in lineages}
        figures = np.array([figures_of(dream, [r for i in drawn for r in of[i]]) for drawn in (lineages, *resampled)])
        every[task] = figures
        print_row(task, figures)
    print_row("median", np.median(np.stack(list(every.values())), axis=0))


def print_row(name: str, figures: np.ndarray) -> None:
    """Print figures (1 + n_resamples, n_figures), the first row as the value and the others as its interval."""
    low, high = np.nanpercentile(figures[1:], [2.5, 97.5], axis=0)
    cells = (f"{v:.2f} [{a:.2f}, {b:.2f}]" for v, a, b in zip(figures[0], low, high, strict=True))
    print(f"{name:>16}", *(f"{cell:>22}" for cell in cells))


def figures_of(dream: str, rows: list[Row]) -> list[float]:
    """Return the figures of one task, in the order of `FIGURES`."""
    real = np.array([row.real for row in rows], dtype=float)  # (n_policies, n_episodes)
    dreamed = np.array([row.dreamed[dream] for row in rows], dtype=float).mean(1)
    return [figure(dreamed, real) for figure in FIGURES.values()]


def regret(dreamed: np.ndarray, real: np.ndarray) -> float:
    """Return by how many points the policy with most dreamed success is worse than the best one.

    Args:
        dreamed: (n_policies,), success rates.
        real: (n_policies, n_episodes), outcomes.
    """
    picked, halves = int(dreamed.argmax()), (real[:, ::2].mean(1), real[:, 1::2].mean(1))
    lost = [judging[choosing.argmax()] - judging[picked] for choosing, judging in (halves, halves[::-1])]
    return 100 * float(np.mean(lost))


FIGURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "r": lambda dreamed, real: float(pearsonr(dreamed, real.mean(1)).statistic),
    "ρ": lambda dreamed, real: float(spearmanr(dreamed, real.mean(1)).statistic),
    "MMRV": lambda dreamed, real: 100 * rank_violation(dreamed, real.mean(1)),
    "regret": regret,
    "bias": lambda dreamed, real: 100 * float(np.mean(dreamed - real.mean(1))),
}


if __name__ == "__main__":
    main()
