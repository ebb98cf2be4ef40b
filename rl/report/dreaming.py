"""Sections of a report about the dream: how well it agrees with the simulator, and how its error grows."""

from __future__ import annotations

from rl.build import judged_in
from rl.report import figures
from rl.report.data import Row, RunData
from rl.report.look import Section, beside, figure, note, plots, table, text
from rl.report.training import has_success, updates_of
from rl.rounds.gate import PREDICTS
from rl.sequential import phi
from rl.statistics import wilson
from world_model.api import METRES, NORMALISED

MOST_EXAMPLES = 10
"""Largest number of shown examples."""

MOST_EPISODES = 10_000
"""Largest number of paired episodes of a kind that are counted."""


def film(run: RunData) -> Section | None:
    """One episode before training, after it and in the dream, if it could be shown."""
    found = None if run.pairs is None else run.pairs.get("film")
    if not found or not found["gif"]:
        return None
    titles = "".join(f"<span>{text(title)}</span>" for title in found["panels"])
    picture = (
        f'<figure class=film><div>{titles}</div><img alt="a film of the episode" src="{text(found["gif"])}"></figure>'
    )
    words = (
        f"The same episode ({found['title']}) three times: before training, after it, and as the dream shows what the "
        "trained policy does. Where a dream has no images, dots mark the hand (blue) and the object (orange), over the "
        "first image."
    )
    return Section("What does it look like?", ", ".join(found["panels"]).capitalize(), picture + note(words))


def agreement(run: RunData) -> Section | None:
    """Success in simulator and dream from the same first states with the same policy noise."""
    if run.pairs is None:
        return None
    s, n = run.pairs["summary"], run.pairs["summary"]["n"]
    gap, low, high = (100 * value for value in run.pairs["gap"])
    points = f"{gap:+.1f} points [{low:+.1f}, {high:+.1f}]"
    answer = f"The dream shows {points} more, which may be chance"
    if low > 0 or high < 0:
        answer = f"The dream is too {'optimistic' if low > 0 else 'pessimistic'}: {points}"
    drawn = [
        figures.Estimate(word, s[place], *wilson(round(s[place] * n), n), color)
        for word, place, color in (("simulator", "sim", figures.SIM), ("dream", "dream", figures.DREAM))
    ]
    lines = [("dream succeeds", s["both"], s["dream_only"]), ("dream fails", s["sim_only"], s["neither"])]
    words = f"{n} episodes of the trained policy, with the same starts and the same policy noise in both."
    shown = table((f"of {n} episodes", "simulator succeeds", "simulator fails"), lines)
    shown += "".join(map(note, [words, *predictions(run), *_replayed(s)]))
    drawing = figure("", figures.intervals(drawn, "episodes that succeeded"))
    return Section("Can the dream be believed?", answer, beside(drawing, shown))


def predictions(run: RunData) -> list[str]:
    """Return in words whether the dream told single episodes apart: in the gates, and in the paired episodes."""
    rows = run.rows_of(run.config.name)
    seen = [(row["gate/phi"], row.get("gate/n_episodes") or 0) for row in rows if row.get("gate/phi") is not None]
    found = []
    if n := sum(n for _, n in seen):
        found.append((sum(of * n for of, n in seen) / n, f"the {n:.0f} pairs of its gates"))
    if run.pairs is not None and (at_the_end := _closed_phi(run.pairs["summary"])) is not None:
        found.append((at_the_end, f"{run.pairs['summary']['n']} episodes of the trained policy"))
    return [
        f"The dream {'predicted' if value >= PREDICTS else 'did not predict'} single episodes: "
        f"φ {value:+.2f} over {where}."
        for value, where in found
    ]


def _closed_phi(summary: Row) -> float | None:
    """Return the correlation of success of the policy in simulator and dream; None if either is always the same."""
    counts = (("both", 1, 1), ("sim_only", 1, 0), ("dream_only", 0, 1), ("neither", 0, 0))
    outcomes = [(real, dreamed) for name, real, dreamed in counts for _ in range(min(summary[name], MOST_EPISODES))]
    return phi([([real for real, _ in outcomes], [dreamed for _, dreamed in outcomes])])


def _replayed(summary: Row) -> list[str]:
    """Return in words how well the dream of the executed actions agrees with the simulator."""
    recall, false_success = summary["retold_recall"], summary["retold_false_success"]
    if recall is None or false_success is None:
        return []
    words = (
        f"When the dream repeats the actions of the simulator, it shows {_percent(recall)} of the successes as such, "
        f"and {_percent(false_success)} of the failures as successes"
    )
    found = summary.get("retold_agreement")  # runs of older versions lack it
    known = found is not None and found == found
    return [f"{words} (Matthews correlation {found:+.2f})." if known else f"{words}."]


def places(run: RunData) -> Section | None:
    """Success while exploring in dream and simulator by update, that in gates, and the error of the dream."""
    judge = judged_in(run.config).removeprefix("the ")
    success_of_simulator = {
        "rollout/sim_success": ("simulator, exploring", figures.SIM),
        "gate/challenger": (f"{judge}, in the gate", figures.ACCEPTED),
    }
    tags = {
        "rollout/dream_success": ("dream, exploring", figures.DREAM),
        **({} if not has_success(run) else success_of_simulator),
        "dream/error": ("error of the dream", figures.DREAM),
    }
    rows = run.rows_of(run.config.name)
    curves: dict[str, tuple[list[float], list[float | None]]] = {}
    for update, row in zip(updates_of(rows), rows, strict=True):
        for tag, (name, _) in tags.items():
            if tag in row:
                x, y = curves.setdefault(name, ([], []))
                x.append(update)
                y.append(row[tag])
    colors = dict(tags.values())
    error = {name: c for name in ["error of the dream"] if (c := curves.pop(name, None)) and len(c[0]) > 1}
    drawn = figures.curves(curves, "update", "success", share=True, colors=colors)
    errors = figures.curves(error, "update", "error (1: nothing moves)", colors=colors)
    if not drawn and not errors:
        return None
    # The last success of each place; the noise of exploring makes it lower than that of the gates.
    ends = [f"{name}: {_percent(value)}" for name, (_, y) in curves.items() if (value := y[-1]) is not None]
    answer = ", ".join(ends) or "only the error of the dream"
    body = plots(
        figure("Success by place", drawn),
        figure("Error of the dream before each refit", errors),
    )
    return Section("What did training see, update by update?", answer[:1].upper() + answer[1:], body)


def errors(run: RunData) -> Section | None:
    """The error of the dream of the executed actions, step by step."""
    if run.pairs is None or not run.pairs["summary"]["error_by_step"]:
        return None
    by_step, unit = run.pairs["summary"]["error_by_step"], run.pairs["unit"]
    label, shown = f"error of the state, {unit}", f"{by_step[-1]:.2g} {unit}"
    if unit == METRES:
        by_step = [100 * e for e in by_step]
        label, shown = "error of the object, cm", f"{by_step[-1]:.1f} cm"
    drawn = figures.curves({"error": (range(1, len(by_step) + 1), by_step)}, "step of the episode", label)
    answer = f"After {len(by_step)} steps the dream is off by {shown}"
    words = "Mean error over the paired episodes, in a dream of the executed actions that begins with the episode."
    if unit == NORMALISED:
        words += " It is the distance of all predicted numbers together, each in units of its standard deviation."
    return Section("How does the error of the dream grow?", answer, beside(figure("", drawn), note(words)))


def correlation(run: RunData) -> Section | None:
    """The rank correlation of prediction error and success, and as a baseline that of movement and success."""
    if run.pairs is None:
        return None
    question, s, unit = "Do better predicted episodes succeed more often?", run.pairs["summary"], run.pairs["unit"]
    found = {}
    for name, key in (("prediction error", "error_and_success"), ("amount of movement", "movement_and_success")):
        c = s[key]
        if c["rho"] == c["rho"]:  # not NaN
            found[name] = c
    if not found:
        return Section(question, "All episodes ended the same way, so this cannot be said", "")
    groups = {}
    for word, hit in (("success", True), ("failure", False)):
        of = [p for p in run.pairs["points"] if p["sim"] == hit]
        groups[word] = [p["movement"] for p in of], [p["error"] for p in of]
    drawn = figures.scatter(groups, f"amount of movement predicted, {unit}", f"prediction error, {unit}")
    answer = "This cannot be said from these episodes"
    if (c := found.get("prediction error")) is not None and (c["high"] < 0 or c["low"] > 0):
        answer = "Yes" if c["high"] < 0 else "No, the other way round"
        answer += f": rank correlation of error and success {c['rho']:+.2f}"
    lines = [
        (f"{name} and success", f"{c['rho']:+.2f} [{c['low']:+.2f}, {c['high']:+.2f}]") for name, c in found.items()
    ]
    words = (
        f"Spearman, over {s['n_compared']} episodes at the same horizon; the brackets are 95 % intervals by bootstrap."
    )
    shown = table(("", "rank correlation"), lines) + note(words)
    return Section(question, answer, beside(figure("One dot is an episode", drawn), shown))


def trust(run: RunData) -> Section | None:
    """Expected against true error of dreams from states all along the episodes."""
    if run.pairs is None or run.pairs.get("trust") is None:
        return None
    t, unit = run.pairs["trust"], run.pairs["unit"]
    interval = f"{t['rho']:+.2f} [{t['low']:+.2f}, {t['high']:+.2f}]"
    answer = f"Rank correlation of expected and true error: {interval}"
    of = {"one dream": (t["expected"], t["error"])}
    drawn = figures.scatter(of, f"expected error, {unit}", f"prediction error, {unit}")
    words = f"{t['n']} dreams of actions that were executed, begun all along the episodes."
    body = beside(figure("One dot is a dream", drawn), note(words))
    return Section("Does the model know its own error?", answer, body)


def examples(run: RunData) -> Section | None:
    """Predicted and true positions of the example episodes, with their videos."""
    if run.pairs is None or not run.pairs["examples"]:
        return None
    made = []
    chosen = run.pairs["examples"][:MOST_EXAMPLES]
    for e in chosen:
        video = f'<p><img alt="simulator, dream, difference" src="{text(e["film"])}"></p>' if e.get("film") else ""
        drawn = [
            figure("", figures.trajectory(_axis(by, axis), e["chunk_size"], f"{_spoken(part)} {'xyz'[axis]}, cm"))
            for part, by in e["parts"].items()
            for axis in range(min(len(next(iter(by.values()))[0]), 3))
        ]
        made.append(f"<h3>{text(e['title'])} (seed {e['seed']})</h3>{video}" + plots(*drawn, small=True))
    legend = note(
        "Lines: simulator; dashed, the dream of its actions; dotted, the dream in which the policy acts itself. Thin "
        "vertical lines are the begins of chunks."
    )
    answer = f"{len(chosen)} episode{'s' if len(chosen) > 1 else ''}, step by step"
    return Section("What do success and failure look like?", answer, legend + "".join(made))


def _axis(by: dict[str, list[list[float]]], axis: int) -> dict[str, list[float]]:
    """Return one coordinate of each source, in centimetres."""
    return {who: [100 * position[axis] for position in values] for who, values in by.items()}


def _spoken(part: str) -> str:
    return part.removesuffix("_pos").replace("_", " ")


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
