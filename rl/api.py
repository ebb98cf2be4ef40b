"""The Python API: load a policy, evaluate it, look at its dream, and post-train it.

    from rl import api

    policy = api.load("metaworld-tuned")
    print(api.evaluate(policy, tasks=["push"], n_episodes=50))
    run = api.post_train("dream", env={"tasks": ["push"]}, controls=["anchor"])
    print(run.verdict, run.report)

Each function does what the command of the same name does, with the same keys and the same numbers, and raises a
`UserError` with the line that the command would print. What is in `__all__`, with its signatures, and
`world_model.load` stay as they are within a major version; docs/python_api.md says what that covers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from rewards.errors import BadNumbers, UserError
from rl.build import SAME, device_of, make_rewards, make_sim
from rl.compose import compose, yaml_on_one_line
from rl.config import TrainConfig
from rl.envs.simulator import Simulator
from rl.policies.chain import ChainPolicy
from rl.policies.wam import WamDenoiser
from rl.ppo.sb3 import ChunkPredictor
from rl.rounds.evaluate import EpisodeResult, first_states
from rl.runs.folder import METRICS, read_rows
from rl.runs.verdict import VERDICT, RunVerdict, read_verdict
from rl.seeds import EVAL, START
from rl.statistics import describe, describe_gain, paired_gain, success_rate, wilson
from rl.verbs.acting import Actor, load_dream, load_policy
from rl.verbs.dream import Replayed, dream_of
from rl.verbs.eval import check_keys
from rl.verbs.eval import evaluate as evaluate_actor
from rl.verbs.measure import chain_policy
from rl.verbs.options import DreamOptions, EvalOptions
from rl.verbs.train import train
from rl.verbs.words import check_words
from world_model.api import WorldModel
from world_model.dream_env import DreamEnv
from world_model.env import BatchedEnv
from world_model.wam.model import WorldActionModel

__all__ = [
    "BadNumbers",
    "Dream",
    "EpisodeResult",
    "Evaluation",
    "LoadedPolicy",
    "PostTrained",
    "RunVerdict",
    "UserError",
    "dream",
    "evaluate",
    "load",
    "make_env",
    "post_train",
]

Place = Literal["sim", "dream"]


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy that can act, whatever it is made of; from `load`."""

    name: str  # as it was named
    actor: Actor = field(repr=False)  # no part of the stable surface

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that it knows; () if it does not say, as a policy of LeRobot."""
        if self.actor.gaussian is not None:
            return self.actor.gaussian.spec.tasks
        return () if self.actor.model is None else self.actor.model.spec.tasks

    @property
    def world_model(self) -> WorldActionModel | None:
        """The world model in the same checkpoint; None if it has none."""
        return self.actor.model

    def predictor(self, env: BatchedEnv) -> ChunkPredictor:
        """Return a policy of Stable-Baselines3 that acts in `env`.

        Its `predict(observation, state, episode_start, deterministic)` takes flat observations (num_envs, D) of an
        adapter of `rl.envs.adapters` and returns single actions (num_envs, action_dim) in environment units, with the
        queue of its chunk as `state`. So `stable_baselines3.common.evaluation.evaluate_policy` takes it.
        """
        return ChunkPredictor(_policy_in(self, env), env)


@dataclass(frozen=True)
class Evaluation:
    """Success of one policy in one place; from `evaluate`."""

    policy: str  # its name
    place: Place
    episodes: tuple[EpisodeResult, ...] = field(repr=False)  # task after task, each in the order of its seeds
    notes: tuple[str, ...] = field(default=(), repr=False)  # a line for each sentence or task new to the model

    @property
    def success(self) -> float:
        """Share of the episodes that succeeded, from 0 to 1."""
        return success_rate(self.episodes)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `success` (low, high), by Wilson's score."""
        return wilson(sum(episode.success for episode in self.episodes), len(self.episodes))

    @property
    def per_task(self) -> dict[str, Evaluation]:
        """The same of each task."""
        tasks = dict.fromkeys(episode.task for episode in self.episodes)
        return {task: replace(self, episodes=tuple(e for e in self.episodes if e.task == task)) for task in tasks}

    def gain_over(self, other: Evaluation) -> tuple[float, float, float]:
        """Return this success minus that of `other` on the same episodes, with its 95 % interval (gain, low, high).

        Episodes are paired by task and seed: two policies in one place, or one policy in dream and simulator.

        Raises:
            UserError: the two do not have the same episodes.
        """
        return paired_gain(self._paired(other), self.episodes)

    def describe_gain_over(self, other: Evaluation) -> str:
        """Return `gain_over` as text in points, such as "+12.5 [+3.1, +21.7]"."""
        return describe_gain(self._paired(other), self.episodes)

    def __str__(self) -> str:
        return describe(self.episodes)

    def _paired(self, other: Evaluation) -> list[EpisodeResult]:
        """Return the episodes of `other` in the order of these."""
        theirs = {(episode.task, episode.seed): episode for episode in other.episodes}
        own = [(episode.task, episode.seed) for episode in self.episodes]
        if theirs.keys() != set(own):
            raise UserError("gain_over: the two evaluations have other episodes; evaluate both with the same tasks, "
                            "n_episodes and seed")  # fmt: skip
        return [theirs[name] for name in own]


@dataclass(frozen=True)
class Dream:
    """A real episode, and what the model dreamed of the same actions from the same first state; from `dream`."""

    task: str
    seed: int  # of the episode
    real: Tensor = field(
        repr=False
    )  # (n + 1, state_dim) in units of the state; with images (n_chunks + 1, H, W, 3) uint8
    dreamed: Tensor = field(repr=False)  # the same shape; its first entry is real
    # Slice of the state -> (n + 1,) distance in m; with images "images" -> (n_chunks + 1,) mean difference, 0 to 1.
    errors: dict[str, Tensor] = field(repr=False)
    expected_error: tuple[float, ...]  # of each chunk, as the model expected it; () if it was never calibrated
    notes: tuple[str, ...] = field(repr=False)  # a line for each sentence or task new to the model
    replayed: Replayed = field(repr=False)  # no part of the stable surface

    def save(self, path: str | Path) -> Path:
        """Write a plot of the trajectories (.png), for a model with images a video (.gif, .mp4); return the path.

        Raises:
            UserError: the file is of another type.
        """
        self.replayed.draw(str(path))
        return Path(path)


@dataclass(frozen=True)
class PostTrained:
    """A finished run of `post_train`."""

    folder: Path  # with config, metrics, checkpoints, report
    config: TrainConfig
    before: Evaluation  # of the start policy, on seeds that no gate used
    after: Evaluation  # of the champion, on the same seeds
    controls: dict[str, Evaluation]  # name -> the champion of that control, on the same seeds

    @property
    def verdict(self) -> RunVerdict:
        """What the run has shown: `kind`, `sentence`, `next_command`.

        Raises:
            UserError: its file was removed.
        """
        if (found := read_verdict(self.folder)) is None:
            raise UserError(f"{self.folder / VERDICT}: not there; write it again: wamtune report {self.folder}")
        return found

    @property
    def report(self) -> Path:
        """The report, one HTML file."""
        return self.folder / "report.html"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Logged rows, each with `step` (updates) and the keys of docs/logged_keys.md; of a control `NAME/key`."""
        return read_rows(self.folder / METRICS)

    @cached_property
    def champion(self) -> LoadedPolicy:
        """The best policy of the run, as `load` returns it."""
        own_class = self.config.actor.func not in ("flow", "gaussian", "lerobot")
        return load(self.folder, policy=self.config.policy if own_class else "")


def load(
    name: str | Path, *, policy: str | Mapping[str, Any] = "", device: str = "cpu", n_action_steps: int = 0
) -> LoadedPolicy:
    """Load whatever `wamtune eval` takes.

    Args:
        name: a built-in checkpoint, its folder, a run (`runs/NAME` is the newest of that name, `latest` the newest of
            all), `hf://USER/NAME`, a folder of LeRobot, or a class of your own as `FILE.py:Class`, with new weights.
        policy: a class of your own whose weights `name` holds, as `FILE.py:Class` or with func and params.
        device: of a policy that you bring; our own is on the CPU.
        n_action_steps: executed of each chunk by a policy that you bring; 0: as many as its configuration says.

    Raises:
        UserError: it is missing or damaged, or cannot act.
    """
    name = str(name)
    if not policy:
        check_words("eval", [name])
    return LoadedPolicy(name, load_policy(name, policy, device, n_action_steps))


def evaluate(
    policy: LoadedPolicy | str | Path,
    *,
    tasks: Sequence[str] = (),
    n_episodes: int = 200,
    place: Place = "sim",
    seed: int = EVAL.start,
    **keys: Any,
) -> Evaluation:
    """Measure the success of a policy on named episodes; the same call gives the same numbers.

    Args:
        policy: of `load`, or what `load` takes.
        tasks: to run; (): all that the policy knows.
        n_episodes: of each task.
        place: `sim`, or `dream`: from the first states of the same episodes, in the policy's own world model, or in the
            one that the key `world_model` names.
        seed: of the first episode.
        keys: others of `wamtune eval --help`, such as `n_envs`, `obs_noise` or `env={"options": ...}`.

    Raises:
        UserError: a key is wrong, a task is unknown, or the policy has no dream.
    """
    if place not in ("sim", "dream"):
        raise UserError(f"place={place!r}: expected sim or dream; to compare both, evaluate twice: gain_over")
    loaded = policy if isinstance(policy, LoadedPolicy) else load(policy)
    given = {"n_episodes": n_episodes, "place": place, "seed": seed, **_with_tasks(keys, tasks)}
    words = words_of(given)
    check_keys(loaded.actor, words)
    notes: list[str] = []
    found = evaluate_actor(loaded.actor, compose(None, words, EvalOptions), say=notes.append)
    results = found.sim if place == "sim" else found.dream
    episodes = tuple(result for of in results.values() for result in of)
    return Evaluation(loaded.name, place, episodes, tuple(notes))


def make_env(
    policy: LoadedPolicy | str | Path,
    *,
    tasks: Sequence[str] = (),
    n_envs: int = 8,
    place: Place = "sim",
    world_model: str = "",
    **keys: Any,
) -> BatchedEnv:
    """Build environments in which a policy can act, simulated or dreamed.

    Wrap them in `rl.envs.adapters`: `StepVecEnv` for Stable-Baselines3, `GymVectorEnv` or `GymEnv` (`n_envs=1`) for
    gymnasium. Close them in the end.

    Args:
        policy: of `load`, or what `load` takes; the environments give what it reads.
        tasks: spread evenly over the environments; (): all that the policy knows.
        n_envs: number of environments.
        place: `sim` or `dream`; a dream begins in first states of the simulator, a new draw for each branch.
        world_model: what dreams; "": the policy's own.
        keys: others of `wamtune train --help`, such as `rewards`, `seed`, `env={"max_steps": 100}` or `dream`.

    Raises:
        UserError: a key is wrong, the policy does not fit the environment, or there is no dream.
    """
    loaded = policy if isinstance(policy, LoadedPolicy) else load(policy)
    if place not in ("sim", "dream"):
        raise UserError(f"place={place!r}: expected sim or dream")
    if n_envs < 1:
        raise UserError(f"n_envs={n_envs}: expected at least 1")
    config = compose(None, words_of(_with_tasks({"name": "env", **keys}, tasks)), TrainConfig)
    model: WorldModel | None = loaded.world_model
    denoiser, trained = loaded.actor.denoiser, loaded.actor.trained
    if trained is not None:  # a Gaussian policy acts where it was trained
        config = replace(config, env=trained.env)
    if place == "dream" and world_model:
        model = load_dream(world_model, loaded.name, config.seed, device_of(config))
        if loaded.world_model is not None:
            denoiser = WamDenoiser(loaded.world_model, dreams=False)
    if place == "dream" and model is None:
        raise UserError(f"place=dream: {loaded.name} has no dream of its own; name a checkpoint with world_model=...")
    sim = make_sim(config, model, config.env.tasks or loaded.tasks, n_envs, rewards=place == "sim", denoiser=denoiser)
    return sim if place == "sim" else _dream_of(sim, loaded, model, config)


def dream(
    policy: LoadedPolicy | str | Path,
    *,
    task: str = "",
    seed: int = EVAL.start,
    n_chunks: int = 8,
    source: Literal["expert", "policy", "joint"] = "expert",
    **keys: Any,
) -> Dream:
    """Record one episode in the simulator, and dream the same actions from its first state.

    Args:
        policy: a checkpoint with a world model: of `load`, or its name.
        task: of the episode; "": push, or the first that the model knows.
        seed: names the episode.
        n_chunks: longest episode, in chunks of actions.
        source: who acted; `joint`: the model imagines future and actions together, and these actions are executed.
        keys: others of `wamtune dream --help`, such as `n_denoising_steps`.

    Raises:
        UserError: a key is wrong, or there is no world model.
    """
    loaded: str | WorldActionModel = str(policy) if not isinstance(policy, LoadedPolicy) else policy.name
    if isinstance(policy, LoadedPolicy):
        if policy.world_model is None:
            raise UserError(f"{policy.name}: it holds no world model; choose a checkpoint such as metaworld-tuned")
        loaded = policy.world_model
    else:
        check_words("dream", [str(policy)])
    given = {"seed": seed, "n_chunks": n_chunks, "source": source, **_with_tasks(keys, [task] if task else [])}
    if "out" in given:
        raise UserError("out: a picture is written by .save(path) of what dream() returns; leave it out")
    notes: list[str] = []
    found = dream_of(loaded, compose(None, words_of(given), DreamOptions), say=notes.append)
    assert isinstance(found, Replayed)
    return _dream(found, notes)


def post_train(preset: str | Path, **overrides: Any) -> PostTrained:
    """Post-train as `wamtune train PRESET key=value ...` does; progress is printed.

    Each override is a key of `wamtune train --help`: a group as a dict (`env={"tasks": ["push"]}`), or dotted names as
    `**{"env.tasks": ["push"]}`. `callbacks={"name": {"func": ..., "params": ...}}` are callbacks of Stable-Baselines3
    and your own, see docs/callbacks.md. It sets the number of threads of torch, by the key `threads`.

    Args:
        preset: a preset, a .yaml file, or a run folder, which goes on where it was interrupted.
        overrides: keys that differ from the preset.

    Raises:
        UserError: a key is wrong, or something does not fit; nothing is left behind.
        BadNumbers: the training met numbers that are not finite.
    """
    words = [str(preset), *words_of(overrides)]
    check_words("train", words)
    done = train(words)
    name, start = done.config.name, done.config.starts_from
    first, *controls = ((run.name, run.outcome) for run in done.runs)
    return PostTrained(
        folder=done.folder,
        config=done.config,
        before=Evaluation(start, "sim", tuple(first[1].before)),
        after=Evaluation(name, "sim", tuple(first[1].after)),
        controls={control: Evaluation(control, "sim", tuple(outcome.after)) for control, outcome in controls},
    )


def words_of(keys: Mapping[str, Any]) -> list[str]:
    """Return keys and values as the words `key=value` of a command line.

    Raises:
        UserError: a value is something else than numbers, text, lists and dicts.
    """
    words = []
    for key, value in keys.items():
        try:
            words.append(f"{key}={yaml_on_one_line(_plain(value))}")
        except yaml.YAMLError:
            raise UserError(
                f"{key}={value!r:.80}: expected a number, text, a list or a dict; code is named as FILE.py:NAME"
            ) from None
    return words


def _plain(value: Any) -> Any:
    """Return dicts, lists and text in place of other mappings, tuples and paths."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _with_tasks(keys: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    """Return keys with `tasks` in their group `env`."""
    if isinstance(tasks, str):
        raise UserError(f"tasks={tasks!r}: expected a list such as ['{tasks}']")
    found = dict(keys)
    return found | {"env": {**found.get("env", {}), "tasks": list(tasks)}} if tasks else found


def _policy_in(loaded: LoadedPolicy, env: BatchedEnv) -> ChainPolicy:
    actor = loaded.actor
    if actor.gaussian is not None:
        return actor.gaussian
    denoiser = actor.denoiser
    if denoiser is None:
        assert actor.model is not None
        own = not isinstance(env, DreamEnv) or env.model is actor.model
        denoiser = WamDenoiser(actor.model, dreams=own)
    return chain_policy(denoiser, env.spec, EvalOptions())


def _dream_of(sim: Simulator, loaded: LoadedPolicy, model: WorldModel | None, config: TrainConfig) -> DreamEnv:
    """Return a dream that begins in first states of the simulator, which is closed."""
    assert model is not None
    model.n_denoising_steps = config.dream.n_denoising_steps
    try:
        starts = first_states(sim, range(START.start, START.start + max(config.dream.n_starts, sim.num_envs)))
        images = _policy_in(loaded, sim).images
    finally:
        sim.close()
    return DreamEnv(
        model,
        sim.num_envs,
        starts,
        config.n_decisions(config.dream.horizon, model.chunk_size),
        rewards=make_rewards(config, model.predicted_spec, DreamEnv.place, model),
        seed=config.seed,
        images=images,
        **{name: getattr(config.env, name) for name in SAME},
    )


def _dream(found: Replayed, notes: Sequence[str]) -> Dream:
    """Return what the Python API shows of a replay."""
    if found.images is not None:
        real, dreamed = found.images
        errors = {"images": (real.float() - dreamed.float()).abs().flatten(1).mean(1) / 255}
    else:
        real = found.episode.state[: len(found.frames)]
        dreamed = found.frames[:, : real.shape[1]]
        errors = {
            name: torch.linalg.vector_norm(dreamed[:, part] - real[:, part], dim=1)
            for name in found.parts
            for part in [found.model.spec.slices[name]]
        }
    return Dream(
        task=found.episode.task,
        seed=found.options.seed,
        real=real,
        dreamed=dreamed,
        errors=errors,
        expected_error=tuple(found.expected),
        notes=tuple(notes),
        replayed=found,
    )
