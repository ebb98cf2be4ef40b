"""Figures of a report: matplotlib drawings as SVG text in the text colour of the page, light or dark.

They are drawn in the width of a phone, so that their text is readable there, and a page enlarges them. A mark with a
`tip` shows it when the pointer rests on it; this needs no script.
"""

from __future__ import annotations

import html
import io
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

INK = "#010203"
"""Placeholder for the text colour of the page, which `_svg` replaces; a colour that nothing else uses."""

SIM, DREAM, ACCEPTED, LOST, IMITATION, QUIET = "#2f7ed8", "#e4572e", "#3a9d5d", "#b04a8b", "#c9a227", "#888888"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # keep text as text, so that it can be searched and scales with the page
    "svg.hashsalt": "wamtune",  # fixed ids: equal figures give equal text
    "text.parse_math": False,  # do not read `$` in a name as a formula
    "font.family": "sans-serif",
    "font.size": 10,
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
    **{f"axes.{part}": INK for part in ("edgecolor", "labelcolor", "titlecolor")},
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}

WIDTH, HEIGHT = 4.4, 2.9
"""Size of a figure in inches, of 72 units in the SVG."""

Curve = tuple[Sequence[float], Sequence[float | None]]
"""The x and y values of a line; points with y None are not drawn."""

Band = tuple[float, float]
"""Lower and upper end of an interval."""

MOST_POINTS = 2_000
"""Largest number of points of a curve; more than the page has pixels across would only make it larger."""

MOST_TIPS = 60
"""Largest number of points of a curve that have a dot and a tip."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, one row of `intervals`."""

    label: str  # equal labels in a row share a line of the figure
    value: float
    low: float
    high: float
    color: str
    name: str = ""  # for the legend


class _Drawing:
    """Axes to draw on, and the tips of their marks."""

    def __init__(self, axes: Axes) -> None:
        self.axes, self.tips = axes, list[str]()

    def tip(self, mark: Artist, words: str) -> None:
        """Show `words` when the pointer rests on a mark."""
        mark.set_gid(f"tip{len(self.tips)}")
        self.tips.append(words)


def thinned(values: Sequence[Any]) -> Sequence[Any]:
    """Return at most `MOST_POINTS` of the values, evenly spread, always with the last one."""
    n, most = len(values), MOST_POINTS
    return values if n <= most else [values[(i + 1) * n // most - 1] for i in range(most)]


def curves(
    of: Mapping[str, Curve],
    xlabel: str,
    ylabel: str,
    share: bool = False,
    colors: Mapping[str, str] | None = None,
    bands: Mapping[str, Sequence[Band]] | None = None,
) -> str:
    """Draw lines with a dot at each point; skip points whose y is None.

    Args:
        of: name -> line.
        xlabel: name and unit of the x axis.
        ylabel: name and unit of the y axis.
        share: y runs from 0 to 100 %, and values are shares from 0 to 1.
        colors: name -> colour.
        bands: name -> interval of each of its points, whose y must not be None then.
    """

    def draw(on: _Drawing) -> None:
        for i, (name, (x, y)) in enumerate(of.items()):
            points = thinned([(a, b) for a, b in zip(x, y, strict=True) if b is not None])
            if not points:
                continue
            color = (colors or {}).get(name, f"C{i}")
            marker = "." if len(points) <= MOST_TIPS else ""
            on.axes.plot(*zip(*points, strict=True), marker=marker, label=name, color=color)
            for (a, _), (low, high) in zip(points, (bands or {}).get(name, ()), strict=False):
                on.axes.plot([a, a], [low, high], color=color, alpha=0.5, linewidth=3)
            for a, b in points if len(points) <= MOST_TIPS else ():
                shown = f"{100 * b:.1f} %" if share else f"{b:.4g}"
                on.tip(on.axes.plot([a], [b], "o", color=color, markersize=7, alpha=0.01)[0], f"{name}, {a:g}: {shown}")
        if share:
            _percent_axis(on.axes, "y")
        on.axes.set(xlabel=xlabel, ylabel=ylabel)
        on.axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # x counts updates, steps or rounds
        if len(of) > 1:
            _legend(on.axes)

    return _figure(draw) if any(v is not None for _, y in of.values() for v in y) else ""


def intervals(of: Sequence[Estimate], xlabel: str, zero: bool = False) -> str:
    """Draw estimates as dots with their intervals, the first row on top; values are shares and shown in percent.

    Args:
        of: the rows; those with the same label stand close together.
        xlabel: name and unit of the x axis.
        zero: draw a line at 0, for gains; without, the axis runs from 0 to 100 %.
    """
    labels = list(dict.fromkeys(row.label for row in of))

    def draw(on: _Drawing) -> None:
        named: set[str] = set()
        for i, label in enumerate(labels):
            group = [row for row in of if row.label == label]
            for j, row in enumerate(group):
                y = i + 0.24 * (j - (len(group) - 1) / 2)
                name = row.name if row.name not in named else "_"  # each name once in the legend
                named.add(row.name)
                on.axes.plot([row.low, row.high], [y, y], color=row.color, linewidth=2.5, alpha=0.5)
                shown = f"{row.name or label}: {100 * row.value:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"
                on.tip(on.axes.plot([row.value], [y], "o", color=row.color, label=name or "_")[0], shown)
        on.axes.set_yticks(range(len(labels)), labels)
        on.axes.set(ylim=(len(labels) - 0.4, -0.6), xlabel=xlabel)
        if zero:
            on.axes.axvline(0, color=INK, linewidth=0.6)
            on.axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+.0f}" if value else "0")
        else:
            _percent_axis(on.axes, "x")
        if named - {""}:
            _legend(on.axes)

    return _figure(draw, height=0.9 + 0.42 * len(labels)) if of else ""


def bars(of: Mapping[str, Mapping[str, float]], colors: Mapping[str, str], xlabel: str) -> str:
    """Draw parts of a sum as horizontal bars, those above 0 to the right. `of`: row -> part -> share, see `colors`."""

    def draw(on: _Drawing) -> None:
        for i, (row, parts) in enumerate(of.items()):
            ends = {True: 0.0, False: 0.0}
            for name, color in colors.items():
                value = parts.get(name, 0.0)
                (bar,) = on.axes.barh(i, value, left=ends[value >= 0], color=color, label=name if i == 0 else "_")
                on.tip(bar, f"{row}, {name}: {100 * value:+.1f} points")
                ends[value >= 0] += value
        on.axes.axvline(0, color=INK, linewidth=0.6)
        on.axes.set_yticks(range(len(of)), list(of))
        on.axes.set(ylim=(len(of) - 0.4, -0.6), xlabel=xlabel)
        on.axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+.0f}" if value else "0")
        _legend(on.axes)

    return _figure(draw, height=1.1 + 0.42 * len(of)) if of else ""


def stacked(
    names: Sequence[str], x: Sequence[float], values: Mapping[str, Sequence[float]], xlabel: str, ylabel: str
) -> str:
    """Draw reward terms stacked, those with a positive sum above zero, the others below."""

    def draw(on: _Drawing) -> None:
        shown = thinned(x)
        floors = {True: [0.0] * len(shown), False: [0.0] * len(shown)}
        for name in names:
            up = sum(values[name]) >= 0
            top = [f + v for f, v in zip(floors[up], thinned(values[name]), strict=True)]
            on.axes.fill_between(shown, floors[up], top, alpha=0.6, label=name, step="mid")
            floors[up] = top
        on.axes.axhline(0, color=INK, linewidth=0.6)
        on.axes.set(xlabel=xlabel, ylabel=ylabel)
        _legend(on.axes)

    return _figure(draw) if names and x else ""


def scatter(groups: Mapping[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str) -> str:
    """Draw the points of several groups, each in its colour; an axis over more than a decade is logarithmic."""

    def draw(on: _Drawing) -> None:
        for (name, (x, y)), color in zip(groups.items(), (ACCEPTED, LOST, SIM, DREAM), strict=False):
            on.axes.plot(thinned(x), thinned(y), "o", markersize=3, alpha=0.6, label=name, color=color)
        on.axes.set(xlabel=xlabel, ylabel=ylabel, xscale=_scale(x for x, _ in groups.values()))
        on.axes.set(yscale=_scale(y for _, y in groups.values()))
        for axis in (on.axes.xaxis, on.axes.yaxis):
            if axis.get_scale() == "log":
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(lambda value, _: f"{value:g}")
                axis.set_minor_formatter(lambda value, _: "")
        if len(groups) > 1:
            _legend(on.axes)

    return _figure(draw) if any(x for x, _ in groups.values()) else ""


SOURCES = {"simulator": (INK, "-"), "dream of its actions": (DREAM, "--"), "dream of the policy": (SIM, ":")}
"""Source of a trajectory -> colour and style of its line."""


def trajectory(of: Mapping[str, Sequence[float]], chunk_size: int, ylabel: str) -> str:
    """Draw one coordinate over the steps of an episode.

    Args:
        of: source, see `SOURCES` -> value at each step.
        chunk_size: steps of a chunk; a thin line marks the begin of each.
        ylabel: name and unit of the coordinate.
    """

    def draw(on: _Drawing) -> None:
        for step in range(0, max(len(values) for values in of.values()), chunk_size):
            on.axes.axvline(step, color=QUIET, linewidth=0.3)
        for who, values in of.items():
            color, line = SOURCES[who]
            on.axes.plot(values, line, color=color, label=who, linewidth=1.3)
        on.axes.set(xlabel="step of the episode", ylabel=ylabel)

    return _figure(draw, width=3.3, height=2.1)


def _percent_axis(axes: Axes, which: str) -> None:
    """Let an axis run from 0 to 100 %, for shares from 0 to 1."""
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set(**{f"{which}lim": (-0.02, 1.02)})


def _legend(axes: Axes) -> None:
    """Put the legend above the axes, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    lengths = sum(map(len, labels)) + 4 * len(labels)
    columns = len(labels) if lengths < 50 else 2 if max(map(len, labels), default=0) < 25 else 1
    axes.legend(
        handles,
        labels,
        ncols=max(columns, 1),
        loc="lower left",
        bbox_to_anchor=(0, 1),
        fontsize="small",
        borderpad=0.2,
        borderaxespad=0.2,
        columnspacing=1.2,
        handlelength=1.5,
    )


def _scale(values: Iterable[Sequence[float]]) -> str:
    """Return "log" if the values are positive and span more than a decade, else "linear"."""
    flat = [v for part in values for v in part]
    return "log" if 0 < 10 * min(flat) < max(flat) else "linear"


def _figure(draw: Callable[[_Drawing], None], width: float = WIDTH, height: float = HEIGHT) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        on = _Drawing(figure.add_subplot())
        draw(on)
        return _svg(figure, on.tips)


def _svg(figure: Figure, tips: Sequence[str]) -> str:
    """Return the <svg> element alone, without file header and metadata, in the text colour of the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Different drawings use the same ids for clip paths. On one page they would collide, so prefix them.
    prefix = f"f{zlib.crc32(text.encode())}-"
    text = re.sub(r'(id="|xlink:href="#|url\(#)', lambda m: m.group(1) + prefix, text)
    for i, words in enumerate(tips):
        group = f'<g id="{prefix}tip{i}">'
        text = text.replace(group, f"{group}<title>{html.escape(_printable(words))}</title>", 1)
    return text.replace(INK, "currentColor")


def _printable(words: str) -> str:
    return "".join(c if c.isprintable() else " " for c in words)
