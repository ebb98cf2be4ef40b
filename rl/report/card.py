"""The measurements of a checkpoint: the metrics in its `config.json`, and the model card (README.md)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from rl.rounds.evaluate import EpisodeResult, have_success
from rl.statistics import success_rate, wilson
from world_model.data.windows import Windows
from world_model.wam.metrics import inverse_metrics, prediction_metrics, read_out_metrics
from world_model.wam.model import WorldActionModel

READ_OUTS = (
    ("inverse_error", "squared error of recovered actions, in units of that of the mean action"),
    ("imitation_error", "squared error of the policy on held-out demonstrations, in units of that of the mean action"),
    ("success_precision", "precision of the success read-out (p >= 0.9)"),
    ("success_recall", "recall of the success read-out"),
    ("progress_error", "mean error of the progress read-out"),
)


def world_metrics(model: WorldActionModel, windows: Windows) -> dict[str, Any]:
    """Measure the world side on held-out windows: `prediction` by task, `inverse_error` and the read-outs."""
    # A model with images is measured on decoded images, see `image_metrics`.
    prediction = {"prediction": prediction_metrics(model, windows)} if "object_pos" in model.spec.slices else {}
    return {**prediction, **inverse_metrics(model, windows), **read_out_metrics(model, windows)}


def success_metrics(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Return `success` by task with its 95 % interval, and the mean over tasks; {} without results.

    An environment that does not say what a success is has none either.
    """
    if not have_success(results):
        return {}
    rows: dict[str, dict[str, float]] = {}
    for task in dict.fromkeys(r.task for r in results):
        of_task = [r for r in results if r.task == task]
        low, high = wilson(sum(r.success for r in of_task), len(of_task))
        rows[task] = {"rate": success_rate(of_task), "low": low, "high": high, "n": len(of_task)}
    mean = sum(row["rate"] for row in rows.values()) / len(rows)
    return {"success": {**rows, "mean": {"rate": mean, "n": len(results)}}}


def noise_metrics(results: dict[str, list[EpisodeResult]]) -> dict[str, Any]:
    """Return `success_with_noise` by task and standard deviation, {"push": {"0.001": 0.4}}, and the mean over tasks."""
    rows: dict[str, dict[str, float]] = {}
    for noise, of_noise in results.items():
        for task, row in success_metrics(of_noise).get("success", {}).items():
            rows.setdefault(task, {})[noise] = row["rate"]
    return {"success_with_noise": rows} if rows else {}


def finite(value: Any) -> Any:
    """Replace NaN and inf by None, since JSON has neither; a precision is NaN if success was never predicted."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def figures(metrics: dict[str, Any]) -> str:
    """Return the figures of `metrics` as Markdown, which is also readable on a terminal."""
    groups = [group for group in _GROUPS if metrics.get(group)]
    tasks = dict.fromkeys(_named(task) for group in groups for task in metrics[group])
    rows = [["task", *(column for group in groups for column in _GROUPS[group][0])]]
    rows.append(["---", *["---:"] * (len(rows[0]) - 1)])
    for task in sorted(tasks, key=lambda task: (task == "mean", task)):
        cells = [_shown(task)]
        for group in groups:
            columns, write = _GROUPS[group]
            of_task = {_named(name): row for name, row in metrics[group].items()}.get(task)
            cells += write(of_task) if of_task else [""] * len(columns)
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [*(_line(row, widths) for row in rows), ""] if groups else []
    lines += [f"- {text}: {metrics[name]:.3f}" for name, text in READ_OUTS if metrics.get(name) is not None]
    return "\n".join(lines)


def _named(task: str) -> str:
    return "mean" if task == "median" else task  # both belong in the last row


def model_card(name: str, stage: str, parent: str, tasks: Sequence[str], about: dict[str, Any]) -> str:
    """Return README.md of a checkpoint.

    `about` has `command`, `episodes`, `demonstrations` and `metrics`, `n_stored` if not all of these demonstrations are
    in the checkpoint, and `trust_command` if its trust heads were calibrated again later.
    """
    origin = f", grown from `{parent}`" if parent else ""
    counts = ", ".join(f"{n} {source}" for source, n in about["episodes"].items())
    demos = "".join(f"- demonstrations: {_counts(about['demonstrations'])}\n" for _ in [0] if about["demonstrations"])
    if "n_stored" in about:
        images = ", with an image a chunk" if "images" in about["metrics"] else ""
        demos += f"- of these, the first {about['n_stored']} of each task are stored{images}\n"
    trust = f"- trust heads calibrated again by `{about['trust_command']}`\n" if "trust_command" in about else ""
    place = "" if about.get("simulator", True) else "- there was no simulator: its success has not been measured\n"
    return f"""# {name}

World-action model of wamtune, stage `{stage}`{origin}.

- tasks: {", ".join(map(_shown, tasks))}
- episodes: {counts}
{demos}{place}- optimizer steps: {about["step"]:,}
- made by `{about["command"]}`
{trust}
## Measured

On episodes that were never trained on. {_PREDICTED["images" in about["metrics"]]}; `shuffle` is the error with
shuffled actions in units of that with the true ones (1 would mean that actions are ignored). `success` is in the
simulator, on unseen seeds; `with noise` is that of the same episodes with white noise of these standard deviations, in
units of the state, on every feature and step. `trust` is the rank correlation of expected with true error over dreams
of 4 chunks, on episodes outside its calibration, and `movement` that of the amount of movement dreamed; in the last row
both are medians. `error and success` is the rank correlation, with its 95 % interval, of success and error: of the
evaluated episodes, and of the first 4 chunks of their actions, dreamed. Where it is below zero, the better predicted
episodes are those that succeed.

{figures(about["metrics"])}
"""


_PREDICTED = {
    False: """`error` is that of the object's position after one chunk where it moves more than 1 cm,
in units of the error of repeating the last frame""",
    True: """`PSNR` is that of dreamed images in dB over the pixels that differ by more than 12 of
255 from the image that the dream began from, after one chunk and after 4; `repeat` is what that image itself gives
there, `codec` what the true image gives when it is encoded and decoded""",
}
"""Meaning of the columns of prediction, by whether the model has images."""


def _success_cells(row: dict[str, float]) -> list[str]:
    interval = f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %" if "low" in row else ""
    return [f"{100 * row['rate']:.0f} %", interval, f"{row['n']:.0f}"]


def _noise_cells(row: dict[str, float]) -> list[str]:
    """Return a single cell with all deviations, so that the number of columns does not depend on them."""
    return [", ".join(f"{noise}: {100 * rate:.0f} %" for noise, rate in row.items())]


def _prediction_cells(row: dict[str, float]) -> list[str]:
    return [_number(row["error_ratio"], ".2f"), _number(row["shuffle_ratio"], ".2f"), f"{row['n']:.0f}"]


def _image_cells(row: dict[str, float]) -> list[str]:
    names = "psnr", "repeat", "psnr_far", "repeat_far", "codec"
    return [*(_number(row[name], ".1f") for name in names), _number(row["shuffle_ratio"], ".2f")]


def _trust_cells(row: dict[str, float]) -> list[str]:
    return [_number(row["rho"], ".2f"), _number(row["movement"], ".2f")]


def _number(value: float | None, form: str) -> str:
    """Format a number; return "" if there was too little data to measure it."""
    return "" if value is None or not math.isfinite(value) else format(value, form)


def _correlation_cells(row: dict[str, float]) -> list[str]:
    """Return rho with its interval; an empty cell if all episodes ended the same way."""
    rho = _number(row["rho"], "+.2f")
    return [rho and f"{rho} [{row['low']:+.2f}, {row['high']:+.2f}]"]


_GROUPS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, float]], list[str]]]] = {
    "success": (("success", "95 % interval", "episodes"), _success_cells),
    "success_with_noise": (("with noise",), _noise_cells),
    "prediction": (("error", "shuffle", "windows"), _prediction_cells),
    "images": (("PSNR", "repeat", "PSNR 4", "repeat 4", "codec", "shuffle"), _image_cells),
    "trust": (("trust", "movement"), _trust_cells),
    "error_and_success": (("error and success",), _correlation_cells),
}
"""Groups of metrics by task -> (names of their columns, function that formats a row)."""


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{_shown(task)} {n}" for task, n in counts.items())


def _shown(task: str) -> str:
    """Return the name of a task for a table cell or a list; a sentence is quoted."""
    text = " ".join(task.split()).replace("|", "\\|")
    return text if re.fullmatch(r"[\w-]+", text) else f'"{text}"'


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    )
    return f"| {' | '.join([first, *rest])} |"
