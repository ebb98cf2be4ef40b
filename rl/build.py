"""Build the objects that a config names: simulator, policy, reward terms."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isclose
from pathlib import Path
from typing import Any, Protocol

import torch

from rewards import RewardManager
from rewards.errors import UserError, blamed, closest_or_known, file_of
from rewards.manager import isaac_terms
from rewards.plugins import check_params, load
from rl.config import PolicyConfig, SimulatorConfig, TrainConfig
from rl.envs.features import given_spec
from rl.envs.names import BUILTIN, shown_name, simulator_name, task_of_id
from rl.envs.simulator import Request, Simulator
from rl.policies.api import Denoiser, TrainablePolicy, policy_state
from rl.policies.chain import ChainPolicy
from rl.policies.gaussian import GaussianPolicy
from rl.policies.lerobot.loading import is_lerobot
from rl.policies.saving import save_denoiser
from rl.policies.wam import WamDenoiser
from world_model.api import WorldModel
from world_model.checkpoint import find_checkpoint, save_checkpoint
from world_model.data.episodes import EpisodeStore
from world_model.env import BatchedEnv
from world_model.hub import download, is_hub_name
from world_model.runs import newest_runs
from world_model.spec import IMAGES, LATENTS, Feature, Spec
from world_model.wam.model import WorldActionModel
from world_model.wam.store import save_model

SAME = "max_steps", "terminate_on_success", "action_delay", "obs_noise"
"""Fields of `EnvConfig`, and attributes of every environment, that must be equal in simulator and dream."""


SAME_BOUND = 1e-3
"""Difference up to which action bounds of a world model and of an environment count as equal, since files round."""


def find_simulator(env: SimulatorConfig) -> type[Simulator]:
    """Return the simulator class that a config names: built-in, `path.py:Class`, `module:Class` or entry point.

    Raises:
        UserError: it does not exist, or is not a subclass of `Simulator`.
    """
    name = simulator_name(env)
    found = load("simulator", name, BUILTIN, key="env.simulator")
    if not (inspect.isclass(found) and issubclass(found, Simulator)):
        raise UserError(
            f"env.simulator={name}: expected a subclass of rl.envs.simulator.Simulator, got {found!r:.80}; "
            f"an environment of gymnasium is named by env.id={name}"
        )
    return found


def make_sim(
    config: TrainConfig,
    model: WorldModel | None,
    tasks: Sequence[str],
    n_envs: int,
    rewards: bool,
    denoiser: Denoiser | None = None,
    shown: Mapping[str, Feature] | None = None,
    n_workers: int | None = None,
    tick: Callable[[float], None] = lambda share: None,
) -> Simulator:
    """Build the simulator of the config for `tasks`; with `rewards` it gets the reward terms of the config.

    It gives what the world model `model` reads, what `denoiser` reads if another policy acts, and the images `shown`
    for a person. `n_workers` replaces that of the config; 0: no worker processes. `tick` as in `Request`.

    Raises:
        UserError: the checkpoint does not fit the environment; both sizes are named, or the unknown task.
    """
    env = config.env
    sim = build_simulator(
        env,
        tasks,
        n_envs,
        model=model,
        # A task must have the same index in every simulator of a run, even in one that runs this task only.
        known_tasks=env.tasks if model is None else model.spec.tasks,
        n_workers=env.n_workers or default_workers() if n_workers is None else n_workers,
        run=config,
        denoiser=denoiser,
        shown=shown,
        tick=tick,
        n_context_frames=max(1 if of is None else of.n_context_frames for of in (model, denoiser)),
        read_out=None if model is None else model.frame_read_out,
        seed=config.seed,
        device=device_of(config),
        **{name: getattr(env, name) for name in SAME},
    )
    try:
        if rewards:
            sim.rewards = make_rewards(config, sim.spec, sim.place, model)
    except BaseException:
        sim.close()
        raise
    return sim


def build_simulator(
    env: SimulatorConfig,
    tasks: Sequence[str],
    n_envs: int,
    *,
    model: WorldModel | None,
    known_tasks: Sequence[str],
    n_workers: int = 0,
    run: TrainConfig | None = None,
    denoiser: Denoiser | None = None,
    shown: Mapping[str, Feature] | None = None,
    tick: Callable[[float], None] = lambda share: None,
    **others: Any,
) -> Simulator:
    """Build a simulator, and check that a model, and a policy of somebody else, can act in it.

    Args:
        env: names simulator, id and options.
        tasks: to run; empty if the simulator has one task.
        n_envs: number of environments.
        model: world model, which dreams of it, and acts in it if it is our own; None: there is none.
        known_tasks: see `Request`; empty: `tasks`.
        n_workers: see `Request`.
        run: config of the run, if there is one.
        denoiser: acts in it, if another policy than that of the model does.
        shown: images for a person, by feature, that neither of them reads.
        tick: see `Request`.
        others: arguments of `BatchedEnv`.

    Raises:
        UserError: the checkpoint does not fit the environment; both sizes are named, or the unknown task.
    """
    simulator, where = find_simulator(env), shown_name(env)
    if model is not None and denoiser is not None:
        _check_dream(model, denoiser)
    what = "checkpoint" if model is None or isinstance(model, WorldActionModel) else "world model"
    simulator.check_options(env.options)
    early = simulator.early_spec(id=env.id, tasks=tasks)
    if model is not None and early is not None:  # first, since a wrong state explains more than an unknown task
        given = given_spec(early, model.spec.features, robot_slices=simulator.robot_slices)
        model.spec.check_fits(given, where, what)
    if known_tasks and (unknown := sorted(set(tasks) - set(known_tasks))):
        hint = closest_or_known(unknown[0], known_tasks)
        raise UserError(f"{where}: task {unknown[0]!r} is unknown to the {what}; {hint}")
    tasks = tuple(tasks) or (early.tasks if early is not None else _only_task(env, known_tasks))
    request = Request(
        id=env.id,
        tasks=tasks,
        n_envs=n_envs,
        options=env.options,
        known_tasks=tuple(known_tasks) or tasks,
        n_workers=n_workers,
        features={**_wanted(model, denoiser, where), **(shown or {})},
        cameras={**({} if denoiser is None else denoiser.cameras), **({} if model is None else model.cameras)},
        model=model,
        own_rewards=isaac_terms(run.rewards) if run is not None else {},
        run=run,
        tick=tick,
    )
    sim = simulator.build(request, **others)
    if env.instructions or env.wordings:
        instructions, wordings = sim.spec.instructions | env.instructions, sim.spec.wordings | env.further_wordings
        sim.spec = replace(sim.spec, instructions=instructions, wordings=wordings)
    try:
        if model is not None:
            _check_model(sim, model, where, what)
        if denoiser is not None:
            _check_reads(sim, denoiser, where)
    except BaseException:
        sim.close()
        raise
    return sim


def check_simulator(config: TrainConfig) -> None:
    """Refuse a run whose simulator cannot do what the rest of the config needs.

    Raises:
        UserError: the simulator only dreams, and the config does not train in the dream of recorded episodes alone.
    """
    judges_only = find_simulator(config.env).place == "dream"
    if judges_only and (config.env.kind != "dream" or not config.episodes or config.dream.n_episodes > 0):
        raise UserError(f"{shown_name(config.env)}: set env.kind=dream, episodes=FOLDER and dream.n_episodes=0")


def has_simulator(config: TrainConfig) -> bool:
    """Whether gates and evaluations run in a simulator; else they run in a dream of recorded episodes."""
    try:
        return find_simulator(config.env).place == "sim"
    except UserError:  # the plug-in is missing; a report can still be written
        return True


def judged_in(config: TrainConfig) -> str:
    """Return in words where gates and evaluations run."""
    return "the simulator" if has_simulator(config) else "a dream of what was recorded"


class Where(Protocol):
    """The part of a config that says where episodes run."""

    @property
    def env(self) -> SimulatorConfig:
        """Simulator, tasks and options."""

    @property
    def device(self) -> str:
        """Device of the simulator: cpu, cuda:0, ... or auto."""


def device_of(config: Where) -> str:
    """Return the device of model, dream and simulator; see `Simulator.pick_device`."""
    return find_simulator(config.env).pick_device(config.device, config.env.options)


def default_workers() -> int:
    """Return the number of worker processes: one per thread of torch, or 0 (this process) for a single thread."""
    threads = torch.get_num_threads()
    return threads if threads > 1 else 0


def tasks_of(config: TrainConfig, model: WorldModel | None) -> tuple[str, ...]:
    """Return the tasks of the config, else all tasks of the checkpoint; () if `env.id` itself names the task."""
    if config.env.tasks or model is None or find_simulator(config.env).id_is_task:
        return config.env.tasks
    return model.spec.tasks


def make_denoiser(actor: PolicyConfig, device: str, n_action_steps: int = 0) -> Denoiser | None:
    """Load a policy that somebody brings; None for `flow` and `gaussian`, which need a model or a simulator first.

    Args:
        actor: func and params of the policy.
        device: of its weights.
        n_action_steps: executed of each chunk; 0: as many as its own configuration says.

    Raises:
        UserError: it cannot be loaded; see `LeRobotDenoiser`, and `rewards.plugins.load` for a class of your own.
    """
    if actor.func in ("flow", "gaussian"):
        return None
    if actor.func == "lerobot":
        denoiser: Any = _lerobot(actor, device)
    else:
        found = load("policy", actor.func, {}, key="policy")
        check_params(f"policy={actor.func}", actor.func, found, actor.params, n_given=0)
        with blamed(f"policy={actor.func}", file_of(found)):
            denoiser = found(**actor.params)
        if not isinstance(denoiser, Denoiser):
            raise UserError(
                f"policy={actor.func}: expected a rl.policies.api.Denoiser, got {denoiser!r:.80}; "
                "write one around your network, see docs/bring_your_own.md#your-own-policy"
            )
        denoiser = denoiser.to(device)
    denoiser.n_action_steps = every = n_action_steps or denoiser.n_action_steps or denoiser.chunk_size
    # A policy that reads one frame needs an image only when it decides.
    if denoiser.n_context_frames == 1:
        denoiser.reads = {
            name: replace(feature, every=every) if name.startswith(IMAGES) else feature
            for name, feature in denoiser.reads.items()
        }
    return denoiser


def _lerobot(actor: PolicyConfig, device: str) -> Denoiser:
    """Load a checkpoint of LeRobot, from a folder or the Hub."""
    from rl.policies.lerobot.denoiser import LeRobotDenoiser  # imported here, because few runs need it

    params = dict(actor.params)
    unknown = params.keys() - {"checkpoint", "rename", "lora_rank"}
    if unknown or "checkpoint" not in params:
        wrong = f"unknown {min(unknown)!r}" if unknown else "checkpoint is missing"
        raise UserError(f"policy.params: {wrong}; policy.func=lerobot has checkpoint, rename and lora_rank")
    folder = find_policy(str(params.pop("checkpoint")))
    return LeRobotDenoiser(folder, device=device, **params)


def is_policy(name: str) -> bool:
    """Whether a name is that of a policy of LeRobot, see `find_policy`."""
    try:
        find_policy(name)
    except UserError:
        return False
    return True


def find_policy(name: str) -> Path:
    """Return the folder of a policy of LeRobot, from its path, the Hub, a run folder or a run of `lerobot-train`.

    Raises:
        UserError: there is none.
    """
    path = Path(name)
    last = Path("checkpoints") / "last"
    of_run = [run / last for run in (path, *newest_runs(path))]
    for folder in (path, path / "pretrained_model", path / last / "pretrained_model", *of_run):
        if is_lerobot(folder):
            return folder
    if is_hub_name(name) and is_lerobot(folder := download(name)):
        return folder
    if "/" not in name:
        raise UserError(f"policy={name}: {closest_or_known(name, ['flow', 'gaussian'])}; or a folder of LeRobot")
    raise UserError(
        f"policy={name}: no policy of LeRobot there; expected a folder with its config.json, such as "
        "outputs/train/NAME/checkpoints/last/pretrained_model"
    )


def make_policy(
    config: TrainConfig, model: WorldModel | None, env: BatchedEnv, denoiser: Denoiser | None = None
) -> ChainPolicy:
    """Build the policy of the config: `denoiser`, or that of the checkpoint `model`, or else a new Gaussian MLP."""
    if denoiser is None and (model is None or config.actor.func == "gaussian"):
        torch.manual_seed(config.seed)
        return GaussianPolicy(env, chunk_size=config.n_action_steps).to(env.device)
    if denoiser is None:
        assert isinstance(model, WorldActionModel)
        denoiser = WamDenoiser(model)
    ppo = config.ppo
    torch.manual_seed(config.seed)  # for a new critic
    return ChainPolicy(
        denoiser,
        env.spec,
        ppo.n_denoising_steps,
        ppo.noise_std,
        config.n_action_steps,
        ppo.noise_correlation,
    )


def make_rewards(config: TrainConfig, spec: Spec, place: str, model: WorldModel | None) -> RewardManager:
    """Build the reward terms of the config for one place.

    Raises:
        UserError: a term needs something that the place does not provide; both are named.
    """
    provides = {*spec.vector_slices, *spec.features}
    if model is not None:
        provides |= {"progress"} if model.frame_read_out is not None else set()
        # A world model with latents makes images of them and the other way round.
        provides |= {*model.spec.features, *model.predicted_spec.features} if model.image_model is not None else set()
    if place == "sim":
        provides |= find_simulator(config.env).provides
    return RewardManager(config.rewards, provides, place, images=None if model is None else model.image_model)


def save_policy(folder: Path, config: TrainConfig, policy: TrainablePolicy, about: dict[str, Any], readme: str) -> None:
    """Write a policy as a checkpoint folder: one that somebody brings in its own format, ours with its world model.

    Args:
        folder: destination; an existing checkpoint there is replaced.
        config: of the run.
        policy: what `make_policy` returned.
        about: further JSON-compatible values.
        readme: the model card.
    """
    assert isinstance(policy, ChainPolicy)
    denoiser = policy.denoiser
    if isinstance(denoiser, WamDenoiser):
        demonstrations = EpisodeStore(find_checkpoint(config.checkpoint)).files()
        save_model(folder, denoiser.model, "rl", config.checkpoint, about, readme, demonstrations)
    elif config.actor.func == "gaussian":
        spec = {"spec": policy.spec.to_dict(), "stage": "rl", "policy": "gaussian"}
        save_checkpoint(folder, spec | about, policy_state(denoiser), readme)
    else:
        save_denoiser(folder, denoiser, config.actor, about, readme)


def _wanted(model: WorldModel | None, denoiser: Denoiser | None, where: str) -> dict[str, Feature]:
    """Return the features that model and policy read together; {}: the state alone.

    Raises:
        UserError: they read the same feature in different shapes.
    """
    wanted = {} if model is None else dict(model.spec.features)
    for name, feature in {} if denoiser is None else denoiser.reads.items():
        other = wanted.get(name, feature)
        if other.shape != feature.shape:
            raise UserError(
                f"{where}: the policy reads {name!r} of shape {list(feature.shape)}, the world model "
                f"{list(other.shape)}; choose a checkpoint or a policy with the same"
            )
        if other.every != feature.every:
            raise UserError(
                f"{where}: the policy needs a new {name!r} every {feature.every} steps, the world model was trained on "
                f"one every {other.every}; set n_action_steps={other.every}, with a policy that reads one frame "
                "(n_obs_steps=1)"
            )
        wanted[name] = other
    return wanted


def _check_dream(model: WorldModel, denoiser: Denoiser) -> None:
    """Check that a dream of the model has what another policy than that of the model reads."""
    what = "checkpoint" if isinstance(model, WorldActionModel) else "world model"
    remedy = f"choose another {what}, or train without dreams (env.kind=sim)"
    for name in denoiser.reads:
        if name not in model.spec.features:
            has = ", ".join(model.spec.features)
            raise UserError(f"the policy reads {name!r}, and a dream of the {what} has {has}; {remedy}")
    if denoiser.n_context_frames > model.n_context_frames:
        raise UserError(
            f"the policy reads {denoiser.n_context_frames} frames, and a dream has as many as the world model reads, "
            f"{model.n_context_frames}; {remedy}"
        )
    if isinstance(denoiser, WamDenoiser):
        _check_beside_ours(model, denoiser.model)


def _check_beside_ours(model: WorldModel, ours: WorldActionModel) -> None:
    """Check that the policy of our checkpoint can act in the dream of another world model."""
    if model.spec.tasks != ours.spec.tasks:  # an observation holds the index of its task
        raise UserError(
            f"the world model knows the tasks {', '.join(model.spec.tasks)}, the policy of the checkpoint "
            f"{', '.join(ours.spec.tasks)}; give the spec of the world model those tasks, in this order"
        )
    if ours.cameras and LATENTS in model.predicted_spec.features:
        raise UserError(
            f"the world model predicts {LATENTS!r}, which the policy of the checkpoint would take for its own codes of "
            "images; give that feature another name, or predict the images"
        )


def _check_model(sim: Simulator, model: WorldModel, where: str, what: str) -> None:
    """Check that a model can predict and act in a simulator."""
    reads = model.predicted_spec if sim.place == "dream" else model.spec
    reads.check_fits(sim.spec, where, what)
    if sim.spec.tasks != model.spec.tasks:  # a task would have another index than in the model's training
        raise UserError(
            f"{where}: its spec names the tasks {', '.join(sim.spec.tasks)}, the {what} "
            f"{', '.join(model.spec.tasks)}; build the spec with tasks=known_tasks"
        )
    if isinstance(model, WorldActionModel):
        return  # it acts within its own bounds, which may be narrower
    mine, theirs = (list(zip(spec.action_low, spec.action_high, strict=True)) for spec in (model.spec, sim.spec))
    for i, (bounds, others) in enumerate(zip(mine, theirs, strict=True)):
        if not all(isclose(a, b, rel_tol=SAME_BOUND, abs_tol=SAME_BOUND) for a, b in zip(bounds, others, strict=True)):
            raise UserError(
                f"{where}: action {i} of the {what} is from {bounds[0]:g} to {bounds[1]:g}, that of the environment "
                f"from {others[0]:g} to {others[1]:g}; a dream must clip actions as the environment does"
            )


def _check_reads(sim: Simulator, denoiser: Denoiser, where: str) -> None:
    """Check that a simulator has what a policy reads."""
    for name, feature in denoiser.reads.items():
        given = sim.spec.features.get(name)
        if given is None or given.shape != feature.shape:
            has = f"has {list(given.shape)}" if given else f"has {', '.join(sim.spec.features)}"
            raise UserError(
                f"{where}: the policy reads {name!r} of shape {list(feature.shape)}, the environment {has}; correct "
                "`reads` of a policy of your own, rename the features of one of LeRobot (policy.params.rename), or "
                "choose one that was trained here"
            )


def _only_task(env: SimulatorConfig, known_tasks: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks of a simulator if none is named: its id, else the known tasks, else the name of its class."""
    if env.id:
        return (task_of_id(env.id, known_tasks),)
    return tuple(known_tasks) or (simulator_name(env).rpartition(":")[2],)
