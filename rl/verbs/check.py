"""`wamtune check`: call every reward term on simulated, dreamed and recorded steps, before a run depends on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from rewards import RewardManager, Transition
from rewards.errors import UserError
from rewards.manager import RewardStep
from rewards.transitions import chunk_transition, first_past
from rl.build import make_rewards, make_sim, tasks_of
from rl.compose import compose
from rl.config import TrainConfig
from rl.envs.names import with_task_sets
from rl.instructions import with_instruction
from rl.rounds.evaluate import first_states
from rl.runs.progress import show
from rl.verbs.check_policy import check_policy
from rl.verbs.prepare import load_models
from world_model.api import WorldModel
from world_model.checkpoint import find_checkpoint
from world_model.data.episodes import Episode, EpisodeStore
from world_model.dream_env import DreamEnv
from world_model.env import BatchedEnv

N_ENVS, N_CHUNKS = 2, 4


@dataclass
class Steps:
    """Transitions of one place, with what a RewardManager needs to compute their rewards."""

    build: Callable[[dict[str, Any]], RewardManager]  # of terms, for this place
    chunks: list[tuple[Transition, Tensor, int]] = field(default_factory=list)  # (transition, executed, n_steps)
    num_envs: int = N_ENVS


class _Recorder(RewardManager):
    """A manager without terms that records the transitions it gets, with every feature that a term could require."""

    def __init__(self, steps: Steps, place: str, model: WorldModel | None) -> None:
        super().__init__({}, (), place, images=None if model is None else model.image_model)
        reads = set() if model is None or model.frame_read_out is None else {"progress"}
        self.requires = frozenset() if model is None else frozenset({*reads, *_features(model)})
        self._steps = steps

    def compute(self, t: Transition, executed: Tensor | None = None, n_steps: int = 1) -> RewardStep:
        """Record `t`; the reward is 0."""
        assert executed is not None  # environments always pass it
        self._steps.chunks.append((t, executed, n_steps))
        return super().compute(t, executed, n_steps)


def run(words: list[str]) -> None:
    """Call every term, print the table, and raise the first error of a place in which the config trains."""
    preset = words[0] if words and "=" not in words[0] else None
    config = compose(preset, words[1:] if preset else words, TrainConfig)
    env = with_instruction(with_task_sets(config.env), config.instruction)
    config = replace(config, env=env, device="cpu")  # only a few steps, so a GPU would not help
    if config.actor.func not in ("flow", "gaussian"):
        check_policy(config)
    model, _ = load_models(config)
    places = transitions(config, model)
    # Dream training uses the simulator too: `try_rewards` runs the terms there first.
    trained = {"sim"} if config.env.kind == "sim" else {"sim", "dream"}
    table = Table("term", "func", "weight", "requires", *places, title=f"reward terms of {preset or 'the config'}")
    first_error: UserError | None = None
    for name, term in config.rewards.items():
        cells = []
        for place, steps in places.items():
            cell, error = value_range(name, term, steps)
            cells.append(cell)
            first_error = first_error or (error if place in trained else None)
        table.add_row(name, *_describe(name, term, places), *cells)
    show(table)
    if first_error is not None:
        raise first_error


def value_range(name: str, term: dict[str, Any] | None, steps: Steps) -> tuple[str, UserError | None]:
    """Return the range of the raw values of a term over `steps` as text, or the reason for none, with the error."""
    if term is None or term.get("weight") == 0:
        return "off", None
    if not steps.chunks:
        return "nothing recorded", None
    try:
        manager = steps.build({name: term})
        manager.reset(torch.ones(steps.num_envs, dtype=torch.bool))
        values = torch.cat([manager.compute(t, done, n).raw[name][done] for t, done, n in steps.chunks])
    except UserError as error:
        return str(error), error
    return f"{float(values.min()):.3g} … {float(values.max()):.3g}", None


def transitions(config: TrainConfig, model: WorldModel | None) -> dict[str, Steps]:
    """Collect a few transitions in the simulator, in the dream and from the checkpoint's own episodes."""
    tasks = tasks_of(config, model)
    env = make_sim(config, model, tasks, max(N_ENVS, len(tasks)), rewards=False)
    try:
        places = {"sim": _act(config, model, env)}
        if model is not None:
            starts = first_states(env, range(env.num_envs))
            dream = DreamEnv(model, len(starts), starts, N_CHUNKS, in_order=True)
            places["dream"] = _act(config, model, dream)
        if model is not None and config.dream.brought is None:
            store = EpisodeStore(find_checkpoint(config.checkpoint))
            places["recorded"] = _recorded(config, model, store.load(tasks=tasks or model.spec.tasks)[:1])
    finally:
        env.close()
    return places


@torch.no_grad()
def _act(config: TrainConfig, model: WorldModel | None, env: BatchedEnv) -> Steps:
    """Execute a few chunks of random actions and return their transitions."""

    def build(terms: dict[str, Any]) -> RewardManager:
        return make_rewards(replace(config, rewards=terms), env.spec, env.place, model)

    steps = Steps(build, num_envs=env.num_envs)
    env.rewards = _Recorder(steps, env.place, model)
    env.reset(seed=config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    shape = (env.num_envs, config.n_action_steps, env.spec.action_dim)
    for _ in range(N_CHUNKS):
        share = torch.rand(shape, generator=generator)
        env.step_chunk(env.action_low + share * (env.action_high - env.action_low))
    return steps


@torch.no_grad()
def _recorded(config: TrainConfig, model: WorldModel, episodes: list[Episode]) -> Steps:
    """Convert recorded episodes to transitions of one environment."""
    provides = {*model.spec.slices, *_features(model), "progress"}
    if episodes and episodes[0].task_reward is not None:
        provides.add("task_reward")
    images = model.image_model
    steps = Steps(lambda terms: RewardManager(terms, provides, "recording", images), num_envs=1)
    for episode in model.encode_episodes(episodes):
        n, actions = episode.length, episode.action.unsqueeze(0)
        task = torch.tensor([model.spec.tasks.index(episode.task)])
        frames = {name: values[episode.rows_of(name)].unsqueeze(0) for name, values in episode.obs.items()}
        progress = None if model.frame_read_out is None else model.frame_read_out(frames, task)[1]
        t = chunk_transition(
            frames=frames if images is None else images.with_features(frames, provides),
            actions=actions,
            past=first_past(actions),
            success=episode.success,
            terminated=episode.success if config.env.terminate_on_success else torch.zeros_like(episode.success),
            elapsed=torch.arange(1, n + 1),
            task=task,
            slices=model.spec.slices,
            progress=progress,
            task_reward=episode.task_reward,
            images=images,
        )
        steps.chunks.append((t, torch.ones(n, dtype=torch.bool), n))
    return steps


def _features(model: WorldModel) -> set[str]:
    """Return the names of all features that a model reads or predicts."""
    return {*model.spec.features, *model.predicted_spec.features}


def _describe(name: str, term: dict[str, Any] | None, places: dict[str, Steps]) -> tuple[str, str, str]:
    """Return func, weight and requires of a term; requires is empty if no place can build the term."""
    if term is None:
        return "", "off", ""
    described = ""
    for steps in places.values():
        try:
            ((_, _, _, requires),) = steps.build({name: term}).describe()
            described = ", ".join(requires)
            break
        except (UserError, ValueError):
            continue
    return str(term.get("func") or name), str(term.get("weight")), described
