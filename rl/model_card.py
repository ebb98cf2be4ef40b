"""What was measured of a checkpoint: the figures in its `config.json`, and the card that people read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rl.evaluate import EpisodeResult, success_rate, wilson
from world_model.metrics import inverse_metrics, prediction_metrics, read_out_metrics
from world_model.model import WorldActionModel
from world_model.windows import Windows

READ_OUTS = (
    ("inverse_error", "squared error of recovered actions, in units of that of the mean action"),
    ("success_precision", "precision of the success read-out (p >= 0.9)"),
    ("success_recall", "recall of the success read-out"),
    ("progress_error", "mean error of the progress read-out"),
)


def world_metrics(model: WorldActionModel, windows: Windows) -> dict[str, Any]:
    """Measure the world side on held-out windows: `prediction` by task, `inverse_error` and the read-outs."""
    prediction = prediction_metrics(model, windows)
    return {"prediction": prediction, **inverse_metrics(model, windows), **read_out_metrics(model, windows)}


def success_metrics(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Return `success` by task with its 95 % interval, and the mean over tasks; nothing without results."""
    if not results:
        return {}
    rows: dict[str, dict[str, float]] = {}
    for task in dict.fromkeys(r.task for r in results):
        of_task = [r for r in results if r.task == task]
        low, high = wilson(sum(r.success for r in of_task), len(of_task))
        rows[task] = {"rate": success_rate(of_task), "low": low, "high": high, "n": len(of_task)}
    mean = sum(row["rate"] for row in rows.values()) / len(rows)
    return {"success": {**rows, "mean": {"rate": mean, "n": len(results)}}}


def finite(value: Any) -> Any:
    """Replace by None what JSON cannot hold, such as the precision of a read-out that never said success."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def figures(metrics: dict[str, Any]) -> str:
    """Return the figures of `metrics` as Markdown, which is also readable on a terminal."""
    success, prediction = metrics.get("success", {}), metrics.get("prediction", {})
    columns = (["success", "95 % interval", "episodes"] if success else []) + ["error", "shuffle", "windows"]
    trust = metrics.get("trust", {})
    columns += ["trust", "movement"] if trust else []
    told = metrics.get("error_and_success", {})
    columns += ["error and success"] if told else []
    rows = [["task", *columns], ["---", *["---:"] * len(columns)]]
    for task in sorted({*success, *prediction}, key=lambda task: (task == "mean", task)):
        cells = _success_cells(success.get(task)) if success else []
        row = prediction.get(task)
        cells += [f"{row['error_ratio']:.2f}", f"{row['shuffle_ratio']:.2f}", f"{row['n']:.0f}"] if row else [""] * 3
        if trust:
            ranks = trust.get("median" if task == "mean" else task)
            cells += [f"{ranks['rho']:.2f}", f"{ranks['movement']:.2f}"] if ranks else [""] * 2
        if told:
            cells.append(_correlation(told.get(task)))
        rows.append([task, *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    lines += [""] + [f"- {text}: {metrics[name]:.3f}" for name, text in READ_OUTS if metrics.get(name) is not None]
    return "\n".join(lines)


def model_card(name: str, stage: str, parent: str, tasks: Sequence[str], about: dict[str, Any]) -> str:
    """Return README.md of a checkpoint; `about` has `command`, `episodes`, `demonstrations` and `metrics`."""
    origin = f", grown from `{parent}`" if parent else ""
    counts = ", ".join(f"{n} {source}" for source, n in about["episodes"].items())
    demos = "".join(f"- demonstrations: {_counts(about['demonstrations'])}\n" for _ in [0] if about["demonstrations"])
    return f"""# {name}

World-action model of wamtune, stage `{stage}`{origin}.

- tasks: {", ".join(tasks)}
- episodes: {counts}
{demos}- optimizer steps: {about["step"]:,}
- made by `{about["command"]}`

## Measured

On episodes that were never trained on. `error` is that of the object's position after one chunk where it moves more
than 1 cm, in units of the error of repeating the last frame; `shuffle` is the error with shuffled actions in units of
that with the true ones (1 would mean that actions are ignored). `success` is in the simulator, on unseen seeds. `trust`
is the rank correlation of expected with true error over dreams of 4 chunks, on episodes outside its calibration, and
`movement` that of the amount of movement dreamed; in the last row both are medians. `error and success` is the rank
correlation, with its 95 % interval, of success and error: of the evaluated episodes, and of the first 4 chunks of their
actions, dreamed. Where it is below zero, the better predicted episodes are those that succeed.

{figures(about["metrics"])}
"""


def _correlation(row: dict[str, float] | None) -> str:
    """Empty where all episodes ended the same way."""
    if row is None or row["rho"] is None or not math.isfinite(row["rho"]):
        return ""
    return f"{row['rho']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def _success_cells(row: dict[str, float] | None) -> list[str]:
    if row is None:
        return [""] * 3
    interval = f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %" if "low" in row else ""
    return [f"{100 * row['rate']:.0f} %", interval, f"{row['n']:.0f}"]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{task} {n}" for task, n in counts.items())


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    )
    return f"| {' | '.join([first, *rest])} |"
