"""The episodes of the two stages: collect the missing ones, in batches, so that an interruption loses one at most."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from rewards.errors import UserError
from rl.build import Where, build_simulator, device_of, find_simulator
from rl.config import SimulatorConfig
from rl.envs.names import shown_name, task_of_id
from rl.envs.simulator import Simulator
from rl.policies.chain import ChainPolicy
from rl.policies.wam import flow_policy
from rl.report.pairs import run_pairs, summarise
from rl.rounds.evaluate import EpisodeResult, evaluate_sim
from rl.runs.progress import Progress
from rl.seeds import HELDOUT, HELDOUT_POLICY, OF_SOURCE, POLICY, STAGE_EVAL
from rl.stages.collect import SOURCES, collect_from, collect_policy
from rl.stages.config import PretrainConfig, TuneConfig
from rl.stages.recorded import heldout_store, import_dataset
from world_model.data.episodes import Episode, EpisodeStore
from world_model.wam.model import WorldActionModel
from world_model.wam.text import load_encoder

BATCH = 10
"""Episodes per task that are collected between two writes, in a simulator that is not vectorised."""

MAX_ENVS = 32


class Recording(Where, Protocol):
    """The part of a config that says where episodes are recorded, and how long they are."""

    @property
    def max_steps(self) -> int | None:
        """Steps of an episode at most; None: as many as the simulator says."""


def simulates(config: Where) -> bool:
    """Whether episodes can be run in the simulator of a config; else there are only recorded ones."""
    return find_simulator(config.env).place == "sim"


def with_tasks(env: SimulatorConfig) -> SimulatorConfig:
    """Return `env`; if it names no task, with that of its id where each id is one task, as in gymnasium.

    Raises:
        UserError: it has no task then, and a simulator needs one.
    """
    if not env.tasks and env.id and find_simulator(env).id_is_task:
        env = replace(env, tasks=(task_of_id(env.id),))
    if not env.tasks:
        raise UserError(f"env.tasks=[]: {shown_name(env)} needs at least one task; add env.tasks=... to the command")
    return env


def checked_early(config: PretrainConfig) -> PretrainConfig:
    """Return the config with its task, see `with_tasks`, and refuse one that cannot be served, before collecting.

    Raises:
        UserError: a simulator without a task, a simulator together with a dataset, videos without a task, or there is
            no such encoder.
    """
    if config.model.text.encoder:
        load_encoder(config.model.text.encoder)
    if simulates(config):
        config = replace(config, env=with_tasks(config.env))
        if config.dataset:
            where = shown_name(config.env)
            raise UserError(f"dataset={config.dataset}: {where} collects its own episodes; set env.simulator=recorded")
    elif config.videos and not config.env.tasks:
        raise UserError(f"videos={config.videos}: which tasks do they show? add env.tasks=... to the command")
    return config


def collect(config: PretrainConfig, store: EpisodeStore) -> None:
    """Collect the episodes that `store` and its held-out part lack; without a simulator, import the dataset."""
    if not simulates(config):
        import_dataset(config, store)
        return
    for source in SOURCES:
        complete(config, store, source, getattr(config, f"n_{source}"), OF_SOURCE[source].start)
    collect_heldout(config, store)


def collect_heldout(config: PretrainConfig, store: EpisodeStore) -> None:
    """Collect the episodes that the held-out part of `store` lacks, in a simulator."""
    third, first = config.n_heldout // 3, HELDOUT.start
    heldout = {"expert": third, "noisy": config.n_heldout - third}
    if config.n_expert + config.n_noisy == 0:  # without an expert, hold out random motion
        heldout = {"random": config.n_heldout}
    for source, n in heldout.items():
        complete(config, heldout_store(store), source, n, first)
        first += n


def complete(config: Recording, store: EpisodeStore, source: str, n: int, first: int) -> None:
    """Collect those of the `n` episodes per task, seeds from `first` on, that `store` does not have.

    They are written in batches, so that an interruption loses one at most. `source` is one of `SOURCES`.
    """
    tasks, vectorised = config.env.tasks, find_simulator(config.env).vectorised
    have = {(e.task, e.seed) for e in store.load(tasks, [source])}
    batch = n if vectorised else BATCH  # a vectorised simulator runs all of them side by side
    with Progress(f"collect {source}") as progress:
        for begin in range(first, first + n, max(batch, 1)):
            seeds = range(begin, min(begin + batch, first + n))
            lacking = [task for task in tasks if any((task, seed) not in have for seed in seeds)]
            if lacking:
                n_envs = len(lacking) * (len(seeds) if vectorised else 1)
                with contextlib.closing(_env(config, lacking, tasks, n_envs)) as env:
                    episodes = collect_from(env, len(lacking), source, len(seeds), begin)
                    store.append([e for e in episodes if (e.task, e.seed) not in have], env.spec)
            progress.update(seeds.stop - first, n)


def demonstrations(config: TuneConfig, episodes: Sequence[Episode], tasks: Sequence[str]) -> list[Episode]:
    """Return the first demonstrations of each task: the number in `demos`, else up to `n_demos`.

    Raises:
        UserError: there are fewer than `demos` asks for, or none at all.
    """
    chosen: list[Episode] = []
    for task in tasks:
        of_task = [e for e in episodes if e.task == task]
        found = [e for e in of_task if config.demonstrations.include(e)]
        if len(found) < config.demos.get(task, 1):
            raise _too_few(config, task, of_task, len(found))
        chosen += sorted(found, key=lambda e: e.seed)[: config.demos.get(task, config.n_demos)]
    return chosen


def _too_few(config: TuneConfig, task: str, of_task: Sequence[Episode], n_found: int) -> UserError:
    rule = config.demonstrations
    kind = "successful episodes" if rule.success_only else "episodes"
    who = f" of source {' or '.join(rule.sources)}" if rule.sources else ""
    where = f"{rule.episodes or config.episodes} has {n_found} {kind}{who} of this task to learn from"
    if task in config.demos:
        return UserError(f"demos.{task}={config.demos[task]}, but {where}; ask for fewer or collect more")
    counts = Counter(e.source for e in of_task)
    there = ", ".join(f"{n} of source {source}" for source, n in counts.items()) or "none of any source"
    n_successful = sum(e.is_success for e in of_task)
    return UserError(
        f"task {task!r}: {where} (there are {there}, {n_successful} successful); set demonstrations.sources or "
        "demonstrations.success_only, name another folder, or leave the task out of `tasks`"
    )


def roll_out(config: TuneConfig, model: WorldActionModel, tasks: Sequence[str], store: EpisodeStore) -> None:
    """Collect the episodes of the policy that `store` and its held-out part lack; the first half of them explores.

    Without a simulator, do nothing.
    """
    if not simulates(config):
        return
    parts = [(store, config.n_policy, POLICY.start)]
    parts += [(heldout_store(store), config.n_policy_heldout, HELDOUT_POLICY.start)]
    with Progress("roll out") as progress:
        for k, (part, n, first) in enumerate(parts):
            # Each batch is written as a whole, so its first seed tells whether an earlier call collected it.
            have = {(e.task, e.seed) for e in part.load()}
            for i, task in enumerate(tasks):
                progress.update(k * len(tasks) + i, len(parts) * len(tasks), task=task)
                for explore, seed, count in ((True, first, n // 2), (False, first + n // 2, n - n // 2)):
                    if count and (task, seed) not in have:
                        episodes = _policy_episodes(config, model, task, count, explore, seed)
                        part.append(episodes, model.spec)
        progress.update(1, 1)


def evaluate(
    config: TuneConfig, model: WorldActionModel, tasks: Sequence[str]
) -> tuple[list[EpisodeResult], dict[str, dict[str, float]]]:
    """Run `config.n_eval` episodes of each task without exploration, and dream them as well.

    Returns the results in the simulator, and for each task the rank correlation of prediction error with success. Both
    are empty without a simulator.
    """
    results: list[EpisodeResult] = []
    correlations: dict[str, dict[str, float]] = {}
    if config.n_eval == 0 or not simulates(config):
        return results, correlations
    seeds = range(STAGE_EVAL.start, STAGE_EVAL.start + config.n_eval)
    with Progress("evaluate") as progress:
        for task in tasks:
            env, policy = _policy(config, model, task, config.n_eval, terminate_on_success=True)
            with contextlib.closing(env):
                of_task, pairs = run_pairs(policy, model, env, seeds)
            results += of_task
            correlations[task] = summarise(model, pairs)["error_and_success"]
            progress.update(len(results), len(tasks) * config.n_eval, task=task)
    return results, correlations


def evaluate_noisy(config: TuneConfig, model: WorldActionModel, tasks: Sequence[str]) -> dict[str, list[EpisodeResult]]:
    """Run the episodes of `evaluate` again, once with each of `config.eval_noise` added to the observations."""
    results: dict[str, list[EpisodeResult]] = {}
    if config.n_eval == 0 or not simulates(config):
        return results
    seeds = range(STAGE_EVAL.start, STAGE_EVAL.start + config.n_eval)
    n_done, n_in_all = 0, len(config.eval_noise) * len(tasks) * config.n_eval
    with Progress("evaluate with noise") as progress:
        for noise in config.eval_noise:
            results[f"{noise:g}"] = of_noise = []
            for task in tasks:
                env, policy = _policy(config, model, task, config.n_eval, terminate_on_success=True, obs_noise=noise)
                with contextlib.closing(env):
                    of_noise += evaluate_sim(policy, env, seeds)
                n_done += config.n_eval
                progress.update(n_done, n_in_all, task=task, noise=noise)
    return results


def _env(
    config: Recording,
    tasks: Sequence[str],
    known: Sequence[str],
    n_envs: int,
    model: WorldActionModel | None = None,
    terminate_on_success: bool = False,
    obs_noise: float = 0.0,
) -> Simulator:
    return build_simulator(
        config.env,
        tasks,
        n_envs,
        model=model,
        known_tasks=known,
        n_workers=config.env.n_workers,
        n_context_frames=2 if model is None else model.config.n_context_frames,
        max_steps=config.max_steps or find_simulator(config.env).max_steps,
        terminate_on_success=terminate_on_success,
        obs_noise=obs_noise,
        device=device_of(config),
    )


def _policy(
    config: TuneConfig,
    model: WorldActionModel,
    task: str,
    n_episodes: int,
    terminate_on_success: bool,
    obs_noise: float = 0.0,
) -> tuple[Simulator, ChainPolicy]:
    """Build a simulator of one task and the policy that acts in it."""
    n_envs = n_episodes if find_simulator(config.env).vectorised else min(n_episodes, MAX_ENVS)
    env = _env(config, [task], model.spec.tasks, n_envs, model, terminate_on_success, obs_noise)
    return env, flow_policy(model, env, config.n_denoising_steps, config.noise_std)


def _policy_episodes(
    config: TuneConfig, model: WorldActionModel, task: str, n: int, explore: bool, seed: int
) -> list[Episode]:
    env, policy = _policy(config, model, task, n, terminate_on_success=False)
    with contextlib.closing(env):
        return collect_policy(policy, env, n, explore, seed)[:n]
