"""Success before and after a run for each of its tasks, for terminal, report and card; without success the reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from rl.report.data import RunData
from rl.report.look import Section, note, table
from rl.rounds.evaluate import EpisodeResult, have_success, mean_reward
from rl.rounds.guard import TaskPairs, by_task
from rl.statistics import holm, sign_test

ALPHA = 0.05
"""Probability that any task is called better, or any worse, although none is."""

HEAD = ("task", "episodes", "before", "after", "won / lost", "")


@dataclass(frozen=True)
class TaskRow:
    """One task of a run: its episodes before and after training, and whether it surely got better or worse."""

    pairs: TaskPairs  # champion: before training, challenger: after it
    verdict: str  # better, worse, or "" where the episodes do not tell
    rewards: tuple[float, float] | None = None  # mean of an episode before and after; None: there is success to show

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of a table with the columns `HEAD`."""
        of = self.pairs
        before, after = (f"{100 * hits / of.n:.0f} %" for hits in (of.champion, of.challenger))
        if self.rewards is not None:
            before, after = (f"{reward:.4g}" for reward in self.rewards)
        return of.task, str(of.n), before, after, f"{of.won} / {of.lost}", self.verdict


def task_rows(before: Sequence[EpisodeResult], after: Sequence[EpisodeResult]) -> list[TaskRow]:
    """Return a row for each task, the largest gain first; [] with fewer than two tasks.

    A task is better, or worse, by a one-sided sign test on the pairs of episodes that differ (exact McNemar), with
    Holm's correction over all tasks.
    """
    pairs = by_task(before, after)
    if len(pairs) < 2:
        return []
    better = holm([sign_test(of.lost, of.won) for of in pairs], ALPHA)
    worse = holm([sign_test(of.won, of.lost) for of in pairs], ALPHA)
    words = ("better" if up else "worse" if down else "" for up, down in zip(better, worse, strict=True))
    has_success = have_success(before, after)
    rows = [
        TaskRow(of, word, None if has_success else (_reward(before, of.task), _reward(after, of.task)))
        for of, word in zip(pairs, words, strict=True)
    ]
    return sorted(rows, key=lambda row: (row.pairs.lost - row.pairs.won) / row.pairs.n)


def in_words(rows: Sequence[TaskRow]) -> str:
    """Return in words how many tasks surely got better or worse."""
    n = {word: sum(row.verdict == word for row in rows) for word in ("better", "worse")}
    worse = ", ".join(row.pairs.task for row in rows if row.verdict == "worse")
    return f"{n['better']} of {len(rows)} tasks surely better, {n['worse']} worse" + (f": {worse}" if worse else "")


def terminal(rows: Sequence[TaskRow]) -> Table:
    """Return the table for the terminal."""
    found = Table(title=in_words(rows), title_justify="left")
    for i, name in enumerate(HEAD):
        found.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        task, *cells = row.cells
        found.add_row(Text(task), *cells)  # a sentence may hold brackets, which rich takes for markup in plain text
    return found


def markdown(rows: Sequence[TaskRow]) -> str:
    """Return the table for a model card; "" without rows."""
    if not rows:
        return ""
    cells_of = ([cell.replace("|", "\\|") for cell in row.cells] for row in rows)  # a task may be any sentence
    lines = [HEAD, ("---", *["---:"] * (len(HEAD) - 1)), *cells_of]
    return f"\n{in_words(rows)}:\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def section(run: RunData) -> Section | None:
    """The tasks of the run in the report, before and after; None before the end, or with a single task."""
    found = run.evaluations.get(run.config.name)
    rows = [] if found is None else task_rows(found["before"], found["after"])
    if not rows:
        return None
    won_and_lost = "that only the policy after training solved, and only the one before it"
    if rows[0].rewards is not None:
        won_and_lost = "in which the policy after training got more reward than the one before it, and less"
    words = (
        f"Won and lost are the episodes {won_and_lost}. Better and worse are exact one-sided tests on them, with "
        "Holm's correction over all tasks; an empty cell means that there are too few episodes to tell."
    )
    return Section("Which tasks gained?", in_words(rows), table(HEAD, [row.cells for row in rows]) + note(words))


def _reward(results: Sequence[EpisodeResult], task: str) -> float:
    return mean_reward([result for result in results if result.task == task])
