"""The world-action model, its episodes, its training stages, its dream and its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from world_model.wam.model import WorldActionModel

__all__ = ["load"]


def load(checkpoint: str | Path) -> WorldActionModel:
    """Load a world-action model in evaluation mode, on the CPU; it is a `world_model.api.WorldModel`.

    Args:
        checkpoint: a built-in name (see `wamtune ls`), a checkpoint folder, a run folder, `runs/NAME` (the newest
            run of that name), `latest`, or `hf://USER/NAME`.

    Raises:
        rewards.errors.UserError: it is missing or damaged, or holds no world model.
    """
    # Imported here: whoever only reads episodes or checkpoints needs no model.
    from world_model.wam.store import load_model

    return load_model(checkpoint)
