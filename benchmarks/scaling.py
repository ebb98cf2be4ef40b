r"""Measure how the held-out error falls with weights, data and compute, and how fast training is in several processes.

    python benchmarks/scaling.py learn                  # all missing points: less than two core-hours
    python benchmarks/scaling.py learn --part 0/2       # every second of them; another call takes part 1/2
    python benchmarks/scaling.py time                   # on idle cores: 1 and 2 processes in turns, 4 minutes
    python benchmarks/scaling.py page                   # writes docs/scaling.md from all points
    python benchmarks/scaling.py learn --sizes 2 --episodes 4 8 --steps 20 --out runs/try    # a short try

A point is one pre-training; its row is appended to OUT/points.jsonl when it has ended, so `learn` can be stopped and
called again. `time` writes OUT/times.jsonl anew. Every model has the layers of xs, and `--sizes` divides its widths.

A held-out window is predicted in the mode `dream`, in one step from given actions. Its error is the mean squared error
of the predicted changes, in units of their usual size. The error of a model is the geometric mean over all windows. The
arithmetic mean is in the rows as well, but 1 % of the windows made up 64 % of it, so it says little about the others.
All models share the statistics of the largest data set, so that their units are the same.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scaling_page import write_page
from torch.utils.flop_counter import FlopCounterMode

from rl.envs.sim import SimEnv, make_spec
from rl.ppo.distributed import Distributed
from rl.stages.collect import collect_scripted
from world_model.data.episodes import Episode
from world_model.data.windows import Windows
from world_model.processes import ALONE, Share
from world_model.wam.config import ModelConfig
from world_model.wam.cost import RandomWindows
from world_model.wam.features import joined
from world_model.wam.losses import stage_losses
from world_model.wam.model import WorldActionModel
from world_model.wam.training import fit_statistics, train_stage
from world_model.wam.training_config import StageConfig

TASKS = "push", "drawer-open", "door-open", "pick-place"
SOURCES = {"expert": 0.5, "noisy": 0.5}
"""Share of the episodes of each source."""

HELDOUT, HELDOUT_SEED, HELDOUT_WINDOWS = 10, 8_000_000, 4096
"""Held-out episodes of each task and source, the seed of the first one, and the windows that are drawn of them."""

BATCH = 128
BATCHES = 64, 128, 256
"""Windows of a process, in steps that are timed."""

PROCESSES = 2
"""Processes of the group that is timed."""

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("learn", "time", "page"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 2, 1], help="divisors of the widths of xs")
    parser.add_argument("--episodes", type=int, nargs="+", default=[4, 16, 64], help="of each task")
    parser.add_argument("--steps", type=int, nargs="+", default=[400, 1200, 3600], help="of the optimizer")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--part", default="0/1", help="I/N: every N-th missing point, from number I on")
    parser.add_argument("--turns", type=int, default=5, help="how often `time` measures each step")
    parser.add_argument("--out", type=Path, default=Path("docs/scaling"))
    parser.add_argument("--page", type=Path, default=Path("docs/scaling.md"))
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)  # this is a process that is timed
    options = parser.parse_args()
    if options.work:
        time_in_group(options.sizes, options.turns)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    points, times = options.out / "points.jsonl", options.out / "times.jsonl"
    if options.what == "learn":
        learn(points, options)
    elif options.what == "time":
        times.write_text("".join(json.dumps(row) + "\n" for row in timed(options)), encoding="utf-8")
    else:
        write_page(options.page, read(points), read(times))


def grid(options: argparse.Namespace) -> list[Row]:
    """Return the points: sizes and amounts of data after the middle number of steps, then other numbers of steps.

    The others are on all data. So each of weights, data and compute varies where the others are not what limits.
    """
    steps, most = sorted(options.steps), max(options.episodes)
    middle = steps[len(steps) // 2]
    found = [
        {"size": size, "episodes": n, "steps": k, "seed": seed}
        for seed in options.seeds
        for size in options.sizes
        for n in options.episodes
        for k in steps
        if n == most or k == middle
    ]
    return sorted(found, key=lambda point: (point["seed"], point["steps"] / point["size"] ** 2))  # the short ones first


def learn(points: Path, options: argparse.Namespace) -> None:
    """Train all points of this call that are missing."""
    torch.set_num_threads(1)
    first, every = (int(number) for number in options.part.split("/"))
    done = [{name: row[name] for name in ("size", "episodes", "steps", "seed")} for row in read(points)]
    missing = [point for point in grid(options) if point not in done][first::every]
    if not missing:
        print("no point is missing")
        return
    episodes = collected(max(options.episodes))
    heldout = [e for s in SOURCES for e in collect_scripted(s, TASKS, HELDOUT, HELDOUT_SEED)]
    for i, point in enumerate(missing):
        begun = time.process_time()
        row = point | trained(point, episodes, heldout) | {"cpu_seconds": round(time.process_time() - begun, 1)}
        append(points, row)
        print(f"{i + 1} of {len(missing)}: {row}", flush=True)


def collected(n: int) -> dict[str, list[Episode]]:
    """Return `n` episodes of each task, by task, so that the first k of a task are those of a smaller data set."""
    found: dict[str, list[Episode]] = {task: [] for task in TASKS}
    for source, share in SOURCES.items():
        for episode in collect_scripted(source, TASKS, round(n * share)):
            found[episode.task].append(episode)
    for task, own in found.items():  # of both sources in turns
        half = len(own) // len(SOURCES)
        found[task] = [own[i // 2 + half * (i % 2)] for i in range(2 * half)]
    return found


def trained(point: Row, episodes: dict[str, list[Episode]], heldout: list[Episode]) -> Row:
    """Pre-train one model; return its weights, windows, FLOP and held-out error."""
    torch.manual_seed(point["seed"])
    model = new_model(point["size"])
    fit_statistics(model, model.windows([e for own in episodes.values() for e in own]), n=20_000)
    windows = model.windows([e for own in episodes.values() for e in own[: point["episodes"]]])
    stage = StageConfig(n_steps=point["steps"], batch_size=BATCH, warmup_steps=point["steps"] // 20 + 1)
    flop = flop_of_window(model, windows)
    train_stage("pretrain", model, windows, replace(stage, seed=point["seed"]))
    return {
        "weights": n_layer_weights(model),
        "windows": len(windows),
        "flop": flop * BATCH * point["steps"],
        **heldout_errors(model, model.windows(heldout)),
    }


def new_model(divisor: int) -> WorldActionModel:
    """Return a model with the layers of xs and its widths divided."""
    xs = ModelConfig()
    widths = {name: getattr(xs, name) // divisor for name in ("width", "world_width", "action_width")}
    return WorldActionModel(replace(xs, **widths), make_spec("metaworld", list(TASKS)))


def n_layer_weights(model: WorldActionModel) -> int:
    """Return the weights in the layers of the three transformers."""
    parts = model.encoder, model.world, model.action
    return sum(p.numel() for part in parts for p in part.stack.blocks.parameters())


def flop_of_window(model: WorldActionModel, windows: Windows) -> float:
    """Return the floating-point operations of a window in a step of pre-training, forward and backward."""
    batch, generator = windows.sample(BATCH, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(0)
    with FlopCounterMode(display=False) as counter:
        losses = stage_losses("pretrain", model, batch, StageConfig().atoms, generator)
        torch.stack([*losses.values()]).sum().backward()
    model.zero_grad()
    return counter.get_total_flops() / BATCH


@torch.no_grad()
def heldout_errors(model: WorldActionModel, windows: Windows) -> Row:
    """Return the geometric and the arithmetic mean of the errors of windows, which are the same for every model."""
    batch = windows.sample(HELDOUT_WINDOWS, torch.Generator().manual_seed(0))
    frames, actions = joined(batch.context), model.action_codec.encode(batch.actions)
    true = model.codec.encode_future(frames, joined(batch.future))
    # As in the mode `dream`: the actions are known, and nothing of the future is.
    known = actions.new_zeros(len(actions))
    context = model.encode(frames, batch.task)
    dreamed, _ = model.predict_future(context, torch.zeros_like(true), 1 - known, actions, known)
    errors = (dreamed - true).square().mean((1, 2))
    return {"error": float(errors.log().mean().exp()), "mean_error": float(errors.mean())}


def timed(options: argparse.Namespace) -> list[Row]:
    """Return the rows that a group of `PROCESSES` measures."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    words = [__file__, "time", "--work", f"--turns={options.turns}", "--sizes", *map(str, options.sizes)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def time_in_group(sizes: Sequence[int], n_turns: int) -> None:
    """Time steps, exchanges and the simulator; process 0 prints the rows."""
    torch.set_num_threads(1)
    with Distributed.join() as group, group.together():
        for size in sizes:
            time_steps(size, n_turns, group)
        time_simulator(n_turns, group)


def time_steps(size: int, n_turns: int, group: Distributed) -> None:
    """Time steps of one size with each batch, and the exchange of its gradients.

    Process 0 is timed alone while the others wait; then all side by side, which wait for the slowest one after each
    step but exchange no gradients; then all together. These take turns, so that all find the machine in the same state.
    """
    torch.manual_seed(0)
    model, n = new_model(size), group.world_size
    windows = RandomWindows(model)
    fit_statistics(model, windows, n=1000)
    row: Row = {"size": size, "weights": n_layer_weights(model), "flop": flop_of_window(model, windows)}
    row |= {"trained": sum(p.numel() for p in model.parameters())}
    waiting = Share(n, lambda parameters: group.any(False))
    for batch in BATCHES:
        alone: list[float] = []
        beside: list[float] = []
        together: list[float] = []
        for _ in range(n_turns):
            alone += group.by_first(lambda batch=batch: steps_of(model, windows, batch, ALONE))  # type: ignore[misc]
            beside += steps_of(model, windows, batch, waiting)
            together += steps_of(model, windows, batch, group.share)
        for kind, processes, seconds in (("step", 1, alone), ("beside", n, beside), ("step", n, together)):
            say({"kind": kind, "processes": processes, **row, "batch": batch, "seconds": statistics.median(seconds)})
    parameters = list(model.parameters())
    seconds = [clocked(lambda: group.average_gradients(parameters)) for _ in range(12 * n_turns)]
    say({"kind": "exchange", "processes": n, "bytes": 4 * row["trained"], "seconds": statistics.median(seconds)})


def time_simulator(n_turns: int, group: Distributed) -> None:
    """Time chunks of the simulator in one process, and in all at the same time."""
    sim = SimEnv("metaworld", 32, [TASKS[0]], seed=group.rank)
    sim.reset()

    def chunks() -> list[float]:
        return [clocked(lambda: sim.step_chunk(torch.rand(32, 8, 4) * 2 - 1)) for _ in range(6)][1:]

    ones: list[float] = []
    both: list[float] = []
    for _ in range(n_turns):
        ones += group.by_first(chunks)
        group.any(False)
        both += chunks()
    for n, seconds in ((1, ones), (group.world_size, both)):
        say({"kind": "simulator", "processes": n, "steps_per_s": 32 * 8 / statistics.median(seconds)})


def steps_of(model: WorldActionModel, windows: Windows, batch: int, share: Share) -> list[float]:
    """Return the times of steps with `batch` windows in each process."""
    times: list[float] = []
    stage = StageConfig(n_steps=8, batch_size=batch * share.n_processes, log_every=1)
    train_stage("pretrain", model, windows, stage, log=lambda *_: times.append(time.perf_counter()), share=share)
    return [after - before for before, after in itertools.pairwise(times[1:])]


def clocked(job: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    begun = time.perf_counter()
    job()
    return time.perf_counter() - begun


def say(row: Row) -> None:
    print(json.dumps(row), flush=True)


def append(path: Path, row: Row) -> None:
    """Append a row in one write, so that several calls may share the file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Row]:
    """Return the rows of a file; none if there is no such file."""
    lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
