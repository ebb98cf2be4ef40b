"""Load a checkpoint, or a policy that somebody brings, for a verb that lets it act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rl.build import make_denoiser
from rl.config import DreamConfig, PolicyConfig, TrainConfig
from rl.policies.api import Denoiser
from rl.policies.saving import ABOUT
from rl.world_models import load_world_model_weights, make_world_model, world_model_of
from world_model.api import WorldModel
from world_model.checkpoint import find_checkpoint
from world_model.data.episodes import Episode, EpisodeStore
from world_model.spec import LATENTS
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model, load_model_and_config


def load_actor(name_or_path: str) -> WorldActionModel:
    """Load a checkpoint as `load_model` does; refuse one that can only predict.

    Raises:
        UserError: as for `load_model`, or the checkpoint is of the pretrain stage.
    """
    model, config = load_model_and_config(name_or_path)
    if config.get("stage") == "pretrain":
        raise UserError(
            f"{name_or_path} cannot act, it only predicts: teach it with wamtune tune metaworld-tuned "
            f"checkpoint={name_or_path}, look at what it predicts with wamtune dream {name_or_path}, or take another"
        )
    return model


def load_brought(name: str, policy: Any, device: str, n_action_steps: int) -> Denoiser:
    """Load a policy of LeRobot, or of the user's own with the weights that `wamtune train` saved.

    Args:
        name: folder of the checkpoint, or a run folder; for a class of your own also any other name, for new weights.
        policy: see `TrainConfig.policy`; empty: `name` is a policy of LeRobot.
        device: of the weights.
        n_action_steps: executed of each chunk; 0: as many as its own configuration says.

    Raises:
        UserError: it cannot be loaded, see `make_denoiser`, or it is not a policy that somebody brings.
    """
    actor = TrainConfig(policy=policy).actor if policy else PolicyConfig("lerobot", {"checkpoint": name})
    denoiser = make_denoiser(actor, device, n_action_steps)
    if denoiser is None:
        raise UserError(f"policy={actor.func}: expected FILE.py:Class or a policy of LeRobot; leave it out for {name}")
    if actor.func != "lerobot" and Path(name).is_dir():
        denoiser.load_weights(find_checkpoint(name))
    return denoiser


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


def load_dream(world_model: Any, name: str, seed: int, device: str) -> WorldModel:
    """Load the world model in whose dream a policy is evaluated.

    Args:
        world_model: name or folder of a checkpoint, or a world model of the user's own, see `DreamConfig.world_model`.
        name: of the policy; if it is a run, one of the user's own gets the weights that the run saved.
        seed: for new weights.
        device: of the weights.

    Raises:
        UserError: it cannot be loaded.
    """
    if isinstance(world_model, str) and ":" not in world_model.removeprefix("hf://"):
        return load_model(world_model)
    model = make_world_model(DreamConfig(world_model=world_model), seed, device)
    assert model is not None
    if Path(name).is_dir():
        load_world_model_weights(model, world_model_of(find_checkpoint(name)))
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
    # They may hold images, or the latents of this model.
    has_latents = bool(store.shards) and LATENTS in store.spec.features
    spec = model.predicted_spec if has_latents else model.spec
    episodes = store.load(tasks=spec.tasks, features=spec.features)
    if not episodes:
        raise UserError(f"{where}: no recorded episodes in whose states a dream could begin; name some with episodes=")
    for i, episode in enumerate(episodes):
        episode.check_fits(spec, f"{where}: episode {i}")
    return model.encode_episodes(episodes)
