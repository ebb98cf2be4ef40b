"""Summarise the rows of `last_mile.py`: a table, a curve, and the champions that got significantly worse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rl.report.plots import BLUE, GREY, INK, RED, STYLE

BUDGETS = (50_000, 100_000, 300_000)
"""Budgets of simulator steps at which methods are compared."""

COLORS = (RED, BLUE, "#46a06a", GREY, "#a06ac8", "#c8963c")
"""Colours of the methods, in their order."""

Row = dict[str, Any]
Groups = Mapping[str, Sequence[Row]]
"""Method -> its rows."""


def table(groups: Groups, tasks: Sequence[str]) -> str:
    """Return a Markdown table: per method, the success at each budget of simulator steps and the gain per task."""
    words = (
        "runs",
        "before",
        "after",
        "gain",
        "with 1 mm of noise",
        "worse",
        "parts worse",
        "simulator steps",
        "minutes",
    )
    lines = _header("method", words)
    for method, of in groups.items():
        before, after = (np.mean([share(row[word]) for row in of]) for word in ("before", "after"))
        steps = np.mean([row["sim_steps"] + row["gate_steps"] for row in of])
        minutes = np.mean([row["minutes"] for row in of])
        lines.append(
            f"| {method} | {len(of)} | {100 * before:.1f} % | {100 * after:.1f} % | {100 * (after - before):+.1f} "
            f"| {_with_noise(of)} "
            f"| {worse((row['before'], row['after']) for row in of)} | {_parts_worse(of)} "
            f"| {steps:,.0f} | {minutes:.1f} |"
        )
    lines += ["", *_header("mean success at", [f"{b:,}" for b in BUDGETS])]
    for method, of in groups.items():
        at = [f"{100 * np.mean([success_at(row, budget) for row in of]):.1f} %" for budget in BUDGETS]
        lines.append(f"| {method} | " + " | ".join(at) + " |")
    lines += ["", *_header("gain in points", tasks)]
    for method, of in groups.items():
        lines.append(f"| {method} | " + " | ".join(_gain(of, task) for task in tasks) + " |")
    everything = [row for of in groups.values() for row in of]
    if told := _parts_worse(everything):
        lines += [
            "",
            f"Of the accepted parts of all rounds, {told} are significantly worse than what they came from (Holm).",
        ]
    return "\n".join(lines) + "\n"


def worse(pairs: Iterable[tuple[str, str]], alpha: float = 0.05) -> int:
    """Count the pairs (before, after) that got significantly worse: one-sided exact McNemar test, Holm over all."""
    p = sorted(_p_worse(before, after) for before, after in pairs)
    count = 0
    for i, value in enumerate(p):
        if value > alpha / (len(p) - i):
            break
        count += 1
    return count


def success_at(row: Row, budget: int) -> float:
    """Return the success of the last champion within `budget` simulator steps, including those of gates."""
    reached = [value for steps, value in row["curve"] if steps <= budget]
    return reached[-1] if reached else share(row["before"])


def draw(groups: Groups, path: Path) -> None:
    """Plot mean success against simulator steps; controls are dashed, in the colour of their method."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.4), layout="constrained")
        axes = figure.add_subplot()
    most = max(steps for of in groups.values() for row in of for steps, _ in row["curve"] or [(1, 0)])
    grid = np.linspace(0, most, 200)
    families = [method for method in groups if method.partition(": ")[0] not in groups or ": " not in method]
    for method, of in groups.items():
        mean = [np.mean([success_at(row, steps) for row in of]) for steps in grid]
        family, _, control = (method, "", "") if method in families else method.partition(": ")
        color = COLORS[families.index(family) % len(COLORS)]
        line = {"": "-", "anchor": ":"}.get(control, "--")
        axes.step(grid / 1000, mean, where="post", label=method, color=color, linestyle=line)
    axes.set(xlabel="thousand simulator steps, gates included", ylabel="mean success", ylim=(0, 1))
    figure.legend(frameon=False, fontsize="small", labelcolor=INK, ncols=4, loc="outside upper center")
    figure.savefig(str(path), dpi=120, transparent=True)


def share(outcomes: str) -> float:
    """Return the share of successes."""
    return outcomes.count("1") / len(outcomes)


def _header(first: str, rest: Sequence[str]) -> list[str]:
    return [f"| {first} | " + " | ".join(rest) + " |", "| --- |" + " ---: |" * len(rest)]


def _gain(rows: Sequence[Row], task: str) -> str:
    gains = [share(row["after"]) - share(row["before"]) for row in rows if row["task"] == task]
    return f"{100 * np.mean(gains):+.1f}" if gains else ""


def _with_noise(rows: Sequence[Row]) -> str:
    """Return the mean success with noise on observations; old rows do not count."""
    rates = [share(row["with_noise"]) for row in rows if row.get("with_noise")]
    return f"{100 * np.mean(rates):.1f} %" if rates else ""


def _parts_worse(rows: Sequence[Row]) -> str:
    """Return "n of m": accepted phases, imitation included, that got significantly worse; old rows do not count."""
    champions = [[row["before"], *row["champions"]] for row in rows if "champions" in row]
    pairs = [pair for run in champions for pair in pairwise(run)]
    return f"{worse(pairs)} of {len(pairs)}" if pairs else ""


def _p_worse(before: str, after: str) -> float:
    won = sum(pair == ("0", "1") for pair in zip(before, after, strict=True))
    lost = sum(pair == ("1", "0") for pair in zip(before, after, strict=True))
    n = won + lost
    return sum(math.comb(n, k) for k in range(lost, n + 1)) / 2**n
