"""Plots as PNG files: success before and after training, and dreamed curves over true ones."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rl.rounds.evaluate import EpisodeResult, have_success, mean_reward
from rl.statistics import success_rate, wilson
from world_model.files import write_atomically

INK, GREY, BLUE, RED = "#7d8590", "#a9b1ba", "#2f7ed8", "#e4572e"
"""Colours that can be read on a light page and on a dark one; the background is transparent."""

STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # do not read `$` in a task name such as $x^$ as a formula
    "axes.facecolor": "none",
    "axes.spines.right": False,
    "axes.spines.top": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@matplotlib.rc_context(STYLE)
def draw_before_after(
    runs: Mapping[str, tuple[Sequence[EpisodeResult], Sequence[EpisodeResult]]], path: str | Path
) -> None:
    """Draw success before and after each run as bars with 95 % intervals. `runs`: name -> (before, after).

    Without success in the environment, the bars are its mean reward of an episode.
    """
    has_success = have_success(*(results for pair in runs.values() for results in pair))
    bar = _bar if has_success else _reward_bar
    figure = Figure(figsize=(2.0 + 1.8 * len(runs), 3.6), layout="constrained")
    axes = figure.add_subplot()
    for i, (before, after) in enumerate(runs.values()):
        bar(axes, i - 0.2, before, GREY, "before" if i == 0 else None)
        bar(axes, i + 0.2, after, BLUE, "after" if i == 0 else None)
    axes.set_xticks(range(len(runs)), list(runs))
    if has_success:
        axes.set(ylim=(0, 1), ylabel="success")
    else:
        axes.set(ylabel="reward of an episode")
    figure.legend(frameon=False, ncols=2, loc="outside upper right")
    _save(figure, path)


@matplotlib.rc_context(STYLE)
def draw_dream(
    true: Mapping[str, Tensor], dreamed: Mapping[str, Tensor], chunk_size: int, title: str, path: str | Path
) -> None:
    """Draw true and dreamed curves, one row of panels per key.

    Values (T + 1, d) get one panel per dimension, named x, y, z; values (T + 1,) are probabilities and get one wide
    panel from 0 to 1. Dotted lines mark the ends of chunks.
    """
    figure = Figure(figsize=(10, 2.3 * len(true)), layout="constrained")
    rows = figure.subfigures(len(true), 1, squeeze=False)[:, 0]
    for row, name in zip(rows, true, strict=True):
        columns = true[name].reshape(len(true[name]), -1).shape[1]
        panels = row.subplots(1, columns, squeeze=False)[0]
        for i, axes in enumerate(panels):
            label = f"{name} {'xyz'[i]} (cm)" if columns > 1 else name
            _curves(axes, _column(true[name], i), _column(dreamed[name], i), chunk_size, label)
            if true[name].dim() == 1:
                axes.set_ylim(-0.02, 1.02)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.suptitle(title)
    panels[-1].set_xlabel("step")
    figure.legend(handles, labels, frameon=False, ncols=2, loc="outside lower right")
    _save(figure, path)


def _bar(axes: Axes, x: float, results: Sequence[EpisodeResult], color: str, label: str | None) -> None:
    rate = success_rate(results)
    low, high = wilson(sum(r.success for r in results), len(results))
    axes.bar(x, rate, 0.38, color=color, label=label)
    axes.errorbar(x, rate, [[max(rate - low, 0.0)], [max(high - rate, 0.0)]], color=INK, capsize=3)
    axes.annotate(f"{100 * rate:.1f} %", (x, high), ha="center", va="bottom", xytext=(0, 2), textcoords="offset points")


def _reward_bar(axes: Axes, x: float, results: Sequence[EpisodeResult], color: str, label: str | None) -> None:
    mean = mean_reward(results)
    axes.bar(x, mean, 0.38, color=color, label=label)
    axes.annotate(f"{mean:.4g}", (x, mean), ha="center", va="bottom" if mean >= 0 else "top")


def _curves(axes: Axes, true: list[float], dreamed: list[float], chunk_size: int, label: str) -> None:
    for step in range(0, len(true), chunk_size):
        axes.axvline(step, color=GREY, alpha=0.5, linestyle=":", linewidth=0.8)
    axes.plot(true, color=INK, label="simulator")
    axes.plot(dreamed, color=RED, linestyle="--", label="dream")
    axes.set_title(label, fontsize="small", loc="left")


def _column(values: Tensor, i: int) -> list[float]:
    column: list[float] = values.reshape(len(values), -1)[:, i].tolist()
    return column


def _save(figure: Figure, path: str | Path) -> None:
    drawn = io.BytesIO()
    figure.savefig(
        drawn, format="png", dpi=120, transparent=True
    )  # a bare Figure is drawn with Agg, which needs no display
    write_atomically(Path(path), drawn.getvalue())
