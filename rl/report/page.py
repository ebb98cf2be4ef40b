"""`report.html` of a run: success in dream and simulator, and where they differ. One file, no network access."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path

from rewards.errors import UserError
from rl.build import judged_in
from rl.compose import compose, diff_from_defaults
from rl.config import TrainConfig
from rl.report import figures
from rl.report.data import PAIRS, Row, read_metrics, read_pairs, read_results
from rl.rounds.gate import PREDICTS
from rl.rounds.outcome import STEPS
from rl.sequential import phi
from rl.statistics import describe, describe_gain
from world_model.api import METRES
from world_model.files import write_atomically

__all__ = ["PAIRS", "write_report"]

LIBRARIES = ("wamtune", "torch", "stable-baselines3", "metaworld", "mujoco", "isaaclab")

MOST_GATES, MOST_TERMS, MOST_EXAMPLES = 200, 30, 10
"""Largest numbers of shown gates (the last ones), reward terms and examples."""

MOST_EPISODES = 10_000
"""Largest number of paired episodes of a kind that are counted."""

MOST_LETTERS = 60
"""Largest length of a name in a legend."""

STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #1b1f24; --quiet: #667; --line: #d8dce2; --mark: #f3f5f8 }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171b; --ink: #e6e9ed; --quiet: #9aa3ad; --line: #333a42; --mark: #1e2329 }
}
body { background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
.quiet { color: var(--quiet) }
.big { font-size: 1.4rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child { text-align: left }
pre { background: var(--mark); padding: .8rem; overflow-x: auto }
svg { max-width: 100%; height: auto }
"""


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder of `wamtune train` from the files in it; return its path.

    Raises:
        UserError: the folder holds no finished or running training.
    """
    folder = Path(folder)
    rows = read_metrics(folder)
    if not (folder / "config.yaml").is_file() or not rows:
        raise UserError(f"report: {folder} holds no training; expected runs/NAME/TIME-s0 with a metrics.jsonl")
    config = compose(folder / "config.yaml", [], TrainConfig)
    # Rows of the run itself: the keys of a control begin with its name.
    own = [row for row in rows if not any(key.partition("/")[0] in config.controls for key in row if key != "step")]
    pairs = read_pairs(folder)
    sections: list[tuple[str, Callable[[], str]]] = [
        ("Before and after", lambda: _before_after(config, folder)),
        ("Round by round", lambda: _rounds(config, rows)),
        ("Gates", lambda: _gates(own)),
        ("Dream and simulator", lambda: _places(own)),
        ("The same episodes in both", lambda: _agreement(pairs)),
        ("Does prediction tell of success?", lambda: _correlation(pairs)),
        ("Trust", lambda: _trust(pairs)),
        ("Three episodes", lambda: _examples(pairs)),
        ("PPO", lambda: _ppo(own)),
        ("Rewards", lambda: _rewards(own)),
        ("To repeat it", lambda: _repeat(folder, config)),
    ]
    made = [(title, make()) for title, make in sections]
    body = "".join(f"<section><h2>{title}</h2>{text}</section>" for title, text in made if text)
    head = f"<h1>{_text(config.name)}</h1><p class=quiet>{_text(_about(config))}</p>{_predicts(own, pairs)}"
    page = (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width"><link rel=icon href="data:,">'
        f"<title>{_text(config.name)}</title><style>{STYLE}</style></head><body>{head}{body}</body></html>\n"
    )
    path = folder / "report.html"
    write_atomically(path, page.encode("utf-8", errors="replace"))
    return path


def _about(config: TrainConfig) -> str:
    start = config.starts_from
    others = config.env.id or "all tasks of the checkpoint"
    return f"{start} on {', '.join(config.env.tasks) or others}, env.kind={config.env.kind}, seed {config.seed}"


def _predicts(rows: Sequence[Row], pairs: Row | None) -> str:
    """Say whether the dream told single episodes apart: in the gates, and in the episodes of both at the end."""
    gates = [(row["gate/phi"], row.get("gate/n_episodes") or 0) for row in rows if row.get("gate/phi") is not None]
    found = []
    if n := sum(n for _, n in gates):
        found.append((sum(of * n for of, n in gates) / n, f"the {n:.0f} pairs of its gates"))
    if pairs is not None and (at_the_end := _closed_phi(pairs["summary"])) is not None:
        found.append((at_the_end, f"{pairs['summary']['n']} episodes of the champion"))
    lines = []
    for value, where in found:
        if value < PREDICTS:
            lines.append(f"<p class=big>The dream did not predict single episodes: φ {value:+.2f} over {where}.</p>")
        else:
            lines.append(f"<p class=quiet>The dream predicted single episodes with φ {value:+.2f} over {where}.</p>")
    return "".join(lines)


def _closed_phi(summary: Row) -> float | None:
    """Return the correlation of success of the policy in simulator and dream; None if either is always the same."""
    counts = (("both", 1, 1), ("sim_only", 1, 0), ("dream_only", 0, 1), ("neither", 0, 0))
    outcomes = [(real, dreamed) for name, real, dreamed in counts for _ in range(min(summary[name], MOST_EPISODES))]
    return phi([([real for real, _ in outcomes], [dreamed for _, dreamed in outcomes])])


def _before_after(config: TrainConfig, folder: Path) -> str:
    """Return a table with success before and after, of the run and of each control, on the same seeds."""
    lines = []
    for name in dict.fromkeys((config.name, *config.controls)):
        results = read_results(folder, name)
        before, after = results["before"], results["after"]
        if before:
            lines.append((name, describe(before), describe(after), describe_gain(before, after)))
    if not lines:
        return "<p>Not evaluated yet.</p>"
    note = f"Success in {judged_in(config)}, seeds from {config.eval.seed} on, which no gate and no training saw."
    return f"<p class=quiet>{note}</p>" + _table(("", "before", "after", "gain, points"), lines)


def _rounds(config: TrainConfig, rows: Sequence[Row]) -> str:
    """Draw the success of the champion after each phase of a round, for the run and its controls, on the final seeds.

    The x axis is rounds, so that runs with different parts can be compared. Runs of older versions did not log it;
    then x counts parts.
    """
    curves: dict[str, figures.Curve] = {}
    has_rounds = True
    for name in (config.name, *config.controls):
        prefix = "eval/" if name == config.name else f"{name}/eval/"
        seen = [row for row in rows if f"{prefix}success" in row]
        rounds = [x for row in seen if (x := row.get(f"{prefix}rounds")) is not None]
        has_rounds = has_rounds and len(rounds) == len(seen)
        if len(seen) > 1:
            curves[name[:MOST_LETTERS]] = rounds, [row[f"{prefix}success"] for row in seen]
    if not has_rounds:
        curves = {name: (range(len(values)), values) for name, (_, values) in curves.items()}
    label = "rounds" if has_rounds else "phases"
    return figures.curves(curves, label, f"success in {judged_in(config)}", share=True)


def _gates(rows: Sequence[Row]) -> str:
    """Return a figure and a table of the gates: success of champion and challenger, and the verdict."""
    tags = ("gate/accepted", "gate/champion", "gate/challenger")
    seen = [row for row in rows if all(row.get(tag) is not None for tag in tags)][-MOST_GATES:]
    places = [next((p for p in ("dream", "imitation") if row.get(f"gate/in_{p}")), "sim") for row in seen]
    labels = [f"{i + 1}: {place}" for i, place in enumerate(places)]
    drawn = [
        (label, row["gate/champion"], row["gate/challenger"], bool(row["gate/accepted"]))
        for label, row in zip(labels, seen, strict=True)
    ]
    lines = [
        (
            label,
            _percent(champion),
            _percent(challenger),
            f"{row.get('gate/won') or 0:.0f} / {row.get('gate/lost') or 0:.0f}",
            _gain(row),
            _number(row.get("gate/phi"), "+.2f"),
            _number(row.get("gate/twin_weight"), ".2f"),
            _number(row.get("gate/n_saved"), ".0f"),
            "accepted" if accepted else "rolled back",
        )
        for (label, champion, challenger, accepted), row in zip(drawn, seen, strict=True)
    ]
    head = ("phase", "champion", "challenger", "won / lost", "gain, points", "φ", "weight", "worth pairs", "verdict")
    return figures.gates(drawn) + _table(head, lines) if lines else ""


def _gain(row: Row) -> str:
    """Return the gain of a gate with its interval; "" for one of an older version."""
    found = [row[key] for key in ("gate/gain", "gate/gain_low", "gate/gain_high") if row.get(key) is not None]
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*_points(found)) if len(found) == 3 else ""


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _places(rows: Sequence[Row]) -> str:
    """Draw success while exploring in dream and simulator by update, and the prediction error of the dream."""
    tags = {
        "rollout/dream_success": ("dream, exploring", figures.DREAM),
        "rollout/sim_success": ("simulator, exploring", figures.SIM),
        "gate/challenger": ("simulator, in the gate", figures.ACCEPTED),
        "dream/error": ("error of the dream", figures.DREAM),
    }
    curves: dict[str, tuple[list[float], list[float | None]]] = {}
    for update, row in zip(_updates(rows), rows, strict=True):
        for tag, (name, _) in tags.items():
            if tag in row:
                x, y = curves.setdefault(name, ([], []))
                x.append(update)
                y.append(row[tag])
    colors = dict(tags.values())
    error = {name: c for name in ["error of the dream"] if (c := curves.pop(name, None)) and len(c[0]) > 1}
    drawn = figures.curves(curves, "update", "success", share=True, colors=colors)
    return drawn + figures.curves(error, "update", 'error in units of "repeat"', colors=colors)


def _agreement(pairs: Row | None) -> str:
    """Return success in simulator and dream from the same first states with the same policy noise."""
    if pairs is None:
        return ""
    s, (gap, low, high) = pairs["summary"], _points(pairs["gap"])
    lines = [("dream succeeds", s["both"], s["dream_only"]), ("dream fails", s["sim_only"], s["neither"])]
    text = (
        f"<p class=big>simulator {_percent(s['sim'])}, dream {_percent(s['dream'])}, gap {gap:+.1f} points "
        f"[{low:+.1f}, {high:+.1f}]</p><p class=quiet>{s['n']} episodes of the champion, the same starts and the same "
        f"policy noise in both.</p>"
    )
    text += _table(("", "simulator succeeds", "simulator fails"), lines)
    recall, false_success = s["retold_recall"], s["retold_false_success"]
    if recall is not None and false_success is not None:
        text += (
            f"<p>The actions of the simulator, dreamed again: {_percent(recall)} of its successes are dreamed as "
            f"such, and {_percent(false_success)} of its failures as successes{_replayed_phi(s)}.</p>"
        )
    errors, label = s["error_by_step"], f"error of the state, {pairs['unit']}"
    if pairs["unit"] == METRES:
        errors, label = [100 * e for e in errors], "error of the object, cm"
    return text + figures.curves({"error": (range(1, len(errors) + 1), errors)}, "step", label)


def _replayed_phi(summary: Row) -> str:
    """Return in words how well the dream of the executed actions agrees with the simulator; older runs lack it."""
    found = summary.get("retold_agreement")
    return "" if found is None or found != found else f" (Matthews correlation {found:+.2f})"


def _correlation(pairs: Row | None) -> str:
    """Return the rank correlation of prediction error and success, and as a baseline that of movement and success."""
    if pairs is None:
        return ""
    s, found = pairs["summary"], []
    for name, key in (("prediction error", "error_and_success"), ("amount of movement", "movement_and_success")):
        c = s[key]
        if c["rho"] == c["rho"]:  # not NaN
            found.append((f"{name} and success", f"{c['rho']:+.2f} [{c['low']:+.2f}, {c['high']:+.2f}]"))
    if not found:
        return "<p>All episodes ended the same way: there is nothing to correlate.</p>"
    note = (
        f"<p class=quiet>Spearman, 95 % interval by bootstrap, over {s['n_compared']} episodes at the same horizon.</p>"
    )
    groups = {}
    for word, hit in (("success", True), ("failure", False)):
        of = [p for p in pairs["points"] if p["sim"] == hit]
        groups[word] = [p["movement"] for p in of], [p["error"] for p in of]
    unit = pairs["unit"]
    drawn = figures.scatter(groups, f"amount of movement predicted, {unit}", f"prediction error, {unit}")
    return note + _table(("", "rho"), found) + drawn


def _trust(pairs: Row | None) -> str:
    """Draw expected against true error of dreams from states all along the episodes."""
    if pairs is None or pairs.get("trust") is None:
        return ""
    t, unit = pairs["trust"], pairs["unit"]
    note = (
        f"Expected and true error of {t['n']} dreams of the actions that were executed, begun all along the episodes: "
        f"rank correlation {t['rho']:+.2f} [{t['low']:+.2f}, {t['high']:+.2f}]."
    )
    of = {"one dream": (t["expected"], t["error"])}
    drawn = figures.scatter(of, f"expected error, {unit}", f"prediction error, {unit}")
    return f"<p class=quiet>{note}</p>{drawn}"


def _examples(pairs: Row | None) -> str:
    """Draw predicted and true positions of the example episodes, with their videos."""
    if pairs is None:
        return ""
    made = []
    for e in pairs["examples"][:MOST_EXAMPLES]:
        video = f'<p><img alt="simulator, dream, difference" src="{_text(e["film"])}"></p>' if e.get("film") else ""
        made.append(
            f"<h3>{_text(e['title'])}, seed {e['seed']}</h3>{video}" + figures.trajectory(e["parts"], e["chunk_size"])
        )
    return "".join(made)


def _ppo(rows: Sequence[Row]) -> str:
    """Draw the KL to the policy at the start of each phase, the KL of each update, and the fit of the critic."""
    updates, x = _which(rows, lambda key: key == "train/value_loss")
    one = {tag: (x, [row.get(f"train/{tag}") for row in updates]) for tag in ("ref_kl", "approx_kl")}
    critic = {"explained variance": (x, [row.get("train/explained_variance") for row in updates])}
    return figures.curves(one, "update", "KL of a chunk") + figures.curves(critic, "update", "explained variance")


def _rewards(rows: Sequence[Row]) -> str:
    """Draw the mean of each weighted reward term per step."""
    updates, x = _which(rows, lambda key: key.startswith("reward/"))
    names = sorted(
        {key[7:] for row in updates for key in row if key.startswith("reward/") and not key.endswith("_raw")}
    )[:MOST_TERMS]
    values = {name: [row.get(f"reward/{name}") or 0.0 for row in updates] for name in names}
    return figures.stacked(names, x, values, "reward a step")


def _updates(rows: Sequence[Row]) -> list[int]:
    """Return the number of updates at each row: its `step`.

    In runs of older versions, which did not log `time/total_timesteps`, `step` is simulator steps; then count updates.
    """
    counted = accumulate("train/value_loss" in row for row in rows)
    if any(STEPS in row for row in rows):
        return [row["step"] for row in rows]
    return list(counted)


def _which(rows: Sequence[Row], key: Callable[[str], bool]) -> tuple[list[Row], list[int]]:
    """Return the rows with a key that passes the test, and the number of updates at each."""
    chosen = [(row, x) for row, x in zip(rows, _updates(rows), strict=True) if any(map(key, row))]
    return [row for row, _ in chosen], [x for _, x in chosen]


def _repeat(folder: Path, config: TrainConfig) -> str:
    """Return the command that repeats the run, the config's differences from the defaults, and library versions."""
    changed = "\n".join(f"{key}: {value}" for key, value in diff_from_defaults(config).items() if key != "name")
    versions = ", ".join(f"{name} {number}" for name in LIBRARIES if (number := _version(name)))
    return (
        f"<pre>wamtune train {_text(str(folder / 'config.yaml'))}</pre><p>Differs from the defaults in</p>"
        f"<pre>{_text(changed) or 'nothing'}</pre><p class=quiet>{_text(versions)}</p>"
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # an optional package, such as Isaac Lab
        return ""


def _table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    rows = "".join("<tr>" + "".join(f"<td>{_text(str(cell))}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><tr>{top}</tr>{rows}</table>"


def _points(values: Sequence[float]) -> list[float]:
    return [100 * value for value in values]


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _text(value: str) -> str:
    return html.escape(value)
