"""Figures of a report: matplotlib drawings as SVG text in the text colour of the page, light or dark."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK = "#010203"
"""Placeholder for the text colour of the page, which `_svg` replaces; a colour that nothing else uses."""

SIM, DREAM, ACCEPTED, LOST = "#2f7ed8", "#e4572e", "#3a9d5d", "#b04a8b"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # keep text as text, so that it can be searched and scales with the page
    "svg.hashsalt": "wamtune",  # fixed ids: equal figures give equal text
    "text.parse_math": False,  # do not read `$` in a name as a formula
    "font.family": "sans-serif",
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
    **{f"axes.{part}": INK for part in ("edgecolor", "labelcolor", "titlecolor")},
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}

Curve = tuple[Sequence[float], Sequence[float | None]]
"""The x and y values of a line; points with y None are not drawn."""

MOST_POINTS = 2_000
"""Largest number of points of a curve; more than the page has pixels across would only make it larger."""


def thinned(values: Sequence[Any]) -> Sequence[Any]:
    """Return at most `MOST_POINTS` of the values, evenly spread, always with the last one."""
    n, most = len(values), MOST_POINTS
    return values if n <= most else [values[(i + 1) * n // most - 1] for i in range(most)]


def curves(
    of: Mapping[str, Curve], xlabel: str, ylabel: str, share: bool = False, colors: Mapping[str, str] | None = None
) -> str:
    """Draw lines with a dot at each point; skip points whose y is None. With `share`, y runs from 0 to 1."""

    def draw(axes: Axes) -> None:
        for name, (x, y) in of.items():
            points = thinned([(a, b) for a, b in zip(x, y, strict=True) if b is not None])
            if not points:
                continue
            axes.plot(*zip(*points, strict=True), marker=".", label=name, color=(colors or {}).get(name))
        axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(-0.02, 1.02) if share else None)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # x counts updates, steps or parts
        if len(of) > 1:
            axes.legend(fontsize="small")

    return _figure(draw) if any(v is not None for _, y in of.values() for v in y) else ""


def gates(rows: Sequence[tuple[str, float, float, bool]]) -> str:
    """Draw champion and challenger of each gate as an arrow. Rows: (label, champion, challenger, accepted)."""

    def draw(axes: Axes) -> None:
        for i, (_, champion, challenger, accepted) in enumerate(rows):
            arrow = {"arrowstyle": "->", "color": ACCEPTED if accepted else LOST, "linewidth": 2}
            axes.plot([i], [champion], "o", color=INK, markersize=4)
            axes.plot([i], [challenger], ".", color="none")  # invisible: an annotation alone would not extend the axes
            axes.annotate("", (i, challenger), (i, champion), arrowprops=arrow)
        axes.set_xticks(range(len(rows)), [row[0] for row in rows], rotation=30, ha="right", fontsize="small")
        axes.set(ylabel="success in the gate", ylim=(-0.02, 1.02), xlim=(-0.5, len(rows) - 0.5))

    return _figure(draw) if rows else ""


def stacked(names: Sequence[str], x: Sequence[float], values: Mapping[str, Sequence[float]], ylabel: str) -> str:
    """Draw reward terms stacked, those with a positive sum above zero, the others below."""

    def draw(axes: Axes) -> None:
        shown = thinned(x)
        floors = {True: [0.0] * len(shown), False: [0.0] * len(shown)}
        for name in names:
            up = sum(values[name]) >= 0
            top = [f + v for f, v in zip(floors[up], thinned(values[name]), strict=True)]
            axes.fill_between(shown, floors[up], top, alpha=0.6, label=name, step="mid")
            floors[up] = top
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set(xlabel="update", ylabel=ylabel)
        axes.legend(fontsize="small")

    return _figure(draw) if names and x else ""


def scatter(groups: Mapping[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str) -> str:
    """Draw the points of several groups, each in its colour; an axis over more than a decade is logarithmic."""

    def draw(axes: Axes) -> None:
        for (name, (x, y)), color in zip(groups.items(), (ACCEPTED, LOST, SIM, DREAM), strict=False):
            axes.plot(thinned(x), thinned(y), "o", markersize=3, alpha=0.6, label=name, color=color)
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale=_scale(x for x, _ in groups.values()))
        axes.set(yscale=_scale(y for _, y in groups.values()))
        axes.legend(fontsize="small")

    return _figure(draw) if any(x for x, _ in groups.values()) else ""


def trajectory(parts: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], size: int) -> str:
    """Draw one row per part of the state and one column per axis, up to 3.

    Args:
        parts: part -> source ("simulator", "dream of its actions", "dream of the policy") -> metres (T, axes).
        size: steps of a chunk; a thin line marks the begin of each.
    """
    styles = {"simulator": (INK, "-"), "dream of its actions": (DREAM, "--"), "dream of the policy": (SIM, ":")}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.1 * len(parts)), layout="constrained")
        panels = figure.subplots(len(parts), 3, squeeze=False, sharex=True)
        for row, (part, by) in zip(panels, parts.items(), strict=True):
            width = len(next(iter(by.values()))[0])
            for axis, axes in enumerate(row):
                if axis >= width:
                    axes.set_axis_off()
                    continue
                for who, values in by.items():
                    color, line = styles[who]
                    axes.plot([100 * v[axis] for v in values], line, color=color, label=who, linewidth=1.3)
                for step in range(0, max(len(v) for v in by.values()), size):
                    axes.axvline(step, color="#888888", linewidth=0.3)
                axes.set_title(f"{part} {'xyz'[axis]}, cm", loc="left", fontsize="small")
        panels[0][0].legend(fontsize="x-small")
        return _svg(figure)


def _scale(values: Iterable[Sequence[float]]) -> str:
    """Return "log" if the values are positive and span more than a decade, else "linear"."""
    flat = [v for part in values for v in part]
    return "log" if 0 < 10 * min(flat) < max(flat) else "linear"


def _figure(draw: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        draw(figure.add_subplot())
        return _svg(figure)


def _svg(figure: Figure) -> str:
    """Return the <svg> element alone, without file header and metadata, in the text colour of the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Different drawings use the same ids for clip paths. On one page they would collide, so prefix them.
    prefix = f"f{zlib.crc32(text.encode())}-"
    text = re.sub(r'(id="|xlink:href="#|url\(#)', lambda m: m.group(1) + prefix, text)
    return text.replace(INK, "currentColor")
