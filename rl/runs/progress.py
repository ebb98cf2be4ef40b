"""Show the progress of a long computation: a live panel on a terminal, plain lines elsewhere. One call for both."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REFRESH_SECONDS = 0.25
TRUSTED_SECONDS = 5.0
"""No estimate of the time left is shown before so much time has passed."""

SMOOTHED_SECONDS = 30.0
"""Time constant of the smoothing: calls this far apart move the estimate half-way to the newest value."""

TABLE_WIDTH = 120
"""Width of a table, in characters, if the output is not a terminal."""


class Progress:
    """Context manager that shows progress; `update` may be called at any rate, and the output is throttled.

    Args:
        title: name of the computation, such as "train demo".
        every: seconds between plain lines; the first and the last are always printed.
        console: where to write; standard output by default.
        clock: seconds, those of `time.monotonic` by default.
    """

    def __init__(
        self,
        title: str,
        every: float = 10.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.every, self.clock = title, every, clock
        self.console = console or _console()
        self._live: Live | None = None
        self._printed = 0.0
        self._left = TimeLeft()
        self._share = 0.0  # largest share of the work shown so far
        self._pending: str | None = None

    def __enter__(self) -> Progress:
        self._printed = -float("inf")
        if self.console.is_terminal:
            # No refresh thread: environments fork worker processes, and a thread's lock would be copied with them.
            self._live = Live(console=self.console, auto_refresh=False).__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.refresh()
            self._live.__exit__(None, None, None)
            self._live = None
        elif self._pending is not None:
            self.console.print(self._pending, markup=False, soft_wrap=True)

    def update(self, done: float, total: float, **shown: Any) -> None:
        """Show `done` of `total` and the values `shown`, floats with three digits; the share never goes back."""
        now = self.clock()
        due = now - self._printed >= (REFRESH_SECONDS if self._live is not None else self.every)
        self._share = max(self._share, done / total if total else 0.0)
        done, left = max(done, self._share * total), self._left.update(now, self._share)
        if self._live is not None:
            self._live.update(self._panel(done, total, left, shown), refresh=due)
        else:
            line = self._line(done, total, left, shown)
            self._pending = None if due else line  # `__exit__` prints the last line if it was not due
            if due:
                self.console.print(line, markup=False, soft_wrap=True)
        if due:
            self._printed = now

    def note(self, text: str) -> None:
        """Print a permanent line, such as the verdict of a gate."""
        self.console.print(text, markup=False, soft_wrap=True)

    def _line(self, done: float, total: float, left: float | None, shown: Mapping[str, Any]) -> str:
        values = "  ".join(f"{name}={_format(value)}" for name, value in shown.items())
        share = 100 * done / total if total else 100
        return f"{self.title}  {_count(done)}/{_count(total)} ({share:.0f} %)  {_clock(left)} left  {values}".rstrip()

    def _panel(self, done: float, total: float, left: float | None, shown: Mapping[str, Any]) -> Panel:
        table = Table.grid(padding=(0, 2))
        for name, value in shown.items():
            table.add_row(Text(name, style="dim"), Text(_format(value)))
        bar = Table.grid(padding=(0, 2))
        drawn = ProgressBar(total=max(total, 1e-9), completed=done, width=40)
        bar.add_row(drawn, f"{_count(done)}/{_count(total)}", f"{_clock(left)} left")
        return Panel(Group(bar, table), title=self.title, title_align="left", expand=False)


class TimeLeft:
    """Estimate the seconds that are left from the share of the work done since the first call.

    Work before a resume may have run on another machine, so its speed does not count. The estimate is smoothed: it
    counts down with the clock and moves towards the newest value, so that a single slow part does not double it.
    """

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None  # time and share of the first call
        self._last: tuple[float, float] | None = None  # time and estimate of the last call that returned an estimate

    def update(self, now: float, share: float) -> float | None:
        """Return the estimate in seconds at time `now`, None as long as there is too little data."""
        self._first = self._first or (now, share)
        begun, before = self._first
        if share >= 1.0:
            return 0.0
        if share <= before or now - begun < TRUSTED_SECONDS:
            return None
        left = (now - begun) * (1.0 - share) / (share - before)  # at the mean speed since the first call
        if self._last is not None:
            passed = now - self._last[0]
            expected = max(self._last[1] - passed, 0.0)
            left = expected + (left - expected) * passed / (passed + SMOOTHED_SECONDS)
        self._last = now, left
        return left


def show(table: Table) -> None:
    """Print a table: as wide as the terminal, or `TABLE_WIDTH` if the output goes to a file or pipe."""
    _console().print(table)


def _console() -> Console:
    """Return a console for standard output: colours and a live panel on a terminal, else plain text.

    A notebook is no terminal, although Jupyter sets FORCE_COLOR, and rich would make HTML with escape codes beside it.
    The commands that a notebook runs with `!` have a terminal that shows no panel, so its variable counts, too.
    """
    is_terminal = sys.stdout.isatty() and "JPY_PARENT_PID" not in os.environ
    return Console(
        highlight=False, force_terminal=is_terminal, force_jupyter=False, width=None if is_terminal else TABLE_WIDTH
    )


def _format(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _count(value: float) -> str:
    return f"{round(value, 1):,g}"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?:??"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
