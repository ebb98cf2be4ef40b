"""Measure sim-to-real transfer to "the robot", a simulated arm that differs from the training simulator.

    python benchmarks/sim_to_real.py                                  # all missing steps, then the table
    python benchmarks/sim_to_real.py --tasks hammer --seeds 0 --steps nominal record refit

For each task and seed: a policy is post-trained in the unchanged simulator (`nominal`), and 50 of its episodes are
recorded on the robot (`record`). Then five methods try to regain the success lost on the robot:

    fit and dream  fit the simulator to the recorded episodes, refit the dream on them, PPO in that dream, gates in the
                   fitted simulator
    refit          without a simulator: refit the dream, PPO in it, gates in a separate dream of the recorded episodes
    filtered BC    imitate the recorded successes and the demonstrations
    fit            PPO in the fitted simulator
    randomised     PPO in the simulator with domain randomisation, without recorded episodes

Each policy is evaluated on held-out episodes, in the original simulator and on the robot, which runs in another process
and behind the same control loop as any robot. Each step writes a row to OUT/results.jsonl and a checkpoint to
OUT/checkpoints, so the command can be stopped and called again. ROBOT was fixed before any training against it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rl.compose import compose
from rl.config import TrainConfig
from rl.deploy.robot_config import RobotConfig
from rl.deploy.session import run_session
from rl.envs.metaworld.fit import fit
from rl.envs.sim import SimEnv
from rl.policies.wam import ModelPilot, flow_policy
from rl.rounds.evaluate import evaluate_sim
from rl.verbs.prepare import control_config, prepare
from world_model.checkpoint import find_checkpoint
from world_model.data.episodes import EpisodeStore
from world_model.files import remove
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model, save_model

TASKS = ("hammer", "box-close")
ROBOT = {"gain": 0.8, "delay": 1.0, "noise": 0.0003, "mass": 1.5, "friction": 0.7, "damping": 1.2}
"""Differences between the robot and the simulator, with the names of `rl.envs.metaworld.events`."""

RANDOMISED = {"gain": (0.7, 1.1), "delay": (0, 3), "noise": (0.0, 0.001), "mass": (0.5, 2.0), "friction": (0.5, 1.5)}
RANDOMISED |= {"damping": (0.7, 1.5)}
"""Ranges of domain randomisation, wide enough to include the robot."""

N_RECORDED, EVAL_SEED, RECORD_SEED = 50, 6_000_000, 60_000_000
CONTROL_HZ = 80.0

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--out", type=Path, default=Path("runs/sim_to_real"))
    parser.add_argument("--n", type=int, default=200, help="episodes of an evaluation")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.jsonl"
    for seed in args.seeds:
        for task in args.tasks:
            for step in args.steps:
                if any((r["task"], r["seed"], r["step"]) == (task, seed, step) for r in read(results)):
                    continue
                begun = time.monotonic()
                found = STEPS[step](Walk(args.out, task, seed, args.n))
                row = {"task": task, "seed": seed, "step": step, **found, "minutes": (time.monotonic() - begun) / 60}
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{task}, seed {seed}, {step}: {found} in {row['minutes']:.1f} minutes", flush=True)
    text = table(read(results))
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


class Walk:
    """The steps of one task and one seed; checkpoints and episodes are below `out`."""

    def __init__(self, out: Path, task: str, seed: int, n: int) -> None:
        self.task, self.seed, self.n = task, seed, n
        self.folder = out / "checkpoints" / f"{task}-s{seed}"
        self.recorded = self.folder / "recorded"

    def train(self, step: str, preset: str, *overrides: str, control: str = "") -> Row:
        """Post-train, save the champion as `step`, and evaluate it in the simulator and on the robot."""
        words = [f"env.tasks=[{self.task}]", f"seed={self.seed}", "eval.n_episodes=16", *overrides]
        config = compose(preset, words, TrainConfig)
        post = prepare(control_config(config, control) if control else config)
        try:
            outcome = post.run()
        finally:
            post.close()
        assert post.model is not None
        demonstrations = EpisodeStore(find_checkpoint(config.checkpoint)).files()  # for training it further
        save_model(self.folder / step, post.model, "rl", config.checkpoint, extra=demonstrations)
        return {"sim_steps": outcome.sim_steps + outcome.gate_steps, **self.evaluate(step)}

    def evaluate(self, step: str) -> Row:
        """Return the share of successes of a saved policy in the simulator and on the robot."""
        model = load_model(self.folder / step)
        frames, tasks = model.config.n_context_frames, model.spec.tasks
        sim = SimEnv("metaworld", 50, [self.task], n_context_frames=frames, task_names=tasks)
        policy = flow_policy(model, sim, 2)
        results = evaluate_sim(policy, sim, range(EVAL_SEED, EVAL_SEED + self.n))
        sim.close()
        judged = self.folder / "judged"
        remove(judged)
        return {"sim": sum(r.success for r in results) / self.n, "robot": self.run(model, judged, self.n, EVAL_SEED)}

    def run(self, model: WorldActionModel, folder: Path, n: int, seed: int) -> float:
        """Run `n` episodes of a policy on the robot and record them in `folder`; return the share of successes."""
        differs = {**{k: v for k, v in ROBOT.items() if k != "delay"}, "delay_s": ROBOT["delay"] / CONTROL_HZ}
        params = {"paced": False, "seed": seed, **differs}
        words = [f"params={json.dumps(params)}", f"task={self.task}", f"n_episodes={n}", f"seed={seed}"]
        config = compose("robot-sim", [*words, f"episodes={folder}"], RobotConfig)
        lived = run_session(ModelPilot(model, 2), config, say=lambda line: None)
        return sum(any(one.success) for one in lived) / n


def nominal(walk: Walk) -> Row:
    """Post-train in the unchanged simulator and in the dream."""
    gates = "gate.n_episodes=48", "gate.max_episodes=48"
    return walk.train("nominal", "mix", "total_timesteps=30_000", "n_rounds=6", "dream.n_rounds=3", *gates)


def record(walk: Walk) -> Row:
    """Run and record the policy on the robot, in its own process, with the usual control loop and limits."""
    remove(walk.recorded)  # episodes of an interrupted call
    model = load_model(walk.folder / "nominal")
    return {"solved": walk.run(model, walk.recorded, N_RECORDED, RECORD_SEED + 1000 * walk.seed)}


def fit_and_dream(walk: Walk) -> Row:
    """Run PPO in a dream refitted on the recorded episodes, with gates in a simulator fitted to them."""
    found, words = fitted_words(walk)
    words += [f"episodes={walk.recorded}", "n_rounds=2", "gate.n_episodes=48", "gate.max_episodes=48"]
    return {"fit": found, **walk.train("fit and dream", "dream", *words)}


def fitted_words(walk: Walk) -> tuple[dict[str, float], list[str]]:
    """Fit the simulator to the recorded episodes; return the fit and the overrides of a run with it."""
    found = fit(walk.task, EpisodeStore(walk.recorded).load()[:16])
    words = [f"env.events.{name}={json.dumps(event)}" for name, event in found.events(spread=0.1).items()]
    values = {name: round(value, 4) for name, value in found.values.items()}
    return values, [f"checkpoint={walk.folder / 'nominal'}", *words]


def recorded_words(walk: Walk) -> list[str]:
    """Return the overrides of a run that uses only the recorded episodes."""
    words = [f"checkpoint={walk.folder / 'nominal'}", f"episodes={walk.recorded}", "env.id=recorded", "n_rounds=2"]
    return [*words, f"env.obs_noise={ROBOT['noise']}", "gate.n_episodes=128", "budget_steps=null"]


def refit(walk: Walk) -> Row:
    """Run PPO in a dream refitted on the recorded episodes."""
    return walk.train("refit", "dream", *recorded_words(walk))


def filtered_bc(walk: Walk) -> Row:
    """Imitate the recorded successes."""
    return walk.train("filtered_bc", "dream", *recorded_words(walk), control="filtered_bc")


def fitted(walk: Walk) -> Row:
    """Run PPO in a simulator fitted to the recorded episodes."""
    found, words = fitted_words(walk)
    return {"fit": found, **walk.train("fit", "sim", *words, *SIM)}


def randomised(walk: Walk) -> Row:
    """Run PPO in the simulator with domain randomisation."""
    words = [f"env.events.{k}={{func: {k}, low: {low}, high: {high}}}" for k, (low, high) in RANDOMISED.items()]
    return walk.train("randomised", "sim", f"checkpoint={walk.folder / 'nominal'}", *words, *SIM)


SIM = ("total_timesteps=50_000", "n_rounds=5", "ppo.n_steps=19", "gate.n_episodes=48", "gate.max_episodes=48")
STEPS: dict[str, Callable[[Walk], Row]] = {
    "nominal": nominal,
    "record": record,
    "fit and dream": fit_and_dream,
    "refit": refit,
    "filtered BC": filtered_bc,
    "fit": fitted,
    "randomised": randomised,
}


def read(results: Path) -> list[Row]:
    """Return the rows of all finished steps."""
    return [json.loads(line) for line in results.read_text("utf-8").splitlines()] if results.is_file() else []


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table with a line for each task and step, means over the seeds."""
    lines = ["| task | policy | simulator | robot | of the drop regained | seeds |", "|---|---|--:|--:|--:|--:|"]
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task and "robot" in row]
        start = {row["seed"]: row for row in mine if row["step"] == "nominal"}
        for step in dict.fromkeys(row["step"] for row in mine):
            those = [row for row in mine if row["step"] == step and row["seed"] in start]
            drop = sum(start[row["seed"]]["sim"] - start[row["seed"]]["robot"] for row in those)
            back = sum(row["robot"] - start[row["seed"]]["robot"] for row in those)
            share = "" if step == "nominal" or drop <= 0 else f"{100 * back / drop:.0f} %"
            sim, robot = (100 * np.mean([row[place] for row in those]) for place in ("sim", "robot"))
            lines.append(f"| {task} | {step} | {sim:.1f} % | {robot:.1f} % | {share} | {len(those)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
