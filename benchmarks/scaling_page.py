"""Power laws of the held-out error, and what a step would cost on up to 1,000 GPUs: the page of `scaling.py`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from world_model.wam.config import SIZES

Row = dict[str, Any]

N_RESAMPLES = 2000

LINE = 140
"""Length of a line of text."""


@dataclass(frozen=True)
class Machine:
    """One kind of GPU in a cluster, from data sheets; `use` is an assumption."""

    name: str
    flop_per_s: float  # peak in bfloat16, dense
    use: float  # share of the peak that training reaches
    memory: float  # bytes
    bytes_per_s: float  # between two machines, for each GPU
    latency: float  # seconds of a message
    adam_bytes_per_s: float  # of its memory


H100 = Machine("H100 SXM", 989e12, 0.35, 80e9, 50e9, 10e-6, 3.35e12)
"""NVIDIA's data sheet: 989 TFLOP/s, 80 GB, 3.35 TB/s; a network card of 400 Gb/s for each GPU."""

BATCH, MOST = 128, 1000
"""Windows of a step in `scaling.py learn`, and the largest number of GPUs in the table."""

ADAM_BYTES = 28
"""Moved for each weight in an optimizer step: four numbers are read and three written."""


@dataclass(frozen=True)
class Law:
    """error = factor * x ** -exponent, with a bootstrap interval of 95 % of the exponent."""

    factor: float
    exponent: float
    low: float
    high: float


def fit_law(x: Sequence[float], error: Sequence[float], seed: int = 0) -> Law | None:
    """Fit a straight line to the logarithms; None if x has fewer than three values. Points are resampled."""
    log_x, log_error = np.log(x), np.log(error)
    if len(set(x)) < 3:
        return None
    slope, offset = np.polyfit(log_x, log_error, 1)
    rng = np.random.default_rng(seed)
    slopes: list[float] = []
    while len(slopes) < N_RESAMPLES:
        index = rng.integers(len(x), size=len(x))
        if len(set(log_x[index])) > 1:
            slopes.append(np.polyfit(log_x[index], log_error[index], 1)[0])
    low, high = np.quantile(slopes, [0.025, 0.975])
    return Law(float(np.exp(offset)), float(-slope), float(-high), float(-low))


@dataclass(frozen=True)
class CostModel:
    """Seconds of a step: `beside` times the compute, and the exchange.

    The compute is `overhead` + windows * (FLOP / `flop_per_s` + `window_s`) + weights * `weight_s`, where `window_s` is
    for what a window needs beside its matrix products. `beside` is 1 for a process alone. Several take longer: they
    share a machine, and each waits for the slowest.
    """

    overhead: float
    flop_per_s: float
    window_s: float
    weight_s: float
    latency: float
    bytes_per_s: float
    beside: float = 1.0

    def exchange(self, processes: int, n_bytes: float) -> float:
        """Return the seconds of a ring all-reduce: each process sends 2 (n - 1) / n of all bytes."""
        if processes == 1:
            return 0.0
        return self.latency + 2 * (processes - 1) / processes * n_bytes / self.bytes_per_s

    def step(self, row: Row) -> float:
        """Return the seconds of a step that `scaling.py time` has measured."""
        compute = row["batch"] * (row["flop"] / self.flop_per_s + self.window_s)
        compute += row["trained"] * self.weight_s
        slower = self.beside if row["processes"] > 1 else 1.0
        return (self.overhead + compute) * slower + self.exchange(row["processes"], 4 * row["trained"])


def fit_cost(times: Sequence[Row]) -> CostModel | None:
    """Fit each part to what was measured of it alone; None without such rows.

    Those are steps of one process, steps of several that wait for each other but exchange no gradients, and exchanges.
    """
    steps = [row for row in times if row["kind"] == "step" and row["processes"] == 1]
    beside = {(row["weights"], row["batch"]): row["seconds"] for row in times if row["kind"] == "beside"}
    slower = [beside[key] / row["seconds"] for row in steps if (key := (row["weights"], row["batch"])) in beside]
    exchanges = [row for row in times if row["kind"] == "exchange" and row["processes"] == 2]
    if len(steps) < 5 or len(exchanges) < 2 or not slower:
        return None
    overhead, per_flop, window_s, weight_s = _least_squares(
        [[1.0, row["batch"] * row["flop"], row["batch"], float(row["trained"])] for row in steps],
        [row["seconds"] for row in steps],
    )
    latency, per_byte = _least_squares(
        [[1.0, float(row["bytes"])] for row in exchanges], [row["seconds"] for row in exchanges]
    )
    return CostModel(
        overhead=overhead,
        flop_per_s=1 / max(per_flop, 1e-15),
        window_s=window_s,
        weight_s=weight_s,
        latency=latency,
        bytes_per_s=1 / max(per_byte, 1e-12),
        beside=float(np.median(slower)),
    )


def _least_squares(rows: list[list[float]], seconds: list[float]) -> list[float]:
    """Return weights that are not negative, with the least relative errors."""
    x, y = np.array(rows), np.array(seconds)
    scale = x.max(0)
    x = x / scale / y[:, None]
    kept, found = list(range(x.shape[1])), np.zeros(x.shape[1])
    while kept:  # leave out what would get a negative weight
        part = np.linalg.lstsq(x[:, kept], np.ones(len(y)), rcond=None)[0]
        if (part >= 0).all():
            found[kept] = part
            break
        kept.pop(int(part.argmin()))
    return [float(value) for value in found / scale]


def write_page(path: Path, points: Sequence[Row], times: Sequence[Row]) -> None:
    """Write the page from what was measured; parts without enough points say so."""
    sections = [_errors(points), _laws(points), _speed(times), _checked(times), _on_paper(points, times)]
    head = (
        "# Scaling\n\nHow the error of the world model falls with weights, data and compute, and how fast training is "
        "in several processes. Every figure comes from `python benchmarks/scaling.py learn`, `time` and `page`.\n"
    )
    lines = "\n".join([head, *sections]).split("\n")
    # Paragraphs are lines of text between empty lines; rows of tables and titles stay as they are.
    wrapped = [
        line if line.startswith(("|", "#")) else textwrap.fill(line, LINE, break_on_hyphens=False) for line in lines
    ]
    path.write_text("\n".join(wrapped), encoding="utf-8")
    print(f"wrote {path} from {len(points)} points and {len(times)} times")


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["--:" for _ in titles], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _errors(points: Sequence[Row]) -> str:
    text = (
        "## Held-out error\n\nMean squared error of dreamed changes in units of their usual size: the geometric mean "
        "of all windows, and the mean of the seeds. Pre-training on four tasks of Meta-World from states.\n\n"
    )
    groups: dict[tuple[int, int, int], list[Row]] = {}
    for row in sorted(points, key=lambda row: (row["weights"], row["windows"], row["steps"])):
        groups.setdefault((row["weights"], row["windows"], row["steps"]), []).append(row)
    rows = [
        [f"{n:,}", f"{d:,}", f"{k:,}", f"{of[0]['flop']:.2e}", f"{np.mean([r['error'] for r in of]):.4f}", str(len(of))]
        for (n, d, k), of in groups.items()
    ]
    return text + _table(["weights of layers", "windows", "steps", "FLOP", "error", "seeds"], rows)


def _laws(points: Sequence[Row]) -> str:
    text = (
        "## Power laws\n\nerror = factor · x^-exponent, fitted to the logarithms, with a 95 % interval from a "
        "bootstrap over the points. One of the three varies, the others are the largest there are. For compute only "
        "the points count that no cheaper point beats.\n\n"
    )
    rows = []
    for name, key, chosen in (
        ("weights", "weights", _largest(points, "windows", "steps")),
        ("windows", "windows", _largest(_middle_steps(points), "weights")),
        ("FLOP", "flop", _frontier(points)),
    ):
        law = fit_law([float(r[key]) for r in chosen], [r["error"] for r in chosen]) if chosen else None
        if law is None:
            rows.append([name, str(len(chosen)), "not enough points", "", ""])
        else:
            interval = f"{law.low:.3f} to {law.high:.3f}"
            rows.append([name, str(len(chosen)), f"{law.factor:.3g}", f"{law.exponent:.3f}", interval])
    return text + _table(["x", "points", "factor", "exponent", "95 %"], rows)


def _largest(points: Sequence[Row], *keys: str) -> list[Row]:
    return [r for r in points if all(r[key] == max(other[key] for other in points) for key in keys)]


def _middle_steps(points: Sequence[Row]) -> list[Row]:
    """Return the points of the number of steps that all amounts of data have."""
    steps = sorted({row["steps"] for row in points})
    return [row for row in points if row["steps"] == steps[len(steps) // 2]] if steps else []


def _frontier(points: Sequence[Row]) -> list[Row]:
    """Return the points that are better than all that took less compute."""
    found: list[Row] = []
    for row in sorted(points, key=lambda row: row["flop"]):
        if not found or row["error"] < found[-1]["error"]:
            found.append(row)
    return found


def _speed(times: Sequence[Row]) -> str:
    text = (
        "## Weak and strong scaling\n\nPre-training, one thread a process. Weak: two processes with a batch each, "
        "against one process with one batch. Strong: two processes with half a batch each, against one process with "
        "all of it. 100 % means that nothing is lost. `benchmarks/weak_scaling.py` has dream, update and simulator.\n\n"
    )
    seconds = {(r["weights"], r["processes"], r["batch"]): r["seconds"] for r in times if r["kind"] == "step"}
    rows = []
    for (weights, n, batch), alone in sorted(seconds.items()):
        if n == 1 and (weights, 2, batch) in seconds:
            half = seconds.get((weights, 2, batch // 2))
            strong = "" if half is None else f"{100 * alone / (2 * half):.0f} %"
            weak = f"{100 * alone / seconds[weights, 2, batch]:.0f} %"
            rows.append([f"{weights:,}", str(batch), f"{alone:.3f}", weak, strong])
    if not rows:
        return text + "Not measured yet.\n"
    simulators = "; ".join(
        f"{row['steps_per_s']:,.0f} steps/s in {'one' if row['processes'] == 1 else 'each of two'}"
        for row in times
        if row["kind"] == "simulator"
    )
    table = _table(["weights of layers", "windows a process", "1 process, s", "weak", "strong"], rows)
    return text + table + f"\nSimulator, 32 environments of push: {simulators}.\n"


def _checked(times: Sequence[Row]) -> str:
    text = (
        "## Cost model\n\nA step takes overhead + windows · (FLOP / speed + time beside the matrix products) + "
        "weights · time of the optimizer. Two processes take this times a factor, because they share a machine and "
        "wait for the slower one, and then the exchange: latency + 2 (n - 1) / n · bytes / bandwidth. Each part is "
        "fitted to what was measured of it alone: steps of one process; steps of two that wait for each other, but "
        "exchange no gradients; exchanges. So whole steps of two processes test whether the parts add up. They do not "
        "test the form of the compute: it was chosen among three on these same times.\n\n"
    )
    model = fit_cost(times)
    if model is None:
        return text + "Not measured yet.\n"
    rows = []
    worst = 0.0
    for row in (r for r in times if r["kind"] == "step"):
        error = model.step(row) / row["seconds"] - 1
        worst = max(worst, abs(error))
        rows.append([str(row["processes"]), f"{row['weights']:,}", str(row["batch"]), f"{row['seconds']:.3f}"])
        rows[-1] += [f"{model.step(row):.3f}", f"{100 * error:+.0f} %"]
    fitted = (
        f"Fitted: overhead {1e3 * model.overhead:.1f} ms, {model.flop_per_s / 1e9:.0f} GFLOP/s, "
        f"{1e6 * model.window_s:.0f} µs a window, {1e9 * model.weight_s:.2f} ns a weight, "
        f"latency {1e3 * model.latency:.2f} ms, {model.bytes_per_s / 1e9:.2f} GB/s, factor {model.beside:.2f}. "
        f"Largest deviation: {100 * worst:.0f} %.\n"
    )
    titles = ["processes", "weights of layers", "windows a process", "measured, s", "model, s", "deviation"]
    return text + _table(titles, rows) + "\n" + fitted


def _on_paper(points: Sequence[Row], times: Sequence[Row]) -> str:
    machine = H100
    text = (
        f"## On paper: {machine.name}\n\nNothing of this table was measured. It is the cost model with figures of the "
        f"data sheet: {machine.flop_per_s / 1e12:.0f} TFLOP/s of which training is assumed to use "
        f"{100 * machine.use:.0f} %, "
        f"{machine.bytes_per_s / 1e9:.0f} GB/s between GPUs, exchange and compute one after the other. Memory is that "
        "of weights, gradients and Adam, not shared. Windows of states are short, so a GPU must get many of them in a "
        "step before the exchange is less than a tenth of it. Models as small as xs will not reach that share of the "
        "peak.\n\n"
    )
    if not points:
        return text + "Not measured yet: the FLOP of a window come from `scaling.py learn`.\n"
    largest = max(points, key=lambda row: row["weights"])
    per_weight = largest["flop"] / (BATCH * largest["steps"] * largest["weights"])  # FLOP of a window for each weight
    model = CostModel(
        overhead=0.0,
        flop_per_s=machine.flop_per_s * machine.use,
        window_s=0.0,  # `use` is a share of all time
        weight_s=ADAM_BYTES / machine.adam_bytes_per_s,
        latency=machine.latency,
        bytes_per_s=machine.bytes_per_s,
    )
    rows = []
    for name, sizes in SIZES.items():
        n = _layer_weights(sizes)
        alone = {"flop": per_weight * n, "trained": n, "processes": 1}
        batch = _windows_for(0.9, model, {**alone, "processes": MOST})
        cells = [name, f"{n / 1e6:,.0f} M", f"{16 * n / 1e9:.1f} GB", f"{8 * n / 1e9:.2f} GB", f"{batch:,}"]
        for processes in (8, 64, MOST):
            step = model.step({**alone, "processes": processes, "batch": batch})
            cells.append(
                f"{processes * batch / step:,.0f} ({100 * model.step({**alone, 'batch': batch}) / step:.0f} %)"
            )
        rows.append(cells)
    titles = ["size", "weights", "memory", "exchanged", "windows a GPU", "windows/s on 8", "on 64", f"on {MOST:,}"]
    rates = [row["steps_per_s"] for row in times if row["kind"] == "simulator" and row["processes"] == 1]
    simulators = "Simulators exchange nothing."
    if rates:
        rate = sum(rates) / len(rates)
        simulators += f" A core gives {rate:,.0f} steps/s (measured), so {MOST:,} give {MOST * rate:,.0f}."
    return text + _table(titles, rows) + f"\n{simulators}\n"


def _windows_for(efficiency: float, model: CostModel, row: Row) -> int:
    """Return the least power of two of windows in each process with at least this efficiency."""
    batch = 1
    while model.step({**row, "batch": batch, "processes": 1}) < efficiency * model.step({**row, "batch": batch}):
        batch *= 2
    return batch


def _layer_weights(sizes: dict[str, int]) -> int:
    """Return the weights of attention and MLP of all layers; widths with their ratio of the MLP as in the network."""
    stacks = (sizes["width"], 4), (sizes["world_width"], 1), (sizes["action_width"], 4)
    return sizes["n_layers"] * sum(4 * width * sizes["width"] + 2 * ratio * width**2 for width, ratio in stacks)
