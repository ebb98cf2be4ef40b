"""Pages of `wamtune eval` and `wamtune rank` (`out=FILE.html`): the answer, figures, and the tables of the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from rl.ranking import Ranking
from rl.report import figures, look
from rl.rounds.evaluate import EpisodeResult, have_success, mean_reward
from rl.sequential import Floats
from rl.statistics import describe, success_rate, wilson
from rl.verbs.measure import TwinSuccess, in_percent

Results = dict[str, list[EpisodeResult]]

MOST_LETTERS = 20
"""Letters of a name beside a figure, the last ones: names are often folders that begin alike."""

COLORS = {"simulator": figures.SIM, "dream": figures.DREAM}


def eval_page(
    name: str, sim: Results, dream: Results, twins: Mapping[str, TwinSuccess], tables: Sequence[Table]
) -> str:
    """Return the page of an evaluation; of episodes without success it has the reward, as the terminal.

    Args:
        name: of the checkpoint or policy.
        sim: task -> its episodes in the simulator; an empty list for a task without.
        dream: the same in the dream.
        twins: estimates of the true success by task, the last one over all; empty without dreams from fresh starts.
        tables: of `wamtune eval`: the success, and the estimates if there are any.
    """
    places = {"simulator": sim, "dream": dream}
    shown = {place: [r for of in results.values() for r in of] for place, results in places.items()}
    shown = {place: results for place, results in shown.items() if results}
    label = ", ".join(f"{_described(results)} in the {place}" for place, results in shown.items())
    tasks = ", ".join(sim)
    if have_success(*shown.values()):
        said = f"Success of {name} on {tasks}. {_counted(shown)} Brackets and lines are 95 % intervals."
    else:
        said = f"Reward of {name} on {tasks}. {_counted(shown)}"
    head = _head(f"eval {name}", label, said)
    rows = [
        _row(task, [float(r.success) for r in results[task]], place)
        for task in sim
        for place, results in places.items()
        if have_success(results[task])
    ]
    answer = f"On {tasks} in {label}"
    if len(sim) > 1 and rows:
        best, worst = (pick(sim, key=lambda task: _rate(task, sim, dream)) for pick in (max, min))
        answer = f"Most on {best}, least on {worst}"
    sections = []
    if rows:
        sections.append(_section("How often does it succeed?", answer, rows, tables[0]))
    if rewarded := {task: results for task, results in sim.items() if results and not have_success(results)}:
        sections.append(_rewards(rewarded))
    if len(shown) == 2 and all(map(have_success, shown.values())):
        sections.append(_agreement(shown["simulator"], shown["dream"]))
    if twins:
        found = list(twins.values())[-1].found
        answer = f"{in_percent(found.mean, found.low, found.high)} % with both; the dreams were worth "
        answer += f"{max(found.n_saved, 0)} real episodes"
        sections.append(_section("What is the true success, from real and dreamed episodes?", answer, [], tables[1]))
    return look.page(f"eval {name}", head, sections)


def rank_page(names: Sequence[str], outcomes: Floats, ranking: Ranking, table: Table, said: Sequence[str]) -> str:
    """Return the page of a ranking.

    Args:
        names: of the C policies.
        outcomes: of each policy in the dream, 0 or 1 (C, n).
        ranking: of the policies.
        table: of `wamtune rank`.
        said: the lines that the terminal shows below the table.
    """
    first = names[ranking.order[0]]
    sure = f"It is the best of {len(names)} with probability {ranking.is_best[ranking.order[0]]:.2f}."
    head = _head("rank", first, " ".join([sure, *(f"{line[:1].upper()}{line[1:]}." for line in said)]))
    rows = [
        _row(f"{place}: {names[i][-MOST_LETTERS:]}", outcomes[i].tolist(), "dream")
        for place, i in enumerate(ranking.order, start=1)
    ]
    answer = f"{first}, then {', '.join(names[i] for i in ranking.order[1:])}"
    return look.page("rank", head, [_section("Which policy is the best?", answer, rows, table)])


def _head(title: str, label: str, sentence: str) -> str:
    return f"<h1>{look.text(title)}</h1>{look.verdict(label, sentence, 'none')}"


def _described(results: Sequence[EpisodeResult]) -> str:
    if have_success(results):
        return describe(results).partition(" of ")[0]
    return f"a mean reward of {mean_reward(results):.4g}"


def _counted(shown: dict[str, list[EpisodeResult]]) -> str:
    return " ".join(f"{len(results)} episodes in the {place}." for place, results in shown.items())


def _rate(task: str, sim: Results, dream: Results) -> float:
    return success_rate(sim[task] or dream[task])


def _row(label: str, hits: Sequence[float], place: str) -> figures.Estimate:
    low, high = wilson(round(sum(hits)), len(hits))
    return figures.Estimate(label, sum(hits) / len(hits), low, high, COLORS[place], place)


def _section(question: str, answer: str, rows: Sequence[figures.Estimate], table: Table) -> look.Section:
    lines = zip(*(column.cells for column in table.columns), strict=True)
    shown = look.table([str(column.header) for column in table.columns], lines)
    return look.Section(question, answer, look.figure("", figures.intervals(rows, "episodes that succeeded")) + shown)


def _rewards(rewarded: Mapping[str, list[EpisodeResult]]) -> look.Section:
    """Return the mean reward of the tasks whose simulator reports no success."""
    lines = [(task, str(len(results)), f"{mean_reward(results):.4g}") for task, results in rewarded.items()]
    answer = "The simulator does not say when the task is solved: no is_success in its info"
    shown = look.table(("task", "episodes", "mean reward of an episode"), lines)
    return look.Section("How much reward is in an episode?", answer, shown)


def _agreement(sim: Sequence[EpisodeResult], dream: Sequence[EpisodeResult]) -> look.Section:
    """Return how often simulator and dream ended alike, from the same first states."""
    pairs = [(real.success, dreamed.success) for real, dreamed in zip(sim, dream, strict=True)]
    lines = [
        (f"dream {word}", *(pairs.count((real, dreamed)) for real in (True, False)))
        for word, dreamed in (("succeeds", True), ("fails", False))
    ]
    same = sum(real == dreamed for real, dreamed in pairs)
    head = (f"of {len(pairs)} episodes", "simulator succeeds", "simulator fails")
    answer = f"{same} of {len(pairs)} episodes ended alike in both"
    return look.Section("Does the dream agree about single episodes?", answer, look.table(head, lines))
