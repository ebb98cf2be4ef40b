"""Load a checkpoint for a verb that lets it act."""

from __future__ import annotations

from rewards.errors import UserError
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model_and_config


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
