"""Measure what the sentence does for a checkpoint that reads one: the same episodes, asked in other words or in none.

    python benchmarks/words.py CHECKPOINT [--tasks TASK ...] [--n-episodes 10] [--out FILE.json]

Success in the simulator, always of the task whose scene it is, with
- the instruction of the task;
- a wording that training did not have (where a task has two, the first);
- no sentence;
- a wrong sentence: that of another task in the same or a similar scene, or of the next task if there is none.

Prints a row for each task and the mean. Only in scenes in which several tasks are possible must the sentence decide;
where the scene alone gives the task away, the success without it is as high, which says nothing against the model.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from rl.envs.metaworld.instructions import SENTENCES
from rl.envs.sim import SimEnv
from rl.policies.wam import flow_policy
from rl.rounds.evaluate import evaluate_sim
from rl.statistics import success_rate, wilson
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model

SEED = 6_000_000
"""Seed of the first episode; no checkpoint was trained, selected or evaluated on these episodes."""

AMBIGUOUS = (("reach", "pick-place"), ("reach-wall", "pick-place-wall"))
"""Tasks whose first states overlap in every number (24 episodes of each): only the sentence says which one is meant.

Who brings the puck to the goal has the hand there as well, and so solves `reach` with the wrong sentence too. The other
way round the puck stays where it is. So the second task of each pair is the one that shows what the sentence does.
"""

SAME_SCENE = (
    ("push", "reach"),
    ("push-wall", "reach-wall"),
    ("coffee-button", "coffee-push", "coffee-pull"),
    ("door-open", "door-close"),
    ("door-lock", "door-unlock"),
    ("drawer-open", "drawer-close"),
    ("faucet-open", "faucet-close"),
    ("handle-press", "handle-pull"),
    ("handle-press-side", "handle-pull-side"),
    ("peg-insert-side", "peg-unplug-side"),
    ("plate-slide", "plate-slide-back"),
    ("plate-slide-side", "plate-slide-back-side"),
    ("assembly", "disassemble"),
    ("stick-push", "stick-pull"),
    ("sweep", "sweep-into"),
    ("window-open", "window-close"),
)
"""Tasks with the same objects. The first states differ, by the goal at least: a drawer to be closed begins open."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--tasks", nargs="*", help="those to measure; all that the checkpoint knows unless given")
    parser.add_argument("--n-episodes", type=int, default=10)
    parser.add_argument("--max-steps", type=int, default=150)
    parser.add_argument("--out", help="a .json file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.checkpoint)
    if not model.reads_sentences:
        parser.error(f"{options.checkpoint} knows its tasks by index and reads no sentence")
    tasks = options.tasks or model.spec.tasks
    rows: dict[str, dict[str, float]] = {}
    for task in tasks:
        rows[task] = row = measure(model, task, options.n_episodes, options.max_steps)
        if len(rows) == 1:
            print(" ".join(f"{name:>20}" for name in ("task", *row)))
        print(f"{task:>26}", *(f"{100 * rate:>18.0f} %" for rate in row.values()), flush=True)
    decided = {task: row for task, row in rows.items() if any(task == pair[1] for pair in AMBIGUOUS)}
    for what, of in (("all tasks", rows), ("tasks that only the sentence decides", decided)):
        for name in next(iter(of.values()), ()):
            n = options.n_episodes * len(of)
            mean = sum(row[name] for row in of.values()) / len(of)
            low, high = wilson(round(mean * n), n)
            print(f"{what}, {name}: {100 * mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {n} episodes")
    if options.out:
        Path(options.out).write_text(json.dumps({"options": vars(options), "success": rows}, indent=2) + "\n")


def measure(model: WorldActionModel, task: str, n_episodes: int, max_steps: int) -> dict[str, float]:
    """Return the success rate on the same episodes by the way in which the task is asked for."""
    spec = model.spec
    options = {"task_names": spec.tasks, "features": spec.features, "cameras": model.cameras, "max_steps": max_steps}
    env = SimEnv("metaworld", min(n_episodes, 32), [task], model.config.n_context_frames, **options)
    found = {}
    with closing(env):
        for name, text in ways(task).items():
            model.tell(replace(spec, instructions=spec.instructions | {task: text}))
            results = evaluate_sim(flow_policy(model, env), env, range(SEED, SEED + n_episodes))
            found[name] = success_rate(results)
    model.tell(spec)
    return found


def ways(task: str) -> dict[str, str]:
    """Return the sentences by the way in which a task is asked for."""
    mates = next((group for group in (*AMBIGUOUS, *SAME_SCENE) if task in group), tuple(SENTENCES))
    wrong = mates[(mates.index(task) + 1) % len(mates)]
    asked = SENTENCES[task]
    return {
        "instruction": asked.training[0],
        "held-out wording": asked.held_out[0],
        "no sentence": "",
        "wrong sentence": SENTENCES[wrong].training[0],
    }


if __name__ == "__main__":
    main()
