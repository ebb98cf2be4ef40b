"""`wamtune eval`: success of a checkpoint with intervals, in the simulator and in its dream from the same starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rich.table import Table

from rewards.errors import UserError
from rl.build import make_sim, tasks_of
from rl.cli import keys_of
from rl.compose import compose
from rl.config import DreamConfig, EnvConfig, EvalConfig, TrainConfig
from rl.deploy.export import load_gaussian
from rl.evaluate import EpisodeResult, describe, evaluate_dream, evaluate_sim, first_states, paired_gain
from rl.policy import FlowPolicy
from rl.verbs.progress import Progress, show
from world_model.checkpoint import find_checkpoint, load_checkpoint
from world_model.dream_env import DreamEnv
from world_model.model import WorldActionModel
from world_model.store import load_model

Results = dict[str, list[EpisodeResult]]

GAUSSIAN = "n_episodes", "seed", "n_envs", "n_workers"
"""Keys that apply to a Gaussian policy, which is evaluated as it was trained in all else."""


@dataclass(frozen=True)
class Options:
    """The keys of `wamtune eval`."""

    tasks: tuple[str, ...] = ()  # empty: all the checkpoint knows
    n_episodes: int = EvalConfig().n_episodes  # of each task
    seed: int = EvalConfig().seed  # of the first episode
    place: Literal["sim", "dream", "both"] = "sim"
    n_denoising_steps: int = 2  # of the policy
    n_action_steps: int = 0  # executed of a chunk; 0: all of it
    id: str = "metaworld"  # or a gymnasium id
    max_steps: int = EnvConfig().max_steps
    n_envs: int = EnvConfig().n_envs
    n_workers: int = 0

    def check(self) -> None:
        """Refuse counts that mean nothing."""
        for name in ("n_episodes", "n_denoising_steps", "max_steps", "n_envs"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("seed", "n_action_steps", "n_workers"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: expected at least 0")


HELP = f"""wamtune eval CHECKPOINT | RUN_FOLDER [key=value ...]

Print the success of a checkpoint on each task and over all, with 95 % intervals: in the simulator, in its own dream
begun from the first states of the very same episodes, and the gap between the two. The same command prints the same
figures. A run of policy=gaussian is evaluated where it was trained; of the keys it takes {", ".join(GAUSSIAN)}.

Keys:
{keys_of(Options)}

Examples:
  wamtune eval metaworld-tuned tasks=[push,door-open] n_episodes=100
  wamtune eval runs/demo/20250101-120000-s0 place=both
"""


def run(words: list[str]) -> None:
    """Evaluate and print the table."""
    if not words or "=" in words[0]:
        raise UserError("eval needs a checkpoint or a run folder: wamtune eval metaworld-tuned; see `wamtune ls`")
    options = compose(None, words[1:], Options)
    if load_checkpoint(words[0])[0].get("policy") == "gaussian":
        _evaluate_gaussian(words, options)
        return
    model = load_model(words[0])
    sim: Results = {}
    dream: Results = {}
    tasks = tasks_of(_config(options), model) or (options.id,)
    with Progress(f"eval {words[0]}") as progress:
        for i, task in enumerate(tasks):
            progress.update(i, len(tasks), task=task)
            sim[task], dream[task] = evaluate_task(model, options, task)
    show(table(sim, dream))


def evaluate_task(
    model: WorldActionModel, options: Options, task: str
) -> tuple[list[EpisodeResult], list[EpisodeResult]]:
    """Evaluate one task in the places of `options`; returns the episodes of simulator and dream, in the same order."""
    seeds = range(options.seed, options.seed + options.n_episodes)
    tasks = (task,) if options.id == "metaworld" else ()
    env = make_sim(_config(options), model, tasks, min(options.n_envs, options.n_episodes), rewards=False)
    try:
        policy = FlowPolicy(model, env, options.n_denoising_steps, n_action_steps=options.n_action_steps or None)
        sim = [] if options.place == "dream" else evaluate_sim(policy, env, seeds)
        if options.place == "sim":
            return sim, []
        dream = DreamEnv(
            model,
            options.n_episodes,
            first_states(env, seeds),
            horizon=-(-options.max_steps // policy.n_action_steps),
            n_denoising_steps=DreamConfig().n_denoising_steps,
            max_steps=options.max_steps,
            in_order=True,
            seed=options.seed,
        )
        return sim, evaluate_dream(policy, dream)
    finally:
        env.close()


def _evaluate_gaussian(words: list[str], options: Options) -> None:
    """Evaluate a policy that `wamtune train policy=gaussian` made, where it was trained; it has no dream."""
    if wrong := [key for word in words[1:] if (key := word.partition("=")[0]) not in GAUSSIAN]:
        raise UserError(f"{wrong[0]}: a Gaussian policy is evaluated where it was trained; only {', '.join(GAUSSIAN)}")
    run = find_checkpoint(words[0]).resolve().parents[1]
    if not (run / "config.yaml").is_file():  # the config in a checkpoint is not read: it may name code
        raise UserError(
            f"{words[0]}: a Gaussian policy is evaluated by its run folder, which says where; name that one"
        )
    trained = compose(run, [], TrainConfig)
    config = replace(trained, env=replace(trained.env, n_workers=options.n_workers), rewards={})
    about, tensors = load_checkpoint(words[0])
    policy, n_envs = load_gaussian(words[0], about, tensors), min(options.n_envs, options.n_episodes)
    found: Results = {}
    for task in config.env.tasks or (config.env.id,):
        env = make_sim(config, None, (task,) if config.env.tasks else (), n_envs, rewards=False)
        try:
            found[task] = evaluate_sim(
                policy.to(env.device), env, range(options.seed, options.seed + options.n_episodes)
            )
        finally:
            env.close()
    show(table(found, {task: [] for task in found}))
    for task, results in found.items():
        print(f"{task}: the simulator's reward is {sum(r.reward for r in results) / len(results):.4g} an episode")


def table(sim: Results, dream: Results) -> Table:
    """One row for each task and one over all; the gap is dream minus simulator, in points, on the same starts."""
    both = any(sim.values()) and any(dream.values())
    shown = Table("task")
    columns = [place for place, found in (("sim", sim), ("dream", dream)) if any(found.values())]
    for column in [*columns, *(["gap"] if both else [])]:
        shown.add_column(f"{column}, %", justify="right")
    rows = [(task, sim[task], dream[task]) for task in sim]
    if len(rows) > 1:
        rows.append(("all", [r for found in sim.values() for r in found], [r for d in dream.values() for r in d]))
    for task, real, dreamed in rows:
        if task == "all":
            shown.add_section()
        gap = [_gap(real, dreamed)] if both else []
        shown.add_row(task, *(describe(results) for results in (real, dreamed) if results), *gap)
    return shown


def _gap(sim: list[EpisodeResult], dream: list[EpisodeResult]) -> str:
    gap, low, high = (100 * value for value in paired_gain(sim, dream))
    return f"{gap:+.1f} [{low:+.1f}, {high:+.1f}]"


def _config(options: Options) -> TrainConfig:
    env = EnvConfig(
        id=options.id,
        tasks=options.tasks,
        n_envs=options.n_envs,
        n_workers=options.n_workers,
        max_steps=options.max_steps,
    )
    return TrainConfig(name="eval", env=env)
