r"""Compare two rounds of `wamtune train dream` with longer ones, or with those of another commit: time and gain.

    python benchmarks/one_round.py                                   # 2 tasks, 2 seeds, all ways in turns
    python benchmarks/one_round.py --tasks push --seeds 0 --ways long today
    python benchmarks/one_round.py --runs 0                          # only the table of the finished runs

    mkdir before && git archive 672ef66 | tar x -C before            # the code before its rounds were made shorter
    python benchmarks/one_round.py --before before --ways before today

A run is one way of computing on one task from one seed, in a process of its own with one thread. Its row is appended to
OUT/results.jsonl when it has ended, so the command can be stopped and called again. Processor time hardly depends on
what else the machine does; wall time needs idle cores. All runs are judged on the same episodes, which no gate used.
The code of another commit starts from the built-in checkpoint of that commit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RUN = "train dream threads=1 n_rounds=2 gate.n_episodes=48 gate.max_episodes=48 eval.n_episodes=400".split()
TODAY = ["budget_steps=null", "gate.n_dreams=0"]
WAYS = {
    "before": [],
    "long": [*TODAY, "matmul_precision=highest", "dream.later_refits=1"],
    "today": TODAY,
}
"""Name -> keys that differ from the preset; `before` is code that does not know those of today."""

PHASES = "before", "after"
"""Of the rows in a run's `eval.jsonl`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=["push", "hammer"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["long", "today"])
    parser.add_argument("--before", type=Path, help="folder with the code of another commit, for the way `before`")
    parser.add_argument("--words", nargs="*", default=[], help="more key=value for every run")
    parser.add_argument("--runs", type=int, default=1000, help="at most so many new ones")
    parser.add_argument("--out", type=Path, default=Path("runs/one_round"))
    options = parser.parse_args()
    if "before" in options.ways and options.before is None:
        parser.error("--ways before: expected --before FOLDER with the code of another commit")
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "results.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    # Ways take turns, so that all have the same machine at about the same time.
    wanted = [(task, seed, way) for seed in options.seeds for task in options.tasks for way in options.ways]
    known = {(row["task"], row["seed"], row["way"]) for row in done}
    for task, seed, way in [run for run in wanted if run not in known][: options.runs]:
        code = options.before if way == "before" else Path(__file__).parents[1]
        row = {"task": task, "seed": seed, "way": way}
        row |= measured(code.resolve(), task, seed, [*WAYS[way], *options.words], options.out)
        with file.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(row) + "\n")
        done.append(row)
        print(row, flush=True)
    print(table(done))


def measured(code: Path, task: str, seed: int, words: list[str], out: Path) -> dict[str, Any]:
    """Train once with the package in `code`; return processor and wall seconds, and success before and after."""
    name = f"one-round-{os.getpid()}-{time.time_ns()}"
    command = [sys.executable, "-m", "rl.cli", *RUN, f"env.tasks=[{task}]", f"seed={seed}", f"name={name}", *words]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (out / "log.txt").open("a", encoding="utf-8") as log:
        environment = os.environ | {"PYTHONPATH": str(code)}
        subprocess.run(command, check=True, stdout=log, stderr=log, cwd=out, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    (file,) = (out / "runs" / name).glob("*/eval.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {
        "processor": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "wall": round(time.perf_counter() - begun, 1),
        **{phase: statistics.mean(row["success"] for row in rows if row["phase"] == phase) for phase in PHASES},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the means of each way over the tasks and seeds that all of them have."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    runs = [{(row["task"], row["seed"]) for row in rows if row["way"] == way} for way in ways]
    common = set.intersection(*runs) if runs else set()
    lines = [f"{len(common)} runs of each way, means", f"{'way':>14} {'processor s':>12} {'wall s':>8} {'gain':>12}"]
    for way in ways:
        own = [row for row in rows if row["way"] == way and (row["task"], row["seed"]) in common]
        if own:
            processor, wall, gain = (
                statistics.mean(values)
                for values in (
                    [row["processor"] for row in own],
                    [row["wall"] for row in own],
                    [100 * (row["after"] - row["before"]) for row in own],
                )
            )
            lines.append(f"{way:>14} {processor:>12.0f} {wall:>8.0f} {gain:>+8.1f} pts")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
