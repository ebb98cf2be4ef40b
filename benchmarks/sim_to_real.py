"""Measure sim-to-real transfer to "the robot", a simulated arm that differs from the training simulator.

    python benchmarks/sim_to_real.py state                                  # all missing steps, then the table
    python benchmarks/sim_to_real.py images --tasks plate-slide --seeds 0 --steps nominal record refit

There are two walks. In `state` the policy reads positions, and the robot has other physics and sensors. In `images` it
reads a camera, which on the robot stands elsewhere, in another light, and is late. ROBOTS and TASKS were fixed before
any training against them.

For each task and seed: a policy is post-trained in the unchanged simulator (`nominal`), and 50 of its episodes are
recorded on the robot: alone (`record`), and with a scripted person who takes over when the policy errs (`record
corrected`). Then these methods try to regain the success lost on the robot:

    fit and dream  fit the simulator, with its cameras, to the recorded episodes, refit the dream on them, PPO in that
                   dream, gates in the fitted simulator
    corrected      the same with the episodes in which the person took over
    refit          without a simulator: refit the dream, PPO in it, gates in a separate dream of the recorded episodes
    filtered BC    imitate the recorded successes and the demonstrations
    fit            PPO in the fitted simulator
    randomised     PPO in the simulator with domain randomisation, without recorded episodes

Each policy is evaluated on held-out episodes, in the original simulator and on the robot, which runs in another process
and behind the same control loop as any robot. Each step writes a row to OUT/results.jsonl and a checkpoint to
OUT/checkpoints, so the command can be stopped and called again. `--words` changes all trainings, for a try: TRY below.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rl.compose import compose
from rl.config import TrainConfig
from rl.deploy.robot_config import RobotConfig
from rl.deploy.session import run_session
from rl.envs.cameras import CameraUse
from rl.envs.metaworld.camera_changes import UNCHANGED, changed
from rl.envs.metaworld.fit import fit
from rl.envs.sim import SimEnv
from rl.policies.wam import ModelPilot, flow_policy
from rl.rounds.evaluate import evaluate_sim
from rl.verbs.prepare import control_config, prepare
from world_model.checkpoint import find_checkpoint
from world_model.data.episodes import PERSON, EpisodeStore
from world_model.files import remove
from world_model.spec import STATE
from world_model.view import View
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model, save_model

TASKS = {"state": ("hammer", "box-close"), "images": ("button-press-topdown", "plate-slide")}

PHYSICS = {"gain": 0.8, "delay_s": 1 / 80, "mass": 1.5, "friction": 0.7, "damping": 1.2}
CAMERA = {"azimuth": 6.0, "elevation": 3.0, "distance": 1.06, "lookat_x": 0.02, "lookat_y": -0.015}
LIGHT = {"light": 0.85, "red": 1.12, "blue": 0.9}
LATENCY_S = 0.05

ROBOTS: dict[str, dict[str, Any]] = {
    "state": {**PHYSICS, "noise": 0.002, "jitter_s": 0.02},
    "images": {**PHYSICS, "noise": 0.0003},
}
"""Differences between the robot and the simulator, with the names of `rl.envs.metaworld.robot.SimRobot`."""

RANDOMISED: dict[str, tuple[float, float]] = {"gain": (0.7, 1.1), "delay": (0, 3), "noise": (0.0, 0.004)}
RANDOMISED |= {"mass": (0.5, 2.0), "friction": (0.5, 1.5), "damping": (0.7, 1.5)}
CAMERAS = {"azimuth": (-10.0, 10.0), "elevation": (-6.0, 6.0), "distance": (0.9, 1.1), "lookat_x": (-0.03, 0.03)}
CAMERAS |= {"lookat_y": (-0.03, 0.03), "light": (0.7, 1.3), "red": (0.8, 1.25), "blue": (0.8, 1.25)}
CAMERAS |= {"image_delay": (0, 6)}
"""Ranges of domain randomisation, wide enough to include the robot."""

N_RECORDED, EVAL_SEED, RECORD_SEED = 50, 6_000_000, 60_000_000

TRY = (
    "n_rounds=1 total_timesteps=2000 dream.n_updates=1 dream.n_envs=8 dream.refit_steps=5 ppo.imitation_steps=5 "
    "ppo.batch_size=64 ppo.n_steps=1 gate.n_episodes=2 gate.max_episodes=2 eval.n_episodes=2"
)
"""Values of `--words` with which each step takes a minute or so, beside `--n 4 --n-recorded 4`."""

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("walk", choices=list(TASKS), help="what the policy reads")
    parser.add_argument("--tasks", nargs="+", help="by default, those of TASKS")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--out", type=Path, help="by default, runs/sim_to_real/WALK")
    parser.add_argument("--n", type=int, default=200, help="episodes of an evaluation")
    parser.add_argument("--n-recorded", type=int, default=N_RECORDED, help="episodes recorded on the robot")
    parser.add_argument("--words", nargs="+", default=[], help="key=value for all trainings")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = args.out or Path("runs/sim_to_real") / args.walk
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    for seed in args.seeds:
        for task in args.tasks or TASKS[args.walk]:
            for step in args.steps:
                if any((r["task"], r["seed"], r["step"]) == (task, seed, step) for r in read(results)):
                    continue
                begun = time.monotonic()
                walk = Walk(args.walk, out, task, seed, args.n, args.n_recorded, tuple(args.words))
                found = STEPS[step](walk)
                row = {"task": task, "seed": seed, "step": step, **found, "minutes": (time.monotonic() - begun) / 60}
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{task}, seed {seed}, {step}: {found} in {row['minutes']:.1f} minutes", flush=True)
    text = table(read(results))
    (out / "table.md").write_text(text, encoding="utf-8")
    print(text)


@dataclass(frozen=True)
class Walk:
    """The steps of one task and one seed; checkpoints and episodes are below `out`."""

    reads: str  # state or images
    out: Path
    task: str
    seed: int
    n: int  # episodes of an evaluation
    n_recorded: int
    words: tuple[str, ...]  # overrides of all trainings

    @property
    def folder(self) -> Path:
        """Where its checkpoints and episodes are."""
        return self.out / "checkpoints" / f"{self.task}-s{self.seed}"

    @property
    def recorded(self) -> Path:
        """Episodes of the policy alone."""
        return self.folder / "recorded"

    @property
    def corrected(self) -> Path:
        """Episodes in which a person may take over."""
        return self.folder / "recorded-corrected"

    @property
    def dream(self) -> str:
        """The preset that trains in the dream."""
        return "pixels" if self.reads == "images" else "dream"

    def train(self, step: str, preset: str, *overrides: str, control: str = "") -> Row:
        """Post-train, save the champion as `step`, and evaluate it in the simulator and on the robot."""
        words = [f"env.tasks=[{self.task}]", f"seed={self.seed}", "eval.n_episodes=16", "eval.n_paired=0"]
        config = compose(preset, [*words, *overrides, *self.words], TrainConfig)
        post = prepare(control_config(config, control) if control else config)
        try:
            outcome = post.run()
        finally:
            post.close()
        assert isinstance(post.model, WorldActionModel)
        demonstrations = EpisodeStore(find_checkpoint(config.checkpoint)).files()  # for training it further
        save_model(self.folder / step, post.model, "rl", config.checkpoint, extra=demonstrations)
        return {"sim_steps": outcome.sim_steps + outcome.gate_steps, **self.evaluate(step)}

    def evaluate(self, step: str) -> Row:
        """Return the share of successes of a saved policy in the simulator and on the robot."""
        model = load_model(self.folder / step)
        sim = SimEnv(
            "metaworld",
            min(self.n, 50),
            [self.task],
            n_context_frames=model.config.n_context_frames,
            task_names=model.spec.tasks,
            features=model.spec.features,
            cameras=model.cameras,
        )
        results = evaluate_sim(flow_policy(model, sim, 2), sim, range(EVAL_SEED, EVAL_SEED + self.n))
        sim.close()
        judged = self.folder / "judged"
        remove(judged)
        alone, _ = self.run(model, judged, self.n, EVAL_SEED)
        return {"sim": sum(r.success for r in results) / self.n, "robot": alone}

    def run(self, model: WorldActionModel, folder: Path, n: int, seed: int, person: str = "") -> tuple[float, Row]:
        """Run `n` episodes of a policy on the robot and record them in `folder`.

        Returns:
            The share of episodes that the policy solved alone, and what else is known of them.
        """
        params = {"paced": False, "seed": seed, **ROBOTS[self.reads]}
        if self.reads == "images":
            size = model.spec.features[model.spec.images[0]].shape[0]
            params |= {"image_size": size, "cameras": {name: on_robot(view) for name, view in model.cameras.items()}}
        words = [
            f"params={json.dumps(params)}",
            f"task={self.task}",
            f"n_episodes={n}",
            f"seed={seed}",
            f"episodes={folder}",
        ]
        words += [f"person={person}", "person_params={after: 60, patience: 25}"] if person else []
        config = compose("robot-sim", words, RobotConfig)
        lived = run_session(ModelPilot(model, 2), config, say=lambda line: None)
        solved = [any(one.success) for one in lived]
        helped = [PERSON in one.control for one in lived]
        alone = sum(yes and not person for yes, person in zip(solved, helped, strict=True)) / n
        return alone, {"episodes": len(lived), "solved": sum(solved) / n, "with_a_person": sum(helped) / n}


def on_robot(view: View) -> Row:
    """Return where a camera stands on the robot, its light and its latency, as `SimRobot` takes them."""
    moved = changed(CameraUse(view, 1, 1), UNCHANGED | CAMERA).view
    return {**asdict(moved), "lookat": list(moved.lookat), **LIGHT, "latency_s": LATENCY_S}


def nominal(walk: Walk) -> Row:
    """Post-train in the unchanged simulator and in the dream; from images, in the dream."""
    if walk.reads == "images":
        return walk.train("nominal", "pixels")
    gates = "gate.n_episodes=48", "gate.max_episodes=48"
    return walk.train("nominal", "mix", "total_timesteps=30_000", "n_rounds=6", "dream.n_rounds=3", *gates)


def record(walk: Walk, person: str = "") -> Row:
    """Run and record the policy on the robot, in its own process, with the usual control loop and limits."""
    folder = walk.corrected if person else walk.recorded
    remove(folder)  # episodes of an interrupted call
    model = load_model(walk.folder / "nominal")
    alone, others = walk.run(model, folder, walk.n_recorded, RECORD_SEED + 1000 * walk.seed, person)
    return {"alone": alone, **others}


def record_corrected(walk: Walk) -> Row:
    """Run and record the same scenes with a scripted person, who takes over when the policy errs."""
    return record(walk, person="expert")


def fit_and_dream(walk: Walk, folder: Path | None = None, step: str = "fit and dream") -> Row:
    """Run PPO in a dream refitted on the recorded episodes, with gates in a simulator fitted to them."""
    folder = folder or walk.recorded
    found, words = fitted_words(walk, folder)
    words += [f"episodes={folder}", "n_rounds=2", "gate.n_episodes=48", "gate.max_episodes=48"]
    return {"fit": found, **walk.train(step, walk.dream, *words)}


def corrected(walk: Walk) -> Row:
    """Do the same with the episodes in which the person took over."""
    return fit_and_dream(walk, walk.corrected, "corrected")


def fitted_words(walk: Walk, folder: Path) -> tuple[Row, list[str]]:
    """Fit the simulator to the recorded episodes; return the fit and the overrides of a run with it."""
    model, store = load_model(walk.folder / "nominal"), EpisodeStore(folder)
    slices = store.spec.features[STATE].slices
    found = fit(walk.task, store.load()[:16], slices=slices, views=model.cameras)
    words = [f"env.options.events.{name}={json.dumps(event)}" for name, event in found.events(spread=0.1).items()]
    values: Row = {name: round(value, 4) for name, value in found.values.items()}
    for camera, of in found.cameras.items():
        quantities = {name: round(value, 4) for name, value in of.values.items()}
        values[camera] = {**quantities, "pixels_before": round(of.before, 2), "pixels_after": round(of.after, 2)}
    return values, [f"checkpoint={walk.folder / 'nominal'}", *words]


def recorded_words(walk: Walk) -> list[str]:
    """Return the overrides of a run that uses only the recorded episodes."""
    words = [f"checkpoint={walk.folder / 'nominal'}", f"episodes={walk.recorded}", "env.simulator=recorded"]
    words += [f"env.obs_noise={ROBOTS[walk.reads]['noise']}", "gate.n_episodes=128", "budget_steps=null"]
    words += ["dream.n_episodes=0"]  # nothing new can be recorded
    return [*words, "n_rounds=2"]


def refit(walk: Walk) -> Row:
    """Run PPO in a dream refitted on the recorded episodes."""
    return walk.train("refit", walk.dream, *recorded_words(walk))


def filtered_bc(walk: Walk) -> Row:
    """Imitate the recorded successes."""
    return walk.train("filtered_bc", walk.dream, *recorded_words(walk), control="filtered_bc")


def fitted(walk: Walk) -> Row:
    """Run PPO in a simulator fitted to the recorded episodes."""
    found, words = fitted_words(walk, walk.recorded)
    return {"fit": found, **walk.train("fit", "sim", *words, *SIM)}


def randomised(walk: Walk) -> Row:
    """Run PPO in the simulator with domain randomisation."""
    ranges = RANDOMISED | (CAMERAS if walk.reads == "images" else {})
    words = [f"env.options.events.{k}={{func: {k}, low: {low}, high: {high}}}" for k, (low, high) in ranges.items()]
    return walk.train("randomised", "sim", f"checkpoint={walk.folder / 'nominal'}", *words, *SIM)


SIM = ("total_timesteps=50_000", "n_rounds=5", "ppo.n_steps=19", "gate.n_episodes=48", "gate.max_episodes=48")
STEPS: dict[str, Callable[[Walk], Row]] = {
    "nominal": nominal,
    "record": record,
    "fit and dream": fit_and_dream,
    "record corrected": record_corrected,
    "corrected": corrected,
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
