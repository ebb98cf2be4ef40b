"""Sections of a report about the training: success, where it came from, the gates, PPO, the rewards and the costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from rl.build import has_simulator, judged_in
from rl.report import figures
from rl.report.data import Row, RunData
from rl.report.look import Section, beside, figure, note, plots, table
from rl.report.results import all_steps, costs, decomposition, gain_from, reward, sources, with_noise
from rl.report.verdict import describe_reward_gain, reward_in_words
from rl.rounds.evaluate import have_success, mean_reward
from rl.rounds.outcome import STEPS
from rl.statistics import describe, describe_gain, success_rate, wilson

MOST_GATES, MOST_TERMS = 200, 30
"""Largest numbers of shown gates (the last ones) and reward terms."""

MOST_LETTERS = 60
"""Largest length of a name in a legend."""

PHASES = {"imitation": figures.IMITATION, "dream": figures.DREAM, "sim": figures.SIM}


def success(run: RunData) -> Section:
    """Success before and after, of the run and of each control, on the same seeds."""
    question = "Did training help?"
    if (own := run.evaluations.get(run.config.name)) is not None and not have_success(own["before"], own["after"]):
        return _reward_alone(run, question)
    lines, drawn = [], []
    for name, found in run.evaluations.items():
        before, after = found["before"], found["after"]
        rates = [describe(results).partition(" of ")[0] for results in (before, after)]
        lines.append((name, *rates, describe_gain(before, after)))
        for results, word, color in ((before, "before", figures.QUIET), (after, "after", figures.SIM)):
            low, high = wilson(sum(r.success for r in results), len(results))
            drawn.append(figures.Estimate(_short(name), success_rate(results), low, high, color, word))
    if run.config.name not in run.evaluations:
        lines_so_far = table(("", "before", "after", "gain, points"), lines) if lines else ""
        return Section(question, "Not evaluated yet", lines_so_far)
    own = run.evaluations[run.config.name]
    old, new = (100 * success_rate(own[phase]) for phase in ("before", "after"))
    answer = f"Success went from {old:.1f} to {new:.1f} % in {judged_in(run.config)}"
    words = (
        f"{len(own['after'])} episodes in {judged_in(run.config)}, with seeds from {run.config.eval.seed} on, which no "
        "gate and no training used. Brackets and lines are 95 % intervals. Controls repeat the run without "
        "reinforcement learning."
    )
    if run.results and (noisy := with_noise(run.results[0], run.config.evaluated_noise)):
        words += (
            f" With white noise of {run.config.evaluated_noise:g} (standard deviation) on every feature and step, the "
            f"trained policy succeeds in {''.join(noisy.values())}."
        )
    drawing = figure("", figures.intervals(drawn, "episodes that succeeded"))
    shown = table(("", "before", "after", "gain, points"), lines) + note(words)
    return Section(question, answer, beside(drawing, shown))


def _reward_alone(run: RunData, question: str) -> Section:
    """The reward of the environment before and after, where it does not say what a success is."""
    lines = []
    for name, found in run.evaluations.items():
        before, after = found["before"], found["after"]
        means = [f"{mean_reward(results):.4g}" for results in (before, after)]
        lines.append((name, *means, describe_reward_gain(before, after)))
    own = run.evaluations[run.config.name]
    words = (
        f"{len(own['after'])} episodes in {judged_in(run.config)}, with seeds from {run.config.eval.seed} on, which no "
        "gate and no training used. Brackets are 95 % intervals."
    )
    body = table(("", "reward before", "after", "gain"), lines) + note(words)
    return Section(question, reward_in_words(own["before"], own["after"]), body)


def origin(run: RunData) -> Section | None:
    """The gain by the phases of a round, as the terminal prints it."""
    if not run.results or not has_success(run):
        return None
    own, simulated = run.results[0], has_simulator(run.config)
    phases = sources(simulated)
    parts = {row: gain_from(own, phase) for phase, row in phases.items()}
    most, gain = max(parts, key=lambda row: parts[row]), sum(parts.values())
    answer = "There was no gain to divide"
    if parts[most] > 0:
        answer = f"The largest part came {most}: {100 * parts[most]:+.1f} points, of {100 * gain:+.1f} in all"
    colors = {row: PHASES[phase] for phase, row in phases.items()}
    of = {_short(of["name"]): {row: gain_from(of, phase) for phase, row in phases.items()} for of in run.results}
    lines = _columns([decomposition(result, simulated) for result in run.results])
    words = (
        f"A phase of a round is imitation{', PPO in the simulator' if simulated else ''} or PPO in the dream. Each "
        "change in success belongs to the phase after which it was measured. In a control without RL, a phase of this "
        "name only imitates."
    )
    drawn = figures.bars(of, colors, "points of success")
    head = ("points", *(result["name"] for result in run.results))
    return Section("Where did the gain come from?", answer, beside(figure("", drawn), table(head, lines) + note(words)))


def rounds(run: RunData) -> Section | None:
    """Success of the best policy after each phase of a round, for the run and its controls, on the final seeds.

    The x axis is rounds, so that runs with different phases can be compared. Runs of older versions did not log it;
    then x counts phases.
    """
    curves: dict[str, figures.Curve] = {}
    bands, has_rounds = {}, True
    for name in run.names:
        seen = [row for row in run.rows_of(name) if row.get("eval/success") is not None]
        x = [at for row in seen if (at := row.get("eval/rounds")) is not None]
        has_rounds = has_rounds and len(x) == len(seen)
        if len(seen) > 1:
            y, n = [row["eval/success"] for row in seen], run.config.eval.n_episodes
            curves[_short(name)] = x, y
            bands[_short(name)] = [wilson(round(min(max(rate, 0.0), 1.0) * n), n) for rate in y]
    if not curves or not has_success(run):
        return None
    if not has_rounds:
        curves = {name: (range(len(y)), y) for name, (_, y) in curves.items()}
    label = "rounds of training" if has_rounds else "phases of the rounds"
    drawn = figures.curves(curves, label, "success", share=True, bands=bands)
    y = [rate for rate in next(iter(curves.values()))[1] if rate is not None]
    steps = [new - old for old, new in pairwise(y)]
    answer = "Success did not rise after any phase"
    if max(steps) > 0:
        best = steps.index(max(steps))
        answer = f"The largest step was {100 * steps[best]:+.1f} points, after phase {best + 1} of {len(steps)}"
    words = "The best policy so far after each phase, on the seeds of the final evaluation, with 95 % intervals."
    return Section("When did success rise?", answer, beside(figure("", drawn), note(words)))


def gates(run: RunData) -> Section | None:
    """The gates of the run and of its controls: gains with intervals, and the verdicts."""
    drawn, lines = [], []
    tags = ("gate/accepted", "gate/champion", "gate/challenger")
    n_accepted = n_seen = 0
    for name in run.names:
        seen = [row for row in run.rows_of(name) if all(row.get(tag) is not None for tag in tags)][-MOST_GATES:]
        is_own = name == run.config.name
        for i, row in enumerate(seen):
            label = f"{i + 1}: {_phase_of(row)}"
            lines.append((name, label, *_gate_cells(row)))
            if is_own:
                n_seen, n_accepted = n_seen + 1, n_accepted + bool(row["gate/accepted"])
                drawn.append(_gate_estimate(label, row))
    if not lines:
        return None
    head = ("", "gate after", "best so far", "new policy", "won / lost", "gain, points", "φ", "weight", "pairs saved")
    words = (
        "A gate runs the best policy so far and the new one on the same fresh episodes, and rolls back a loss. Its "
        "95 % interval is wide, because it stays valid although the gate looks several times. φ says how well the "
        "dream predicted single episodes (0: not at all, 1: perfectly), weight how much the gate used it, and pairs "
        "saved how many more pairs of episodes it would have needed without."
    )
    if not has_success(run):
        words += (
            " The environment reports no success: a policy wins a pair with the higher reward, and a tie counts half."
        )
    answer = f"{n_accepted} of {n_seen} new policies passed" if n_seen else "Only controls had gates"
    shown = figures.intervals([gate for gate in drawn if gate is not None], "gain of the new policy, points", zero=True)
    body = beside(figure("", shown), note(words)) + table((*head, "verdict"), lines)
    return Section("Which new policies passed their gate?", answer, body)


def has_success(run: RunData) -> bool:
    """Whether the environment says what a success is, as far as the run has been evaluated."""
    found = run.evaluations.get(run.config.name)
    return found is None or have_success(found["before"], found["after"])


def _phase_of(row: Row) -> str:
    return next((place for place in ("dream", "imitation") if row.get(f"gate/in_{place}")), "sim")


def _gate_cells(row: Row) -> tuple[str, ...]:
    return (
        _percent(row["gate/champion"]),
        _percent(row["gate/challenger"]),
        f"{row.get('gate/won') or 0:.0f} / {row.get('gate/lost') or 0:.0f}",
        "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * of for of in found)) if (found := _gain_of(row)) else "",
        _number(row.get("gate/phi"), "+.2f"),
        _number(row.get("gate/twin_weight"), ".2f"),
        _number(None if (saved := row.get("gate/n_saved")) is None else max(saved, 0), ".0f"),
        "accepted" if row["gate/accepted"] else "rolled back",
    )


def _gain_of(row: Row) -> list[float] | None:
    """Return the gain of a gate and its interval; None for a gate of an older version."""
    found = [row[key] for key in ("gate/gain", "gate/gain_low", "gate/gain_high") if row.get(key) is not None]
    return found if len(found) == 3 else None


def _gate_estimate(label: str, row: Row) -> figures.Estimate | None:
    """Return what is drawn of a gate; None for one of an older version, which has no interval."""
    accepted = bool(row["gate/accepted"])
    word, color = ("accepted", figures.ACCEPTED) if accepted else ("rolled back", figures.LOST)
    if (found := _gain_of(row)) is None:
        return None
    gain, low, high = found
    return figures.Estimate(label, gain, low, high, color, word)


def ppo(run: RunData) -> Section | None:
    """The distance to the policy at the start of each phase, the KL of each update, and the fit of the critic."""
    rows = run.rows_of(run.config.name)
    updates, x = _which(rows, lambda key: key == "train/value_loss")
    moved: dict[str, figures.Curve] = {
        "to the start of the phase": (x, [row.get("train/ref_kl") for row in updates]),
        "of one update": (x, [row.get("train/approx_kl") for row in updates]),
    }
    variances = [row.get("train/explained_variance") for row in updates]
    kl = figures.curves(moved, "update", "KL of a chunk, nats")
    critic = figures.curves({"critic": (x, variances)}, "update", "explained variance")
    if not kl and not critic:
        return None
    known = [value for value in variances if value is not None]
    back = sum(bool(row.get("train/taken_back")) for row in updates)
    answer = f"{len(updates)} updates, {back} of them taken back"
    if known:
        answer += f"; at the end the critic explains {100 * known[-1]:.0f} % of the variance of returns"
    body = plots(figure("How far the policy moved", kl), figure("How well the critic predicts returns", critic))
    words = "An update is PPO on one rollout. KL measures how differently two policies act."
    return Section("Was PPO stable?", answer, body + note(words))


def rewards(run: RunData) -> Section | None:
    """The mean of each weighted reward term per step."""
    rows = run.rows_of(run.config.name)
    updates, x = _which(rows, lambda key: key.startswith("reward/"))
    names = sorted(
        {key[7:] for row in updates for key in row if key.startswith("reward/") and not key.endswith("_raw")}
    )[:MOST_TERMS]
    values = {name: [row.get(f"reward/{name}") or 0.0 for row in updates] for name in names}
    drawn = figures.stacked(names, x, values, "update", "weighted reward of a step")
    if not drawn:
        return None
    largest = max(names, key=lambda name: abs(sum(values[name])))
    answer = f"{largest} weighed most of {len(names)} terms" if len(names) > 1 else f"The term {largest} alone"
    return Section("What was rewarded?", answer, plots(figure("Reward of a step, by term", drawn)))


def price(run: RunData) -> Section | None:
    """Simulator steps, time and reward, as the terminal prints them."""
    if not run.results:
        return None
    own, simulated = run.results[0], has_simulator(run.config)
    budget = run.config.budget_steps
    most = "" if budget is None else f" of at most {budget:,}"
    parts = f"{own['sim_steps']:,} to train and {own['gate_steps']:,} for gates"
    answer = f"{all_steps(own):,}{most} simulator steps, all in: {parts}, in {own['minutes']:.1f} minutes"
    if not simulated:
        answer = f"{own['minutes']:.1f} minutes, without a simulator"
    lines = _columns([costs(result, simulated) | reward(result, simulated) for result in run.results])
    return Section("What did it cost?", answer, table(("", *(result["name"] for result in run.results)), lines))


def updates_of(rows: Sequence[Row]) -> list[int]:
    """Return the number of updates at each row: its `step`.

    In runs of older versions, which did not log `time/total_timesteps`, `step` is simulator steps; then count updates.
    """
    counted = accumulate("train/value_loss" in row for row in rows)
    if any(STEPS in row for row in rows):
        return [row["step"] for row in rows]
    return list(counted)


def _which(rows: Sequence[Row], key: Callable[[str], bool]) -> tuple[list[Row], list[int]]:
    """Return the rows with a key that passes the test, and the number of updates at each."""
    chosen = [(row, x) for row, x in zip(rows, updates_of(rows), strict=True) if any(map(key, row))]
    return [row for row, _ in chosen], [x for _, x in chosen]


def _columns(of: Sequence[dict[str, str]]) -> list[tuple[str, ...]]:
    """Return the lines of a table with one column for each of `of`, which have the same keys."""
    return [(row, *(column[row] for column in of)) for row in of[0]]


def _short(name: str) -> str:
    return name[:MOST_LETTERS]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
