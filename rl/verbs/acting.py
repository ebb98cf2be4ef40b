"""Load a checkpoint, or a policy that somebody brings, for a verb that lets it act."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rewards.errors import UserError
from rl.build import is_policy, make_denoiser
from rl.compose import compose
from rl.config import DreamConfig, PolicyConfig, TrainConfig
from rl.envs.recorded import stored_spec
from rl.policies.api import Denoiser
from rl.policies.gaussian import GaussianPolicy, load_gaussian
from rl.policies.saving import ABOUT
from rl.policies.wam import load_actor
from rl.world_models import make_world_model, world_model_of
from world_model.api import WorldModel
from world_model.checkpoint import find_checkpoint, load_checkpoint
from world_model.data.episodes import Episode, EpisodeStore
from world_model.hub import PREFIX
from world_model.runs import newest_runs
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model

NEW = "new"
"""In place of a checkpoint: the weights that a class of the user's own has when it is built."""


@dataclass(frozen=True)
class Actor:
    """A loaded policy: our own model, one that somebody brings, or a Gaussian one; the other two are None."""

    name: str  # as it was named
    model: WorldActionModel | None = None  # its action side acts, and it can dream
    denoiser: Denoiser | None = None  # of LeRobot, or of the user's own class
    gaussian: GaussianPolicy | None = None
    trained: TrainConfig | None = None  # the config of the run that trained a Gaussian policy: it acts there alone


def load_policy(name: str, policy: Any, device: str, n_action_steps: int) -> Actor:
    """Load whatever acts: a checkpoint, a run, a policy of LeRobot or of the user's own class.

    Args:
        name: see `rl.policies.wam.load_actor` and `load_brought`.
        policy: see `load_brought`; empty: `name` says what it is.
        device: of the weights of a policy that somebody brings.
        n_action_steps: see `load_brought`.

    Raises:
        UserError: it cannot be loaded, or it cannot act.
    """
    if not policy and _names_class(name):
        policy = name  # FILE.py:Class, with new weights
    if policy or is_policy(name):
        return Actor(name, denoiser=load_brought(name, policy, device, n_action_steps))
    refuse_own_class(name)
    about, tensors = load_checkpoint(name)
    if about.get("policy") == "gaussian":
        return _gaussian(name, about, tensors)
    return Actor(name, model=load_actor(name))


def load_brought(name: str, policy: Any, device: str, n_action_steps: int) -> Denoiser:
    """Load a policy of LeRobot, or of the user's own with the weights that `wamtune train` saved.

    Args:
        name: folder of the checkpoint, or a run folder; for a class of your own also `NEW` or FILE.py:Class, for new
            weights.
        policy: see `TrainConfig.policy`; empty: `name` is a policy of LeRobot.
        device: of the weights.
        n_action_steps: executed of each chunk; 0: as many as its own configuration says.

    Raises:
        UserError: it cannot be loaded, see `make_denoiser`, it is not a policy that somebody brings, or there is no
            such checkpoint: a typing error must not show new weights as trained ones.
    """
    actor = TrainConfig(policy=policy).actor if policy else PolicyConfig("lerobot", {"checkpoint": name})
    denoiser = make_denoiser(actor, device, n_action_steps)
    if denoiser is None:
        raise UserError(f"policy={actor.func}: expected FILE.py:Class or a policy of LeRobot; leave it out for {name}")
    if actor.func != "lerobot" and not (_names_class(name) or (name == NEW and not Path(NEW).exists())):
        try:
            folder = find_checkpoint(name)
        except UserError as error:
            remedy = f"{NEW} in its place means {actor.func} as it is built, without trained weights"
            raise UserError(f"{error}; {remedy}") from None
        denoiser.load_weights(folder)
    return denoiser


def _names_class(name: str) -> bool:
    """Whether a name is FILE.py:Class or module:Class, and not that of a folder or of the Hub."""
    return ":" in name.removeprefix(PREFIX) and not Path(name).exists()


def is_of_own_class(name: str) -> bool:
    """Whether a name is that of a checkpoint that `wamtune train` wrote of a class of the user's own."""
    try:
        return (find_checkpoint(Path(name)) / ABOUT).is_file()
    except UserError:  # an export, or nothing at all, which loading it reports
        return False


def refuse_own_class(name: str) -> None:
    """Refuse such a checkpoint where no class was named: it says of which, but a file must not choose what code runs.

    Raises:
        UserError: it is one.
    """
    if is_of_own_class(name):
        raise UserError(f"{name}: it was trained from a class of your own; name that with policy=FILE.py:Class")


def load_dream(
    world_model: Any, name: str, seed: int, device: str, say: Callable[[str], None] = lambda line: None
) -> WorldModel:
    """Load the world model in whose dream a policy is evaluated.

    Args:
        world_model: name or folder of a checkpoint, or a world model of the user's own, see `DreamConfig.world_model`.
        name: of the policy; if it is a run, one of the user's own gets the weights that the run saved; else it is
            pretrained.
        seed: for new weights.
        device: of the weights.
        say: called with a line before it is pretrained.

    Raises:
        UserError: it cannot be loaded.
    """
    if isinstance(world_model, str) and ":" not in world_model.removeprefix("hf://"):
        return load_model(world_model)
    is_run = Path(name).is_dir() or bool(newest_runs(name))  # `latest` is no folder
    weights = world_model_of(find_checkpoint(name)) if is_run else None
    model = make_world_model(DreamConfig(world_model=world_model), seed, device, weights, say)
    assert model is not None
    return model


def load_recorded(model: WorldModel, name: Any, folder: str) -> list[Episode]:
    """Load recorded episodes of the tasks of a model, with the features that it predicts.

    Args:
        model: whose features the episodes need.
        name: of its checkpoint, which may have episodes.
        folder: of other episodes; empty: those in the checkpoint.

    Raises:
        UserError: there are none, or they do not fit the model.
    """
    where = folder or str(find_checkpoint(name))
    store = EpisodeStore(where)
    spec = stored_spec(store, model)
    episodes = store.load(tasks=spec.tasks, features=spec.features)
    if not episodes:
        raise UserError(f"{where}: no recorded episodes in whose states a dream could begin; name some with episodes=")
    for i, episode in enumerate(episodes):
        episode.check_fits(spec, f"{where}: episode {i}")
    return model.encode_episodes(episodes)


def _gaussian(name: str, about: dict[str, Any], tensors: dict[str, Tensor]) -> Actor:
    """Load a Gaussian policy, and the config of its run; `about` and `tensors` are those of `load_checkpoint`."""
    run = find_checkpoint(name).resolve().parents[1]
    if not (run / "config.yaml").is_file():  # the config inside a checkpoint is not used: it may name code to run
        raise UserError(f"{name}: a Gaussian policy is evaluated by its run folder, which says where; name that one")
    return Actor(name, gaussian=load_gaussian(name, about, tensors), trained=compose(run, [], TrainConfig))
