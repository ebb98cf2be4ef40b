"""Measure the value of pre-training on videos, for a model with images that is tuned on 5 demonstrations of new tasks.

    python benchmarks/watching.py                     # all missing runs, then the table
    python benchmarks/watching.py --seeds 0 --out runs/watching

Each run pre-trains a model, including its image codec, on episodes of six tasks. The variant "with" also trains on 200
videos of each of two more tasks, that is on images without actions, proprioception and success. Both variants are then
tuned on 5 demonstrations of these two tasks. A finished run is a row of OUT/results.jsonl, so the command can be
stopped and called again. It measures success on 100 episodes per task, and the PSNR of a dreamed chunk where something
moves, on held-out episodes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from seeing import CODEC, CONFIG, PRETRAIN, image_data, train

from rl.config import SimulatorConfig
from rl.envs.sim import SimEnv, make_spec
from rl.policies.wam import flow_policy
from rl.rounds.evaluate import evaluate_sim
from rl.stages.images import by_task, encoded_episodes, model_spec
from rl.stages.videos import watched
from rl.statistics import success_rate
from world_model.wam.metrics import image_metrics
from world_model.wam.model import WorldActionModel
from world_model.wam.training import StageConfig, fit_statistics

KNOWN = ("button-press-topdown", "door-open", "handle-press", "plate-slide", "faucet-open", "push")
NEW = ("drawer-open", "window-open")
N_KNOWN = {"expert": 40, "noisy": 60, "random": 20}  # episodes per task, as `wamtune pretrain` collects
N_WATCHED = {"expert": 100, "noisy": 100}
N_DEMOS = 5
N_HELDOUT = 10
N_EVAL = 100
FIRST_SEED = {"known": 0, "watched": 400_000, "demos": 450_000, "heldout": 500_000, "eval": 700_000}

TUNE = StageConfig(n_steps=1500, batch_size=128, learning_rate=1e-3, atoms=(0.15, 0.7, 0.0, 0.15, 0.0))

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/watching"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.jsonl"
    rows = read(results)
    for seed in args.seeds:
        for watches in (False, True):
            if any((row["seed"], row["watches"]) == (seed, watches) for row in rows):
                continue
            rows.append({"seed": seed, "watches": watches, **run(args.out, seed, watches)})
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(rows[-1], flush=True)
    text = table(rows)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


def run(out: Path, seed: int, watches: bool) -> Row:
    """Pre-train, tune and measure one model; return its success and PSNR in each new task."""
    seen = image_data(out / "known", KNOWN, N_KNOWN, FIRST_SEED["known"])
    videos = []
    if watches:
        episodes, images = image_data(out / "watched", NEW, N_WATCHED, FIRST_SEED["watched"])
        videos = [(e.task, its[:: CONFIG.chunk_size]) for e, its in zip(episodes, images, strict=True)]
    torch.manual_seed(seed)
    model = WorldActionModel(CONFIG, model_spec(make_spec("metaworld", KNOWN + NEW), CONFIG))
    assert model.image_codec is not None
    shown = by_task(*seen, videos)
    model.image_codec.fit(shown)
    train(model, "codec", shown, replace(CODEC, seed=seed))
    windows = model.windows(encoded_episodes(model, SimulatorConfig(), *seen) + watched(model, videos))
    fit_statistics(model, windows)
    train(model, "pretrain", windows, replace(PRETRAIN, seed=seed))
    heldout = image_data(out / "heldout", NEW, {"expert": N_HELDOUT}, FIRST_SEED["heldout"])
    found = image_metrics(model, encoded_episodes(model, SimulatorConfig(), *heldout), heldout[1])
    demos = image_data(out / "demos", NEW, {"expert": N_DEMOS}, FIRST_SEED["demos"])
    train(model, "tune", model.windows(encoded_episodes(model, SimulatorConfig(), *demos)), replace(TUNE, seed=seed))
    return {task: {"success": success(model, task), "psnr": found[task]["psnr"]} for task in NEW}


def success(model: WorldActionModel, task: str) -> float:
    """Return the success of the tuned policy."""
    reads = {"task_names": model.spec.tasks, "features": model.spec.features, "cameras": model.cameras}
    with contextlib.closing(SimEnv("metaworld", 25, [task], **reads)) as sim:
        seeds = range(FIRST_SEED["eval"], FIRST_SEED["eval"] + N_EVAL)
        return success_rate(evaluate_sim(flow_policy(model, sim), sim, seeds))


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table: each measure without and with videos, and the difference with its 95 % interval."""
    lines = [
        "| task | measure | without | with | difference | 95 % interval |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    pairs = [
        (without, watching)
        for without in rows
        for watching in rows
        if not without["watches"] and watching["watches"] and without["seed"] == watching["seed"]
    ]
    for task in NEW:
        for measure, factor, unit in (("success", 100, "%"), ("psnr", 1, "dB")):
            values = factor * np.array([[row[task][measure] for row in pair] for pair in pairs]).reshape(-1, 2)
            if len(values):
                lines.append(f"| {task} | {measure}, {unit} | " + " | ".join(compared(values)) + " |")
    return "\n".join(lines) + "\n"


def compared(values: np.ndarray) -> list[str]:
    """Return the means of two columns (n, 2), their difference, and its interval by Student's t."""
    from scipy.stats import t

    difference = values[:, 1] - values[:, 0]
    mean, n = difference.mean(), len(difference)
    cells = [f"{column.mean():.1f}" for column in values.T] + [f"{mean:+.1f}"]
    if n < 2:
        return [*cells, "one seed"]
    half = t.ppf(0.975, n - 1) * difference.std(ddof=1) / math.sqrt(n)
    return [*cells, f"[{mean - half:+.1f}, {mean + half:+.1f}], {n} seeds"]


def read(results: Path) -> list[Row]:
    """Return the rows of all finished runs."""
    return [json.loads(text) for text in results.read_text("utf-8").splitlines()] if results.is_file() else []


if __name__ == "__main__":
    main()
