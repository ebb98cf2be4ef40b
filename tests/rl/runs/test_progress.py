"""Progress: it never runs back, and the time that is left is told soberly."""

from __future__ import annotations

import io
import re
from itertools import pairwise

import pytest
from rich.console import Console
from rich.table import Table

from rl.runs.progress import Progress, TimeLeft, show


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def lines_of(updates: list[tuple[float, float, float]]) -> list[str]:
    """What is printed where (seconds, done, total) are given."""
    clock, out = Clock(), io.StringIO()
    with Progress("work", every=0.0, console=Console(file=out, width=200), clock=clock) as progress:
        for seconds, done, total in updates:
            clock.now = 100.0 + seconds
            progress.update(done, total)
    return out.getvalue().splitlines()


def test_a_steady_rate_is_told_exactly() -> None:
    left = TimeLeft()
    told = [left.update(float(second), second / 100) for second in range(0, 101, 10)]
    assert told[0] is None and told[1:] == pytest.approx([float(100 - second) for second in range(10, 101, 10)])


def test_what_was_done_before_this_start_does_not_count() -> None:
    left = TimeLeft()
    assert left.update(1000.0, 0.8) is None
    assert left.update(1010.0, 0.81) == pytest.approx(190.0)


def test_nothing_is_told_from_the_first_moment() -> None:
    left = TimeLeft()
    left.update(0.0, 0.0)
    assert left.update(0.5, 0.2) is None  # what begins fast is no promise


def test_a_slow_part_does_not_double_the_estimate() -> None:
    """A rollout and a refit take turns, 1 and 9 seconds for the same share of the work."""
    left, now, share = TimeLeft(), 0.0, 0.0
    told = [left.update(now, share)]
    while share < 0.95:
        for seconds in (1.0, 9.0):
            now, share = now + seconds, share + 0.01
            told.append(left.update(now, share))
    known = [value for value in told if value is not None]
    assert len(known) > 80
    assert all(after < 1.3 * before + 1 for before, after in pairwise(known))
    halves = known[len(known) // 2 :]
    assert all(after <= before for before, after in pairwise(halves[::2]))


def test_a_wrong_estimate_is_left_behind() -> None:
    left = TimeLeft()
    left.update(0.0, 0.0)
    left.update(6.0, 0.5)  # half of it in 6 seconds, and then the slow rest
    told = [left.update(6.0 + second, 0.5 + second / 1000) for second in range(10, 200, 10)]
    truth = [500.0 - second for second in range(10, 200, 10)]
    assert told[0] < told[5] < truth[5]  # it grows, but not at once


def test_it_never_runs_back() -> None:
    """A gate runs blocks of episodes, each from 0 to its end, and what there is to do may turn out to be more."""
    printed = lines_of([(0, 0, 10), (10, 4, 10), (20, 3, 10), (30, 5, 10), (40, 5, 20), (50, 20, 20)])
    shares = [int(re.search(r"\((\d+) %\)", line)[1]) for line in printed]  # type: ignore[index]
    assert shares == [0, 40, 40, 50, 50, 100]
    assert "5/10" in printed[3] and "10/20" in printed[4] and printed[-1].endswith("0:00 left")


def test_a_run_that_goes_on_counts_from_there() -> None:
    printed = lines_of([(0, 80, 100), (10, 81, 100)])
    assert printed[0].endswith("?:?? left") and printed[1].endswith("3:10 left")


@pytest.mark.parametrize("is_kernel", [False, True])
def test_a_notebook_gets_plain_text(
    is_kernel: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jupyter sets FORCE_COLOR; commands that it runs have a terminal, and its variable."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    if is_kernel:
        monkeypatch.setenv("JPY_PARENT_PID", "1")
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    table = Table("task", title="success")
    table.add_row("push")
    show(table)
    with Progress("train") as progress:
        progress.update(1, 2)
    out = capsys.readouterr().out
    assert "│ push" in out and "train  1/2 (50 %)" in out and "\x1b" not in out
