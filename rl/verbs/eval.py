"""`wamtune eval`: measure the success of a checkpoint, in the simulator and in its dream from the same first states.

With both places, the dreamed twins of the real episodes, and more dreams from fresh starts, sharpen the estimate of the
true success: see `rl.sequential`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rewards.errors import UserError
from rl.build import device_of, find_simulator, is_policy, make_sim
from rl.compose import compose
from rl.envs.features import given_spec
from rl.envs.names import check_has_simulator, env_of_tasks, shown_name, with_task_sets
from rl.instructions import tell_of, with_instruction
from rl.policies.api import Denoiser
from rl.policies.wam import WamDenoiser
from rl.rounds.evaluate import (
    EpisodeResult,
    evaluate_dream,
    evaluate_sim,
    first_states,
    have_success,
    mean_reward,
    whole_episodes,
)
from rl.runs.progress import Progress, show
from rl.seeds import TWIN_EVAL
from rl.sequential import Floats
from rl.statistics import describe, describe_gain, paired_gain, success_rate, wilson
from rl.verbs.acting import Actor, load_dream, load_policy
from rl.verbs.measure import TwinSuccess, evaluated_tasks, in_percent, measure, run_config, successes, with_twins
from rl.verbs.options import EvalOptions
from rl.verbs.pages import Results, eval_page
from world_model.api import WorldModel
from world_model.files import write_atomically
from world_model.wam.model import WorldActionModel

GAUSSIAN = "n_episodes", "seed", "n_envs", "n_workers", "env.n_workers", "place", "world_model", "out"
"""Keys that apply to a Gaussian policy; everything else is as in its training."""


def run(words: list[str]) -> None:
    """Evaluate, print the tables, and write the figures or the page to the file `out` if it is set."""
    name, options = words[0], compose(None, words[1:], EvalOptions)
    if options.policy or is_policy(name):
        _check_has_dream(options)  # before a large policy is loaded
    actor = load_policy(name, options.policy, device_of(run_config(options)), options.n_action_steps)
    check_keys(actor, words[1:])
    with Progress(f"eval {name}") as progress:
        found = evaluate(
            actor,
            options,
            tick=lambda done, total, task: progress.update(done, total, task=task),
            say=partial(print, flush=True),
        )
    twins = estimates(found.sim, found.dream, found.others)
    tables = [table(found.sim, found.dream), *([twin_table(twins)] if twins else [])]
    for shown in tables:
        show(shown)
    if twins:
        print(
            "these intervals hold for any number of episodes, however it was chosen, so they are wider than the others"
        )
    for task, results in found.sim.items():
        if results and (actor.gaussian is not None or not have_success(results)):
            print(f"{task}: the simulator's reward is {mean_reward(results):.4g} an episode")
    if options.out.endswith(".html"):
        write_atomically(Path(options.out), eval_page(name, found.sim, found.dream, twins, tables).encode())
        print(f"page: {options.out}")
    elif options.out:
        text = json.dumps(
            {"checkpoint": name, "options": asdict(options), **figures(found.sim, found.dream, twins)}, indent=2
        )
        write_atomically(Path(options.out), f"{text}\n".encode())
        print(f"figures: {options.out}")


@dataclass(frozen=True)
class EvaluatedTasks:
    """Episodes of each task; see `Evaluated`."""

    sim: Results
    dream: Results
    others: dict[str, Floats]


def check_keys(actor: Actor, words: Sequence[str]) -> None:
    """Refuse `key=value` words that do not apply to a Gaussian policy.

    Raises:
        UserError: one of them does not.
    """
    if actor.gaussian is None:
        return
    if wrong := [key for word in words if (key := word.partition("=")[0]) not in GAUSSIAN]:
        raise UserError(f"{wrong[0]}: a Gaussian policy is evaluated where it was trained; only {', '.join(GAUSSIAN)}")


def evaluate(
    actor: Actor,
    options: EvalOptions,
    tick: Callable[[float, float, str], None] = lambda done, total, task: None,
    say: Callable[[str], None] = lambda line: None,
) -> EvaluatedTasks:
    """Evaluate a policy on each task of `options`, in the places that they name.

    Args:
        actor: of `load_policy`.
        options: sizes and settings; `policy` and `out` are not read.
        tick: called with (tasks done, tasks in all, task), where a task under way counts by its share.
        say: called with a line for each sentence or task that is new to the model, and before a pretraining.

    Raises:
        UserError: the policy does not fit the environment, or it has no dream.
    """
    options = replace(options, env=with_task_sets(options.env))
    if actor.model is None:
        _check_has_dream(options)
    if actor.gaussian is not None:
        return _evaluate_gaussian(actor, options, say)
    if actor.denoiser is not None:
        return _evaluate_brought(actor, options, tick, say)
    model = actor.model
    assert model is not None
    env = with_instruction(env_of_tasks(options.env, model.spec.tasks), options.instruction, model.spec, say)
    check_has_simulator(env, model.spec.tasks, actor.name)
    options = replace(options, env=env)
    tasks = evaluated_tasks(options, model)
    for line in tell_of(model, env, tasks, options.instruction, options.text_encoder):
        say(line)
    simulator = find_simulator(options.env)
    early = simulator.early_spec(id=options.env.id, tasks=tasks)
    if early is not None:  # check every task before the first one is run
        given = given_spec(early, model.spec.features, robot_slices=simulator.robot_slices)
        model.spec.check_fits(given, shown_name(options.env))
    if options.place == "sim" or not options.world_model:
        return _evaluate_tasks(model, options, tasks, tick)
    # in the dream of another world model
    dreams = load_dream(options.world_model, actor.name, options.seed, device_of(run_config(options)), say)
    if isinstance(dreams, WorldActionModel):
        tell_of(dreams, env, tasks, text_encoder=options.text_encoder)
    return _evaluate_tasks(dreams, options, tasks, tick, WamDenoiser(model, dreams=False))


@dataclass(frozen=True)
class Evaluated:
    """Episodes of one task; a list is empty if its place was left out. Simulator and dream are in the same order."""

    sim: list[EpisodeResult]
    dream: list[EpisodeResult]
    others: Floats  # (n, K), success of dreams from fresh starts; empty: there are none


def evaluate_task(
    model: WorldModel | None,
    options: EvalOptions,
    task: str,
    tick: Callable[[float], None],
    denoiser: Denoiser | None = None,
) -> Evaluated:
    """Evaluate one task in the places of `options`.

    The policy is that of `model`, or `denoiser`, and the dream that of `model`. `tick` is called with the share that is
    done.
    """
    n, k = options.n_episodes, options.n_dreams if options.place == "both" else 0
    seeds = list(range(options.seed, options.seed + n))
    real, dreamed = seeds if options.place != "dream" else [], seeds if options.place != "sim" else []
    fresh = list(range(TWIN_EVAL.start, TWIN_EVAL.start + n * k))
    found = measure(model, options, task, real, [*dreamed, *fresh], tick, denoiser)
    return Evaluated(found.real, found.dreamed[: len(dreamed)], successes(found.dreamed[len(dreamed) :]).reshape(n, k))


def estimates(sim: Results, dream: Results, others: dict[str, Floats]) -> dict[str, TwinSuccess]:
    """Return the estimates with twins by task and over all tasks; {} without twins or dreams from fresh starts."""
    tasks = [task for task in sim if have_success(sim[task]) and dream[task] and task in others and others[task].size]
    groups = {task: [task] for task in tasks} | ({"all": tasks} if len(tasks) > 1 else {})
    return {
        name: with_twins(
            [successes(sim[task]) for task in of],
            [successes(dream[task]) for task in of],
            [others[task] for task in of],
        )
        for name, of in groups.items()
    }


def table(sim: Results, dream: Results) -> Table:
    """Return a table with a row per task and one for all; the gap is dream minus simulator in percentage points."""
    both = any(map(have_success, sim.values())) and any(map(have_success, dream.values()))
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
        gap = [describe_gain(real, dreamed) if have_success(real) else ""] if both else []
        shown.add_row(Text(task), *(_described(results) for results in (real, dreamed) if results), *gap)
    return shown


def _described(results: Sequence[EpisodeResult]) -> str:
    return describe(results) if have_success(results) else f"no is_success in it ({len(results)} episodes)"


def twin_table(twins: dict[str, TwinSuccess]) -> Table:
    """Return a table with the true success estimated with twins, a row per task and one for all."""
    shown = Table("task", title="true success, with the dream as a control variate", title_justify="left")
    for column in ("real and dreamed, %", "real alone, %", "φ", "weight", "dreams", "worth real episodes"):
        shown.add_column(column, justify="right")
    for task, row in twins.items():
        if task == "all":
            shown.add_section()
        found = row.found
        shown.add_row(
            Text(task),
            in_percent(found.mean, found.low, found.high),
            in_percent(found.plain_mean, found.plain_low, found.plain_high),
            "" if row.phi is None else f"{row.phi:+.2f}",
            f"{found.twin_weight:.2f}",
            f"{row.n_dreams:,}",
            f"{max(found.n_saved, 0)}",
        )
    return shown


def figures(sim: Results, dream: Results, twins: dict[str, TwinSuccess] | None = None) -> dict[str, Any]:
    """Return the contents of the tables and each episode as plain numbers and text for JSON; shares from 0 to 1."""
    rows: dict[str, Any] = {}
    for task in (*sim, *(("all",) if len(sim) > 1 else ())):
        found = {
            place: [r for name, rs in results.items() for r in rs if task in (name, "all")]
            for place, results in (("sim", sim), ("dream", dream))
        }
        rows[task] = {place: _share(results) for place, results in found.items() if have_success(results)}
        if all(map(have_success, found.values())):
            rows[task]["gap"] = dict(zip(("mean", "low", "high"), paired_gain(*found.values()), strict=True))
        if twins and task in twins:
            row = twins[task]
            rows[task]["with_twins"] = asdict(row.found) | {
                "n_saved": row.found.n_saved,
                "phi": row.phi,
                "n_dreams": row.n_dreams,
            }
    episodes = [
        {"place": place, **result.to_row()}
        for place, results in (("sim", sim), ("dream", dream))
        for of in results.values()
        for result in of
    ]
    return {"success": rows, "episodes": episodes}


def _check_has_dream(options: EvalOptions) -> None:
    """Require `world_model` for the dream of a policy that has none of its own."""
    if options.place != "sim" and not options.world_model:
        raise UserError(
            f"place={options.place}: a policy has no dream of its own; name a checkpoint with world_model=..., such as "
            "metaworld-pixels-tuned, or a world model of your own (FILE.py:Class)"
        )


def _evaluate_gaussian(actor: Actor, options: EvalOptions, say: Callable[[str], None]) -> EvaluatedTasks:
    """Evaluate a policy of `wamtune train policy=gaussian` where it was trained, or in the dream of `world_model`."""
    trained, policy = actor.trained, actor.gaussian
    assert trained is not None and policy is not None
    config = replace(trained, env=replace(trained.env, n_workers=options.env.n_workers), rewards={})
    n_envs = min(options.n_envs, options.n_episodes)
    model = None
    if options.place != "sim":
        model = load_dream(options.world_model, actor.name, options.seed, device_of(config), say)
    found: Results = {}
    dreamed: Results = {}
    seeds = range(options.seed, options.seed + options.n_episodes)
    for task in config.env.tasks or ("",):
        env = make_sim(config, model, (task,) if task else (), n_envs, rewards=False)
        task = env.spec.tasks[0] if not task else task
        policy = policy.to(env.device)
        try:
            found[task] = [] if options.place == "dream" else evaluate_sim(policy, env, seeds)
            dreamed[task] = []
            if model is not None:
                dream = whole_episodes(model, env, policy, first_states(env, seeds))
                dreamed[task] = evaluate_dream(policy, dream)
        finally:
            env.close()
    return EvaluatedTasks(found, dreamed, {})


def _evaluate_brought(
    actor: Actor,
    options: EvalOptions,
    tick: Callable[[float, float, str], None],
    say: Callable[[str], None],
) -> EvaluatedTasks:
    """Evaluate a policy of LeRobot or of the user's own; its dream is that of `world_model`."""
    options = replace(options, env=with_instruction(options.env, options.instruction))
    config, model = run_config(options), None
    if options.place != "sim":
        model = load_dream(options.world_model, actor.name, options.seed, device_of(config), say)
        options = replace(options, env=env_of_tasks(options.env, model.spec.tasks))
        check_has_simulator(options.env, model.spec.tasks, "world_model")
    tasks = evaluated_tasks(options, model)
    if not any(tasks):
        raise UserError("env.tasks: the policy does not say which tasks it knows; name some, such as env.tasks=push")
    return _evaluate_tasks(model, options, tasks, tick, actor.denoiser)


def _evaluate_tasks(
    model: WorldModel | None,
    options: EvalOptions,
    tasks: tuple[str, ...],
    tick: Callable[[float, float, str], None],
    denoiser: Denoiser | None = None,
) -> EvaluatedTasks:
    """Evaluate the policy of `model`, or `denoiser`, task after task."""
    all_tasks = EvaluatedTasks({}, {}, {})
    for i, task in enumerate(tasks):

        def count(share: float, begun: int = i, task: str = task) -> None:
            tick(begun + share, len(tasks), task)

        count(0.0)
        found = evaluate_task(model, options, task, count, denoiser)
        all_tasks.sim[task], all_tasks.dream[task], all_tasks.others[task] = found.sim, found.dream, found.others
    tick(len(tasks), len(tasks), tasks[-1])
    return all_tasks


def _share(results: list[EpisodeResult]) -> dict[str, Any]:
    hits, n = sum(result.success for result in results), len(results)
    low, high = wilson(hits, n)
    return {"rate": success_rate(results), "low": low, "high": high, "n_episodes": n}
