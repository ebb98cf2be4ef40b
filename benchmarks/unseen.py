r"""Learn tasks that a checkpoint never saw from few real episodes: success after 0, 10, 50, 150 of them; print a table.

    python benchmarks/unseen.py runs/metaworld-ml45-tuned --seeds 0 1 --out docs/unseen     # missing runs, the table
    python benchmarks/unseen.py runs/metaworld-ml45-tuned --tasks box-close --episodes 0 10 --seeds 0
    python benchmarks/unseen.py runs/metaworld-ml45-tuned --runs 0                           # only the table

The tasks are the five test tasks of ML45. The policy gets the sentence of the task and no demonstration of it. Its
reward is Meta-World's success (`unseen_rewards.py`), with `--shaping W` also W times the metres by which the object
comes closer to its goal, and half of those by which the hand comes closer to the object. The methods:

    dream   k exploring episodes in up to three rounds, which act as on the known tasks until one succeeds; each time
            the successes are imitated, the world model is refitted on all episodes, and PPO trains in the dream
    imitate the same without the dream: exploring and imitation
    sim     PPO in the simulator on k episodes, in the same rounds; successes are imitated
    sac     from scratch: SAC of Stable-Baselines3, its defaults, a gradient step for each step of the simulator

k counts all real episodes: there is no gate. An episode is 152 steps long, 19 whole chunks, whether it succeeds or not,
so all methods execute k * 152 steps. For the first states of dreams the simulator is reset, but not stepped. Each row
is measured on fresh episodes without exploring; that of `dream` also says what the dream shows on the same episodes. A
row is appended to OUT/results.jsonl when its run has ended, so the command can be stopped and called again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import SAC
from torch import Tensor

from rl.build import make_rewards, make_sim
from rl.compose import compose
from rl.config import TrainConfig
from rl.envs.adapters import StepVecEnv, flatten_obs
from rl.envs.metaworld.task_sets import ML45_TEST
from rl.envs.sim import SimEnv
from rl.policies.api import policy_state
from rl.report.pairs import run_pairs, summarise
from rl.rounds.evaluate import evaluate_sim
from rl.rounds.loop import PostTraining
from rl.statistics import wilson
from rl.verbs.prepare import prepare
from world_model.env import Obs
from world_model.spec import Spec

Row = dict[str, Any]

EVAL_SEED = 8_000_000
"""Seed of the first evaluated episode; each seed of a run has 1,000 of its own."""

METHODS = ("dream", "imitate", "sim", "sac")

N_CHUNKS = 19
"""Chunks in an episode."""

N_SAC_ENVS, N_EVAL_ENVS = 10, 50
"""Environments in which SAC learns, and in which it is evaluated."""

KEY = ("checkpoint", "method", "task", "k", "seed", "shaping", "changes")
"""Fields that name a run."""


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    done = {name(row) for row in read(results)}
    missing = [row for row in planned(options) if name(row) not in done]
    for row in missing if options.runs is None else missing[: options.runs]:
        row |= run(row, options.n_eval)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{row['task']}, {row['method']}, {row['k']} episodes, seed {row['seed']}: {row['success']}", flush=True)
    if rows := read(results):
        (options.out / "table.md").write_text(text := table(rows), encoding="utf-8")
        print(text)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--tasks", nargs="+", default=ML45_TEST, choices=ML45_TEST)
    parser.add_argument("--episodes", nargs="+", type=int, default=[0, 10, 50, 150])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--shaping", type=float, default=0.0, help="weight of coming closer, per metre; 0: success alone"
    )
    parser.add_argument("--n-eval", type=int, default=100, help="episodes that each row is measured on")
    parser.add_argument("--set", nargs="*", default=[], help="further keys of wamtune train, such as dream.n_updates=5")
    parser.add_argument("--runs", type=int, help="most runs of this call; 0: only the table")
    parser.add_argument("--out", type=Path, default=Path("runs/unseen"))
    return parser.parse_args(words)


def planned(options: argparse.Namespace) -> list[Row]:
    """Return the runs to be done; with 0 episodes nothing is trained, so there is one for all methods and seeds."""
    common = {"checkpoint": options.checkpoint, "shaping": options.shaping, "changes": " ".join(options.set)}
    cases = [
        (k, method, seed)
        for k in sorted(options.episodes)
        for method in (options.methods if k else ["start"])
        for seed in (options.seeds if k else options.seeds[:1])
    ]
    return [
        common | {"method": method, "task": task, "k": k, "seed": seed}
        for k, method, seed in cases
        for task in options.tasks
    ]


def run(row: Row, n_eval: int) -> Row:
    """Do one run; return its success, its steps, and what its dream shows."""
    begun = time.monotonic()
    config = config_of(row, n_eval)
    if row["method"] == "sac":
        return learn_sac(config) | {"dream": {}, "minutes": (time.monotonic() - begun) / 60}
    post = prepare(config)
    try:
        outcome = post.run() if row["k"] else None
        results = post.evaluate() if outcome is None else outcome.after
        dream = {} if row["method"] in ("sim", "imitate") else dreamed(post, row["task"])
    finally:
        post.close()
    n_parameters = sum(weight.numel() for weight in policy_state(post.policy).values())
    return {
        "success": "".join("01"[result.success] for result in results),
        "sim_steps": 0 if outcome is None else outcome.sim_steps,
        "dream": dream,
        "trained_parameters": n_parameters,
        "minutes": (time.monotonic() - begun) / 60,
    }


def config_of(row: Row, n_eval: int) -> TrainConfig:
    """Return the config of a run."""
    k, task = row["k"], row["task"]
    n_rounds = max(1, min(3, k // 25))
    if k % n_rounds:
        raise SystemExit(f"--episodes {k}: expected a multiple of {n_rounds}, the number of rounds")
    per_round = k // n_rounds
    plugin = Path(__file__).with_name("unseen_rewards.py")
    words = [
        f"checkpoint={row['checkpoint']}",
        f"env.tasks=[{task}]",
        f"seed={row['seed']}",
        f"n_rounds={n_rounds}",
        "threads=1 gate.enabled=false env.terminate_on_success=false",
        f"env.max_steps={8 * N_CHUNKS} eval.n_episodes={n_eval} eval.seed={EVAL_SEED + 1000 * row['seed']}",
        "ppo.bc_coef=0 ppo.imitation_steps=0 rewards.success=null",
        f"rewards.reached={{func: '{plugin}:reached', weight: 1.0, params: {{task: {task}}}}}",
    ]
    if row["shaping"]:
        words.append(f"rewards.closer={{func: '{plugin}:closer', weight: {row['shaping']}, params: {{task: {task}}}}}")
    if row["method"] in ("sim", "sac"):
        words += [
            f"env.n_envs={per_round} total_timesteps={8 * N_CHUNKS * k} ppo.n_steps={N_CHUNKS} ppo.fresh_rollouts=true",
            # With so few rollouts, none of them is spent on the critic alone.
            f"ppo.critic_warmup_steps=0 ppo.batch_size={min(512, N_CHUNKS * per_round)}",
        ]
    else:
        # A success in the dream is what the read-out says, which never saw this task: it is not imitated.
        words.append(f"env.n_envs=16 dream.n_episodes={per_round} dream.success_bc_coef=0")
        words.append("dream.explore_as=known dream.imitation_steps=600")
        if row["method"] == "imitate":
            words.append("dream.n_updates=0 dream.refit_steps=0 ppo.critic_warmup_steps=0")
    split = [part for word in words for part in ([word] if "{" in word else word.split(" "))]
    preset = "sim" if row["method"] in ("sim", "sac") else "dream"
    return compose(preset, [*split, *row["changes"].split()], TrainConfig)


def learn_sac(config: TrainConfig) -> Row:
    """Train SAC on the steps and the reward of `config`; return its success and its steps."""
    sim, arena = (
        SimEnv("metaworld", n, config.env.tasks, 2, max_steps=config.env.max_steps, n_workers=1, seed=config.seed)
        for n in (N_SAC_ENVS, N_EVAL_ENVS)
    )
    sim.terminate_on_success, sim.rewards = False, make_rewards(config, sim.spec, sim.place, model=None)
    env = StepVecEnv(sim)
    try:
        sac = SAC("MlpPolicy", env, seed=config.seed, gradient_steps=-1, learning_starts=1000, device="cpu")
        sac.learn(config.total_timesteps)
        results = evaluate_sim(SacActor(sac, sim.spec), arena, config.eval.seeds)
    finally:
        arena.close()
        env.close()
    return {
        "success": "".join("01"[result.success] for result in results),
        "sim_steps": sac.num_timesteps,
        "trained_parameters": sum(weight.numel() for weight in sac.actor.parameters()),
    }


class SacActor:
    """A policy of SAC with the interface of `evaluate_sim`; it acts without exploring, one action at a time."""

    def __init__(self, sac: SAC, spec: Spec) -> None:
        self.sac, self.spec = sac, spec

    def encode(self, obs: Obs) -> Tensor:
        """Return flat observations, as in training. Shape: (n, D)."""
        return flatten_obs(obs, self.spec)

    def decide(self, encoded: Tensor, seed: Tensor, counter: Tensor) -> Tensor:
        """Return the most probable action. Shape: (n, 1, action_dim)."""
        return torch.from_numpy(self.sac.predict(encoded.numpy(), deterministic=True)[0]).unsqueeze(1)


def dreamed(post: PostTraining, task: str) -> Row:
    """Return what the dream shows on the first evaluated episodes, beside the simulator, and how exact it is."""
    assert post.model is not None
    sim = make_sim(post.config, post.model, [task], 16, rewards=False)
    try:
        pairs = run_pairs(post.policy, post.model, sim, post.config.eval.seeds[:48])[1]
    finally:
        sim.close()
    found = summarise(post.model, pairs)
    return {name: found[name] for name in ("n", "sim", "dream", "retold_agreement", "error_by_step")}


def name(row: Row) -> tuple[Any, ...]:
    return tuple(row[field] for field in KEY)


def read(path: Path) -> list[Row]:
    """Return the rows of the finished runs."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def table(rows: Sequence[Row]) -> str:
    """Return Markdown with a line for each method and number of episodes: success by task, and the mean over tasks."""
    tasks = [task for task in ML45_TEST if any(row["task"] == task for row in rows)]
    head = ["episodes", "method", *tasks, "mean [95 %]", "the dream says", "simulator steps"]
    lines = [head, ["--:", "---", *["--:"] * (len(head) - 2)]]
    groups = dict.fromkeys((row["checkpoint"], row["shaping"], row["changes"]) for row in rows)
    for checkpoint, shaping, changes in groups:
        own = [r for r in rows if (r["checkpoint"], r["shaping"], r["changes"]) == (checkpoint, shaping, changes)]
        for k, method in sorted({(row["k"], row["method"]) for row in own}):
            of = [row for row in own if (row["k"], row["method"]) == (k, method)]
            more = f", shaping {shaping:g}" if shaping else ""
            lines.append([str(k), method + more + (f" ({changes})" if changes else ""), *cells(of, tasks)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cells(rows: Sequence[Row], tasks: Sequence[str]) -> list[str]:
    """Return success by task, their mean, that of the dream and the mean steps of a run."""
    by_task = {task: "".join(row["success"] for row in rows if row["task"] == task) for task in tasks}
    rates = {task: of.count("1") / len(of) for task, of in by_task.items() if of}
    n = sum(map(len, by_task.values()))
    mean = sum(rates.values()) / len(rates)
    low, high = wilson(round(mean * n), n)
    dreams = [row["dream"]["dream"] for row in rows if row["dream"]]
    return [
        *(f"{100 * rates[task]:.0f}" if task in rates else "" for task in tasks),
        f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}] of {n}",
        f"{100 * sum(dreams) / len(dreams):.0f}" if dreams else "",
        f"{sum(row['sim_steps'] for row in rows) / len(rows):,.0f}",
    ]


if __name__ == "__main__":
    main()
